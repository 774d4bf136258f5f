"""Accuracy on turned images, on networks whose answer is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.data.on_device import DeviceData
from equitune.evaluation.image_set import EvaluationSet
from equitune.measures.turned_accuracy import measure, rotated

TURNS = ("accuracy_90", "accuracy_180", "accuracy_270")


class TopIsBright(nn.Module):
    """Reads orientation: class 1 where the upper half is brighter than the lower one, else class 0."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        half = images_BCHW.shape[2] // 2
        above, below = images_BCHW[:, :, :half].sum((1, 2, 3)), images_BCHW[:, :, -half:].sum((1, 2, 3))
        return torch.stack([below, above], 1)


class IsBright(nn.Module):
    """Reads none: class 1 where the mean is above 0.5."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        mean = images_BCHW.mean((1, 2, 3))
        return torch.stack([1 - mean, mean], 1)


def half_bright(quarters: list[int], side: int = 4) -> Tensor:
    """Images whose upper half is bright, turned by so many quarter turns; a pixel more decides where halves tie."""
    upper = torch.zeros(1, side, side)
    upper[:, : side // 2] = 1
    upper[:, 0, 0] = 0.5  # turned onto its side, the half that it is in is darker
    return torch.stack([torch.rot90(upper, k, (1, 2)) for k in quarters])


def test_a_network_that_reads_orientation_falls_as_it_must() -> None:
    images = EvaluationSet(half_bright([0] * 8), torch.ones(8, dtype=torch.int64), "test")
    metrics = measure(TopIsBright(), None, images).metrics
    # At 90 deg the dark pixel lies below, so the upper half wins; at 270 deg it lies above.
    assert [metrics[name].value for name in TURNS] == [1.0, 0.0, 0.0]
    assert metrics["accuracy_unseen"].value == 0.5
    assert metrics["accuracy_rotated"].status == "not_asked"


def test_the_direction_of_a_turn_is_that_of_rot90() -> None:
    """An image that is right only after one quarter turn counter-clockwise."""
    images = EvaluationSet(half_bright([3] * 4), torch.ones(4, dtype=torch.int64), "test")
    metrics = measure(TopIsBright(), None, images).metrics
    assert [metrics[name].value for name in TURNS] == [1.0, 1.0, 0.0]


class Centred(nn.Module):
    """A network whose scores are 0 on average, so that an untrained one names every class."""

    def __init__(self, network: nn.Module, images_BCHW: Tensor) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            self.mean = network.eval()(images_BCHW).mean(0)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.network(images_BCHW) - self.mean


@pytest.mark.parametrize(("prior", "is_invariant"), [("p4", True), ("conv", False)])
def test_an_invariant_network_is_as_right_at_every_turn(prior: str, is_invariant: bool, small_data: DeviceData) -> None:
    """Its labels are what it says of the upright images."""
    images_BCHW = small_data.validation.pixels / 255
    network = catalog.entry("model", "cnn")((1, 16, 16), 10, catalog.entry("prior", prior)(), width=4)
    model = Centred(network, images_BCHW)
    said = model(images_BCHW).argmax(1)
    assert len(said.unique()) > 3
    metrics = measure(model, None, EvaluationSet(images_BCHW, said, "validation")).metrics
    values = [metrics[name].value for name in (*TURNS, "accuracy_unseen")]
    assert (values == [1.0] * 4) == is_invariant
    assert is_invariant or max(metrics[name].value for name in TURNS) < 0.8


def test_unseen_is_one_number_an_image_not_four() -> None:
    """Four views of an image are no four images: the error is that of n images, each hit in part."""
    n = 100
    images = EvaluationSet(half_bright([0, 2] * (n // 2)), torch.ones(n, dtype=torch.int64), "test")
    unseen = measure(TopIsBright(), None, images).metrics["accuracy_unseen"]
    assert unseen.n == n
    constant = EvaluationSet(half_bright([0] * n), torch.ones(n, dtype=torch.int64), "test")
    same = measure(TopIsBright(), None, constant).metrics["accuracy_unseen"]
    assert same.stderr == pytest.approx(math.sqrt(1 / (4 * n * n)) / (1 + 1 / n))  # Wilson's at no variance over images


def test_steps_of_a_full_turn_hold_the_quarter_turns() -> None:
    images = EvaluationSet(half_bright([0] * 8), torch.ones(8, dtype=torch.int64), "test")
    metrics = measure(TopIsBright(), None, images, angles=4).metrics
    assert metrics["accuracy_rotated"].value == metrics["accuracy_unseen"].value
    tenths = measure(TopIsBright(), None, images, angles=36).metrics["accuracy_rotated"].value
    assert tenths == pytest.approx(0.5, abs=2 / 36)


@pytest.mark.parametrize("side", [7, 8])
def test_bilinear_rotation_has_the_sense_of_the_exact_turn(side: int) -> None:
    images = torch.rand(2, 1, side, side, dtype=torch.float64)
    assert torch.allclose(rotated(images, 90), torch.rot90(images, 1, (2, 3)), atol=1e-12)
    assert not torch.allclose(rotated(images, 90), torch.rot90(images, 3, (2, 3)), atol=1e-2)


def test_what_has_no_value_says_so() -> None:
    oblong = EvaluationSet(torch.rand(3, 1, 4, 6), torch.ones(3, dtype=torch.int64), "test")
    assert {metric.status for metric in measure(IsBright(), None, oblong).metrics.values()} == {"non_square"}
    unlabelled = EvaluationSet(torch.rand(3, 1, 4, 4), torch.tensor([1, -1, 0]), "test")
    metric = measure(IsBright(), None, unlabelled).metrics["accuracy_90"]
    assert metric.status == "undefined"
    assert metric.reason == "1 of 3 images have no label among the model's classes"
