"""Images and networks of the known-answer tests."""

import torch
from torch import Tensor, nn

from equitune.groups.layout import Grid, Layout, Vector
from equitune.measures._evaluation import EvaluationSet


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


class Pointwise(nn.Module):
    """A function of the image, as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator,no-any-return]
