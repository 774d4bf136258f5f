"""Images and networks of the known-answer tests."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune.evaluation.image_set import EvaluationSet
from equitune.groups.layout import Axis, Grid, Layout, Vector


def images(
    n: int, channels: int, side: int, beta: float = 1.0, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Periodic Gaussian fields with spectrum 1 / f^beta, standardised per image and channel: (n, C, N, N)."""
    noise = torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)
    radius = torch.sqrt(frequency[:, None] ** 2 + frequency**2)
    radius[0, 0] = 1.0
    field = torch.fft.ifft2(torch.fft.fft2(noise) / radius**beta).real
    field -= field.mean((2, 3), keepdim=True)
    return (field / field.std((2, 3), keepdim=True)).to(dtype)


def lowpass(field: Tensor, kappa: float) -> Tensor:
    """Keeps |frequency| <= kappa cycles per pixel along each axis."""
    keep = torch.fft.fftfreq(field.shape[-1], dtype=torch.float64).abs() <= kappa
    return torch.fft.ifft2(torch.fft.fft2(field) * (keep[:, None] & keep)).real.to(field.dtype)


def evaluation(field: Tensor, batch_size: int = 5) -> EvaluationSet:
    """Images as a validation set; small batches, so that streaming is part of every test."""
    labels = torch.zeros(len(field), dtype=torch.int64)
    return EvaluationSet(field, labels, "validation", batch_size, dtype=field.dtype)


class Net(nn.Module):
    """A network whose only measured layer is its whole body."""

    def __init__(self, body: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.body = body
        self.layers: dict[str, Layout] = {"body": layout}

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def cnn(
    channels: list[int],
    padding_mode: str = "zeros",
    strides: list[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Net:
    """3 x 3 convolutions with padding 1, each with a ReLU, in torch's default initialisation."""
    strides = strides or [1] * (len(channels) - 1)
    body = nn.Sequential()
    for index, stride in enumerate(strides):
        body.append(nn.Conv2d(channels[index], channels[index + 1], 3, stride, 1, padding_mode=padding_mode))
        body.append(nn.ReLU())
    total = 1
    for stride in strides:
        total *= stride
    return Net(body.to(dtype), Grid(total))


def mlp(inputs: int, width: int, dtype: torch.dtype = torch.float64) -> Net:
    """Flattened images through two ReLU layers: features without a grid."""
    layers = [nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return Net(nn.Sequential(*layers).to(dtype), Vector())


def p4_net(
    channels: list[int],
    *,
    mirrors: bool = False,
    padding: str = "zeros",
    stride2: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Net:
    """A lifting convolution and group convolutions (1602.07576), 3 x 3 with padding 1, each with a ReLU.

    Args:
        channels: of the image, then of each layer.
        mirrors: p4m, with an axis of 8 entries, in place of p4 with 4.
        padding: `zeros` or `circular`.
        stride2: the second layer has stride 2; it is exact on maps of odd side.
        dtype: of the weights.
    """
    axis: Axis = "d4" if mirrors else "c4"
    body = nn.Sequential()
    for index in range(len(channels) - 1):
        stride = 2 if stride2 and index == 1 else 1
        body.append(GroupConv(channels[index], channels[index + 1], axis, index == 0, padding, stride))
        body.append(nn.ReLU())
    return Net(body.to(dtype), Grid(2 if stride2 else 1, axis=axis))


class GroupConv(nn.Module):
    """out[o, g] = sum_i,h x[i, h] * (L_g psi[o, i, h]), (L_g psi)(h, u) = psi(g^-1 h, g^-1 u); one h when it lifts.

    The product of elements is that of their 2 x 2 matrices, so that nothing here shares a formula with what it tests.
    """

    def __init__(self, inputs: int, outputs: int, axis: Axis, lifts: bool, padding: str, stride: int) -> None:
        super().__init__()
        self.elements = [(turn, mirror) for mirror in range(2 if axis == "d4" else 1) for turn in range(4)]
        self.entries_in = 1 if lifts else len(self.elements)
        self.padding, self.stride = {"zeros": "constant", "circular": "circular"}[padding], stride
        bound = (inputs * 9) ** -0.5
        self.psi = nn.Parameter(torch.empty(outputs, inputs, self.entries_in, 3, 3).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def kernel(self) -> Tensor:
        """(O * G, I * G_in, 3, 3)."""
        matrices = [self._matrix(*element) for element in self.elements]
        moved = []
        for (turn, mirror), matrix in zip(self.elements, matrices, strict=True):
            products = [matrix.T @ other for other in matrices]  # g^-1 h; these matrices are orthogonal
            sources = [next(i for i, m in enumerate(matrices) if m.equal(product)) for product in products]
            psi = self.psi if self.entries_in == 1 else self.psi[:, :, sources]
            moved.append((psi.flip(-1) if mirror else psi).rot90(turn, (-2, -1)))
        return torch.stack(moved, 1).flatten(0, 1).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.flatten(1, 2) if x.ndim == 5 else x
        padded = functional.pad(maps, (1, 1, 1, 1), mode=self.padding)
        bias = self.bias.repeat_interleave(len(self.elements))
        return functional.conv2d(padded, self.kernel(), bias, self.stride).unflatten(1, (-1, len(self.elements)))

    @staticmethod
    def _matrix(turn: int, mirror: int) -> Tensor:
        quarter, flip = torch.tensor([[0, -1], [1, 0]]), torch.tensor([[-1, 0], [0, 1]])
        return torch.linalg.matrix_power(quarter, turn) @ torch.linalg.matrix_power(flip, mirror)


class Pointwise(nn.Module):
    """A function of the image, as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator,no-any-return]
