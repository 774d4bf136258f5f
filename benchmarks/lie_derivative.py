"""The layer-wise Lie derivative beside the per-module probe estimator of 2210.02984, at one relative standard error.

python benchmarks/lie_derivative.py

The peer is written from its published description. An image at a time, each module's L f_i is differentiated by two
backward passes; a probe z ~ N(0, I) of the classes gives the loss <z, softmax>, whose gradients weigh each module's
contribution, <gradient_i, L f_i>^2; 100 probes an image, 20 images. It is spared what it could share: L f_i is computed
once an image, and both directions of translation use the same gradients.

The two estimate different quantities: the peer what each module contributes to the motion of the output, ours how far
each layer's features are from moving as they should. So what is compared is the time to a relative standard error, in
the median over the modules or layers: that of the peer with its 20 images. Ours is printed with as many, too.
"""

import math
import time
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.data.split import as_float
from equitune.evaluation.estimate import Estimate
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.motion import Jvp
from equitune.groups.flow import Flow, flows
from equitune.groups.layout import Grid
from equitune.measures.lie_derivative import LieSums, differentiate
from equitune.networks.device import make_deterministic

IMAGES, PROBES, SIDE = 20, 100, 32  # the peer's published setting
SPREAD = 64  # images from whose spread follows how many of them ours needs
ROUNDS = 3


def images(n: int) -> EvaluationSet:
    """Noise with the spectrum of photographs, 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE))
    frequency[0, 0] = np.inf
    noise = np.random.default_rng(0).standard_normal((n, 3, SIDE, SIDE))
    field = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    pixels = (128 + 48 * field / field.std((2, 3), keepdims=True)).clip(0, 255).astype(np.uint8)
    return EvaluationSet(torch.from_numpy(pixels), torch.zeros(n, dtype=torch.int64), "validation")


def jvp_by_double_backward(function: nn.Module, place: Tensor, direction: Tensor) -> Tensor:
    """J v, as the derivative of v . (u J) by u."""
    place = place.detach().requires_grad_()
    output = function(place)
    u = torch.zeros_like(output, requires_grad=True)
    (pulled,) = torch.autograd.grad(output, place, u, create_graph=True)
    return torch.autograd.grad(pulled, u, direction)[0]


def lie_derivative_of(module: nn.Module, place: Tensor, flow: Flow) -> Tensor | None:
    """L f_i at a module's own input, in pixels of the image; None where it has no grid to move on."""
    if place.ndim < 4:
        return None
    layout = Grid(SIDE // place.shape[-1])
    motion = jvp_by_double_backward(module, place, flow.on_features(layout.read(place), layout).view_as(place))
    with torch.no_grad():
        output = module(place)
        after = Grid(SIDE // output.shape[-1])
        return motion - flow.on_features(after.read(output), after).view_as(output)


def probe_estimates(model: nn.Module, image: Tensor, directions: list[Flow], probes: int) -> Tensor:
    """E_z <gradient_i, L f_i>^2 of one image, one number a call of a module and a direction."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(lambda m, x, y: calls.append((m, x[0], y))) for leaf in leaves]
    softmax = model(image.requires_grad_()).softmax(1)
    for handle in handles:
        handle.remove()
    outputs, failures = [], []
    for module, place, output in calls:
        found = [lie_derivative_of(module, place, flow) for flow in directions]
        if found[0] is not None:
            outputs.append(output)
            failures.append(torch.stack(found))
    total = torch.zeros(len(outputs), len(directions), dtype=torch.float64)
    for _ in range(probes):
        gradients = torch.autograd.grad((torch.randn_like(softmax) * softmax).sum(), outputs, retain_graph=True)
        for index, (gradient, failure) in enumerate(zip(gradients, failures, strict=True)):
            total[index] += (failure * gradient).flatten(1).sum(1).double().square()
    return total.flatten() / probes


def ours(model: nn.Module, held_out: EvaluationSet) -> dict[str, float]:
    """The median over layers of the relative standard error, of the error and of the raw derivative."""
    directions = flows("translation", SIDE)
    found = differentiate(model, held_out, directions, [Jvp()])
    relative: dict[str, list[float]] = {"error": [], "raw": []}
    for layer, layout in model.layers.items():  # type: ignore[union-attr]
        if layout.is_spatial:
            for name, statistic in (("error", LieSums.error), ("raw", LieSums.raw)):
                mean = Estimate.average([statistic(found.sums[layer, flow.label]) for flow in directions])
                relative[name].append(mean.stderr / mean.value)
    return {name: median(values) for name, values in relative.items()}


def main() -> None:
    make_deterministic("cpu")
    torch.manual_seed(0)
    model = catalog.entry("model", "resnet")((3, SIDE, SIDE), 10, catalog.entry("prior", "conv")()).eval()
    model.requires_grad_(False)
    directions = flows("translation", SIDE)

    pixels = as_float(images(IMAGES).pixels)
    started = time.perf_counter()
    per_image = torch.stack([probe_estimates(model, image[None], directions, PROBES) for image in pixels])
    peer_s = time.perf_counter() - started
    per_image = per_image[:, per_image.mean(0) > 1e-20]  # point-wise linear modules are exact
    target = float((per_image.std(0) / IMAGES**0.5 / per_image.mean(0)).median())
    over = f"{per_image.shape[1]} modules and directions"
    print(f"probe estimator, {IMAGES} images of {PROBES} probes: {peer_s:.1f} s, {target:.3f} (median of {over})")

    spread = ours(model, images(SPREAD))
    for name in ("error", "raw"):
        needed = max(2, math.ceil(SPREAD * (spread[name] / target) ** 2))
        for n, aim in ((needed, "  (at least 10)"), (IMAGES, "")):
            held_out, seconds = images(n), []
            for _ in range(ROUNDS):
                started = time.perf_counter()
                ours(model, held_out)
                seconds.append(time.perf_counter() - started)
            reached, ratio = spread[name] * (SPREAD / n) ** 0.5, peer_s / median(seconds)
            taken = f"{n} images: {median(seconds):.2f} s, {reached:.3f}"
            print(f"{name} of every layer, {taken}: {ratio:.0f} times faster{aim}")


if __name__ == "__main__":
    main()
