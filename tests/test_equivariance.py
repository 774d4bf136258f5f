"""What a measurement says of whole networks: verdicts, the layer that breaks a symmetry, controls, invariances."""

from itertools import pairwise

import pytest
import torch
from fields import GroupConv, Pointwise, evaluation, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equitune import catalog
from equitune.evaluation.floor import numeric_floor, verdict
from equitune.evaluation.report import Report
from equitune.groups.layout import Axis, Grid, Layout, Vector
from equitune.measures.equivariance import measure, total_stride

both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


class Stack(nn.Module):
    """Layers in a row, each measured, and mean-pooled scores."""

    def __init__(self, layers: list[nn.Module], axis: Axis = "none", dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.output = Pointwise(lambda maps: maps.flatten(3).mean(3).amax(2) if maps.ndim == 5 else maps.mean((2, 3)))
        self.layers: dict[str, Layout] = {f"body.{index}": Grid(1, axis=axis) for index in range(len(layers))}
        self.layers["output"] = Vector()
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.body(x))  # type: ignore[no-any-return]


def circular(padding: list[str], dtype: torch.dtype) -> Stack:
    """3 x 3 convolutions with a ReLU, each with its own padding."""
    widths = [3, *[8] * len(padding)]
    convolutions = [
        nn.Sequential(nn.Conv2d(widths[index], 8, 3, padding=1, padding_mode=mode), nn.ReLU())
        for index, mode in enumerate(padding)
    ]
    return Stack(list(convolutions), dtype=dtype)


def p4(broken: int | None, dtype: torch.dtype) -> Stack:
    """Group convolutions; in the broken layer a weight of one group entry is not shared with the others."""
    layers: list[nn.Module] = []
    for index in range(3):
        layer: nn.Module = GroupConv(3 if index == 0 else 4, 4, "c4", index == 0, "zeros", 1)
        if index == broken:
            layer = nn.Sequential(layer, Pointwise(lambda maps: maps * torch.arange(1, 5).view(1, 1, 4, 1, 1)))
        layers.append(nn.Sequential(layer, nn.ReLU()))
    return Stack(layers, axis="c4", dtype=dtype)


def verdicts(report: Report, name: str) -> dict[str, str]:
    return {row["layer"]: row["verdict"] for row in report.profile if row["set"] == name}


@both_dtypes
def test_an_exact_network_is_called_exact_and_a_broken_layer_is_named(dtype: torch.dtype) -> None:
    shown = evaluation(images(16, 3, 16, dtype=dtype))
    report = measure(circular(["circular"] * 4, dtype), None, shown)
    assert set(verdicts(report, "lattice").values()) == {"exact"}
    assert report.controls == {"floor": numeric_floor(torch.device("cpu"), dtype), "dtype": str(dtype)[6:]}
    for broken in range(4):
        padding = ["circular"] * 4
        padding[broken] = "zeros"
        twin = measure(circular(padding, dtype), None, shown)
        assert twin.controls["lattice_broken_at"] == f"body.{broken}"
        found = verdicts(twin, "lattice")
        assert [found[f"body.{index}"] for index in range(broken + 1)] == ["exact"] * broken + ["not exact"]


@both_dtypes
def test_an_exact_p4_network_is_called_exact_and_a_broken_layer_is_named(dtype: torch.dtype) -> None:
    shown = evaluation(images(16, 3, 16, dtype=dtype))
    report = measure(p4(None, dtype), None, shown, group="rotation")
    assert set(verdicts(report, "quarter").values()) == {"exact"}
    assert {row["action"] for row in report.profile} == {"declared", "trivial"}
    naive = measure(p4(None, dtype), None, shown, group="rotation", action="scalar")
    assert naive.controls["quarter_broken_at"] == "body.0"
    for broken in range(3):
        twin = measure(p4(broken, dtype), None, shown, group="rotation")
        assert twin.controls["quarter_broken_at"] == f"body.{broken}"


def test_the_floor_is_measured_and_the_verdict_has_three_values() -> None:
    floors = [numeric_floor(torch.device("cpu"), dtype) for dtype in (torch.float64, torch.float32)]
    assert floors[0] < 1e-15
    assert 1e-8 < floors[1] < 1e-6
    assert [verdict(factor * floors[1], floors[1]) for factor in (0, 9, 50, 101)] == [
        "exact",
        "exact",
        "indeterminate",
        "not exact",
    ]


@pytest.mark.parametrize(("side", "exact"), [(33, True), (32, False)])
def test_the_module_whose_strides_break_turns_is_named(side: int, exact: bool) -> None:
    net = catalog.entry("model", "resnet")((3, side, side), 10, catalog.entry("prior", "conv")(), depth=8, width=4)
    rows = measure(net, None, evaluation(images(4, 3, side).float()), group="flip").profile
    found = {row["layer"]: (row["grid_exact"], row["grid_broken_by"]) for row in rows if row["layer"] != "output"}
    assert found["stages.0.0"] == (True, None)
    if exact:
        assert set(found.values()) == {(True, None)}
    else:
        assert found["stages.1.0"][0] is False
        assert found["last"] == found["stages.1.0"]
        assert "stages.1.0" in str(found["last"][1])


def test_controls_tell_a_right_element_from_a_wrong_one() -> None:
    shown = evaluation(images(32, 3, 16))
    row = measure(circular(["circular"] * 2, torch.float64), None, shown).profile[0]
    assert row["error"] < 1e-20
    assert row["wrong_error"] > 0.1  # images of 1 / f are smooth, but a pixel each way is no rounding
    assert row["invariance_error"] > 0.05
    assert row["motion_error"] < 1e-20
    # Where images are the same under every element, no element is wrong: the control says that the score is blind.
    flat = torch.rand(32, 3, 1, 1, dtype=torch.float64).expand(-1, -1, 16, 16).contiguous()
    blind = measure(circular(["circular"] * 2, torch.float64), None, evaluation(flat)).profile[0]
    assert blind["wrong_error"] is None or blind["wrong_error"] < 1e-20


@pytest.mark.parametrize(("group", "elements"), [("translation", 2 + 2), ("rotation", 3), ("d4", 7), ("scale", 2)])
def test_it_takes_one_pass_and_one_more_for_each_element(group: str, elements: int) -> None:
    net = circular(["zeros"] * 2, torch.float64)
    report = measure(net, None, evaluation(images(8, 3, 16)), group=group)  # warms up the numeric floor
    assert sum(len(row["elements"]) for row in report.profile if row["layer"] == "body.0") == elements
    passes = []
    handle = net.register_forward_hook(lambda *_: passes.append(1))
    measure(net, None, evaluation(images(8, 3, 16), batch_size=4), group=group)
    handle.remove()
    probes = 3  # of one image: what can be measured, what is written over, where strides lie
    assert len(passes) == 2 * (1 + elements) + probes


def test_features_that_are_no_numbers_have_a_status() -> None:
    net = circular(["zeros"] * 2, torch.float64)
    with torch.no_grad():
        net.body[1][0].weight[0, 0, 0, 0] = torch.nan
    report = measure(net, None, evaluation(images(8, 3, 16)))
    status = {row["layer"]: (row["status"], row["reason"]) for row in report.profile}
    assert status["body.0"] == ("ok", None)
    assert status["body.1"] == ("undefined", "body.1: features are not finite")
    assert report.metrics["translation_error"].value is None


def test_features_written_over_by_a_later_module_are_measured_as_they_were() -> None:
    class Overwriting(Stack):
        def forward(self, x: Tensor) -> Tensor:
            first = self.body[0](x)
            return self.output(self.body[1](first.relu_()))  # type: ignore[no-any-return]

    plain = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
    shown = evaluation(images(8, 3, 16))
    found = measure(Overwriting(list(plain)), None, shown).profile[0]["error"]
    alone = measure(Stack(list(plain)), None, shown).profile[0]["error"]
    assert found == pytest.approx(alone, rel=1e-12)


def scores(report: Report) -> list[float]:
    names = ("error", "correlation", "invariance_error", "motion_error", "flat_correlation", "channel_correlation")
    return [row[name] for row in report.profile if row["layer"] == "body.1" for name in names]


@settings(deadline=None, max_examples=10)
@given(batch_size=st.integers(1, 20), seed=st.integers(0, 3))
def test_neither_order_nor_size_of_batches_matters(batch_size: int, seed: int) -> None:
    field, net = images(20, 3, 12), circular(["zeros"] * 2, torch.float64)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    expected = scores(measure(net, None, evaluation(field, 7)))
    assert scores(measure(net, None, evaluation(field[order], batch_size))) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=10)
@given(gain=st.floats(0.1, 10), offset=st.floats(-5, 5), seed=st.integers(0, 3))
def test_gain_offset_and_order_of_channels_do_not_matter_where_the_definition_says_so(
    gain: float, offset: float, seed: int
) -> None:
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    gains = gain * torch.ones(8, 1, 1, dtype=torch.float64)
    base = circular(["zeros"] * 2, torch.float64)
    changed = circular(["zeros"] * 2, torch.float64)
    changed.load_state_dict(base.state_dict())
    changed.body[1].append(Pointwise(lambda maps: (maps * gains + offset)[:, order]))
    shown = evaluation(images(16, 3, 12))
    before, after = (
        next(row for row in measure(net, None, shown).profile if row["layer"] == "body.1") for net in (base, changed)
    )
    for quantity in ("error", "correlation", "invariance_error", "invariance_correlation", "motion_error"):
        assert after[quantity] == pytest.approx(before[quantity], rel=1e-8)


@settings(deadline=None, max_examples=6)
@given(st.lists(st.floats(0, 0.6), min_size=2, max_size=4, unique=True))
def test_scores_are_monotone_along_a_scrambling(shares: list[float]) -> None:
    """K9's curve: the more of an image is scrambled, the less equivariant the network, by every measure."""
    order = torch.randperm(24 * 24, generator=torch.Generator().manual_seed(1))
    shares = sorted(round(share, 2) for share in shares)
    field = images(64, 1, 24, 0.0)
    found = []
    for share in dict.fromkeys(shares):
        mixed = Pointwise(lambda x, t=share: (1 - t) * x + t * x.flatten(2)[:, :, order].view_as(x))
        row = measure(Stack([mixed]), None, evaluation(field)).profile[0]
        found.append((row["error"], -row["correlation"], row["motion_error"]))
    assert found == sorted(found)
    assert all(a < b for quantity in zip(*found, strict=True) for a, b in pairwise(quantity))


def test_layers_too_small_to_be_measured_do_not_lengthen_the_lattice() -> None:
    layers = {"a": Grid(4), "b": Grid(16), "c": Grid(32), "output": Vector()}
    assert total_stride(layers, 32) == 4  # maps of 8, 2 and 1
    assert total_stride(layers, 48) == 16
    assert total_stride(layers, 96) == 32
    assert total_stride({"output": Vector()}, 32) == 1
