"""How features move when images begin to move: exactly, by forward-mode differentiation, or by central differences.

Both read every layer of a network in the pass that `moving` images make through it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from equitune.groups.flow import Flow
from equitune.groups.layout import Layout

Method = Literal["jvp", "difference"]


class Differentiation(Protocol):
    """One way to differentiate along a flow."""

    @property
    def method(self) -> Method:
        """As a study names it."""

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Return what a pass needs around it."""

    def moving(self, flow: Flow, images_BCHW: Tensor) -> Tensor:
        """Return what to put through the network."""

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and d/dt f(g_t x), (B, C, G, H, W) each, from the features of that pass.

        Raises:
            NotImplementedError: an operation before them does not differentiate this way.
        """

    def prescribed(self, flow: Flow, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """d/dt rho(g_t) f, differentiated in the same way."""


@dataclass(frozen=True)
class Jvp:
    """Dual numbers: the images carry their motion with them, and each operation carries it on."""

    method: Method = "jvp"

    @contextmanager
    def passing(self) -> Iterator[None]:
        # Fused attention has no forward-mode rule; the same function in plain operations has.
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def moving(self, flow: Flow, images_BCHW: Tensor) -> Tensor:
        start, motion = flow.images_at(images_BCHW, 0), flow.on_images(images_BCHW)
        dual: Tensor = forward_ad.make_dual(start, motion)  # type: ignore[no-untyped-call]
        return dual

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        plain, motion = forward_ad.unpack_dual(features)  # type: ignore[no-untyped-call]
        if motion is None:
            if len(plain) == 1 or not torch.equal(plain, plain[:1].expand_as(plain)):
                raise NotImplementedError("features depend on the image, but carry no derivative")
            motion = torch.zeros_like(plain)
        return plain, motion

    def prescribed(self, flow: Flow, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        return flow.on_features(features_BCGHW, layout)


@dataclass(frozen=True)
class Difference:
    """Central differences: images as they are, a little ahead and a little behind, in one batch."""

    epsilon: float
    method: Method = "difference"

    @contextmanager
    def passing(self) -> Iterator[None]:
        yield

    def moving(self, flow: Flow, images_BCHW: Tensor) -> Tensor:
        ahead, behind = (flow.images_at(images_BCHW, t) for t in (self.epsilon, -self.epsilon))
        return torch.cat([flow.images_at(images_BCHW, 0), ahead, behind])

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        plain, ahead, behind = features.chunk(3)
        return plain, (ahead - behind) / (2 * self.epsilon)

    def prescribed(self, flow: Flow, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        ahead, behind = (flow.features_at(features_BCGHW, layout, t) for t in (self.epsilon, -self.epsilon))
        return (ahead - behind) / (2 * self.epsilon)
