"""One forward pass, all layers: the declared layers' outputs, read as features (B, C, G, H, W) as they appear."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from equitune.errors import Unmeasurable
from equitune.groups.layout import Layout

OnFeatures = Callable[[str, Tensor], None]
OnUnreadable = Callable[[str, Unmeasurable], None]


@contextmanager
def capturing(
    model: nn.Module, layers: Mapping[str, Layout], on_features: OnFeatures, on_unreadable: OnUnreadable | None = None
) -> Iterator[None]:
    """While open, each forward pass calls `on_features(layer, features)` for every declared layer in turn.

    An output that is not what its layout declares goes to `on_unreadable`; without it, Unmeasurable is raised.
    """

    def hook(name: str, output: Tensor) -> None:
        try:
            features = layers[name].read(output)
        except Unmeasurable as error:
            if on_unreadable is None:
                raise
            on_unreadable(name, error)
        else:
            on_features(name, features)

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: hook(name, output))
        for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
