"""`docs/priors.md` has every prior, downsampler, averaging and head, and what it states of them is so."""

import re
import runpy
from pathlib import Path
from typing import Any, get_args

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.errors import Infeasible
from equitune.groups.axis import ENTRIES
from equitune.groups.grid import grid_exact
from equitune.networks.build import count_parameters
from equitune.networks.cost import multiply_adds

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "priors.md").read_text(encoding="utf-8")
KERNELS = runpy.run_path(str(DOCS / "kernels.py"))
MAPS, TOKENS = catalog.parts("cnn", "prior"), catalog.parts("vit", "prior")
PICTURED = [*MAPS, *TOKENS, *catalog.names("averaging")]
STRICT: dict[str, dict[str, object]] = {  # the corners of the column of knobs
    "rpp": {"a": 0.0},
    "nonstationary": {"w2": 0.0},
    "nonstationary_exact": {"w2": 0.0},
    "relaxed_p4": {"filters": 2},
    "mixed_group": {"others": -1e4},
    "softeq": {"softness": 0.0},
    "nonstationary_p4": {"w2": 0.0},
}


def table(heading: str) -> dict[str, dict[str, str]]:
    """The rows of a section's table, by name, then by the heading of the column."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    titles, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    return {row[0].strip("`"): dict(zip(titles, row, strict=True)) for row in rows}


def said(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2f}".rstrip("0").rstrip(".")


def map_layer(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The page's example, and the shape of a batch of maps for it."""
    prior = catalog.entry("prior", name)()
    entries = 3 if prior.axis == "hue" else ENTRIES.get(prior.axis, 1)
    return prior.conv(16, 16, 3, side=16, padding=1), (64, 16, entries, 16, 16)


def token_layer(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    return catalog.entry("prior", name)().mix(64, 4, 8, block=0), (64, 64, 64)


@pytest.mark.parametrize(
    ("heading", "known"),
    [
        ("Priors of maps", MAPS),
        ("Priors of tokens", TOKENS),
        ("Downsamplers", catalog.names("downsampler")),
        ("Averagings", catalog.names("averaging")),
        ("Heads", get_args(catalog.describe("prior", "p4").parameters["head"][0])),
    ],
)
def test_everything_has_its_row(heading: str, known: list[str]) -> None:
    assert sorted(table(heading)) == sorted(known)


def test_every_prior_has_its_picture_and_a_caption() -> None:
    assert set(KERNELS["DRAWINGS"]) == {*PICTURED} == {path.stem for path in (DOCS / "priors").iterdir()}
    shown = re.findall(r"### `(\w+)`\n\n!\[[^]]+\]\(priors/(\w+)\.png\)\n\n[A-Z]", PAGE)
    assert sorted(shown) == [(name, name) for name in sorted(PICTURED)]


@pytest.mark.parametrize("name", PICTURED)
def test_the_pictures_are_those_that_the_script_draws(name: str, tmp_path: Path) -> None:
    KERNELS["draw"](name, tmp_path / "drawn.png")
    kept = DOCS / "priors" / f"{name}.png"
    assert kept.stat().st_size < 40_000
    drawn, expected = (matplotlib.image.imread(path)[..., :3] for path in (tmp_path / "drawn.png", kept))
    assert drawn.shape == expected.shape, f"run `python docs/kernels.py {name}`"
    assert np.abs(drawn - expected).mean() < 0.02, (
        f"run `python docs/kernels.py {name}`"
    )  # other kernels: 0.04 and more


@pytest.mark.parametrize("name", [*MAPS, *TOKENS])
def test_costs_are_as_stated(name: str) -> None:
    heading, layer_of, unit = (
        ("Priors of maps", map_layer, "conv") if name in MAPS else ("Priors of tokens", token_layer, "attention")
    )
    with torch.device("meta"):
        layers = [layer_of(each) for each in (name, unit)]
        (weights, steps), (unit_weights, unit_steps) = (
            (count_parameters(layer), multiply_adds(layer, shape)) for layer, shape in layers
        )
    assert table(heading)[name]["cost"] == f"{said(weights / unit_weights)} / {said(steps / unit_steps)}"


# One reads whole maps, one three channels, and the planes of an orbit lie in frames of their own.
@pytest.mark.parametrize("name", sorted({*MAPS} - {"fc", "ceconv", "orbit_c4"}))
def test_kernels_of_the_strict_corner_are_one_under_what_is_stated(name: str) -> None:
    (_, brought_back), _, _ = KERNELS["tied"](name, **STRICT.get(name, {}))
    turned, shifted = brought_back[:4], [brought_back[0], *brought_back[5:]]

    def are_one(kernels: list[Tensor]) -> bool:
        return all(torch.allclose(each, kernels[0], atol=1e-6) for each in kernels)

    words = table("Priors of maps")[name]["exact under"]
    assert are_one(turned) == ("turns" in words)
    assert are_one(shifted) == ("shifts" in words)
    if name in STRICT:  # and the knob of the picture has left the corner
        tiles, _, _ = KERNELS["DRAWINGS"][name]()
        last = tiles[-1]
        free = last[:4] if name == "softeq" else [each for each in last if each is not None]
        assert not are_one(free)


def test_pictures_of_relaxed_symmetries_show_which_are_kept() -> None:
    rows, _, _ = KERNELS["DRAWINGS"]["nonstationary_p4"]()
    for row, keeps_turns, keeps_shifts in zip(rows, (True, False, False), (False, True, False), strict=True):
        for kernels, is_kept in ((row[:4], keeps_turns), ([row[0], *row[5:]], keeps_shifts)):
            assert all(torch.allclose(each, kernels[0], atol=1e-6) for each in kernels) == is_kept


def test_an_averaging_costs_what_is_stated_and_moves_nothing_at_its_strict_corner() -> None:
    row, model = table("Averagings")["augerino"], nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(392, 10))
    averaging = catalog.entry("averaging", "augerino")(model)
    added = count_parameters(averaging) - count_parameters(model)
    ratio = multiply_adds(averaging, (64, 1, 9, 9)) / multiply_adds(model, (64, 1, 9, 9))
    assert row["weights"].split(",")[0] == str(added)
    assert row["multiply-adds"].split(",")[0] == f"times {ratio:.0f}"
    (still, moved, _), _, _ = KERNELS["DRAWINGS"]["augerino"]()
    assert all(torch.allclose(copy, still[0], atol=1e-4) for copy in still[2:])
    assert not any(torch.allclose(copy, moved[0], atol=0.5) for copy in moved[2:])


@pytest.mark.parametrize("name", catalog.names("downsampler"))
def test_downsamplers_are_exact_where_it_is_stated(name: str) -> None:
    row = table("Downsamplers")[name]

    def keeps(symmetry: str, side: int) -> bool:
        try:
            halving: Any = downsampler.halving(16, side)
        except Infeasible:
            return False
        if halving is None:  # the strides of a convolution
            return grid_exact(side, 3, stride=2, padding=1) if symmetry == "d4" else side % 2 == 0
        return halving.breaks(symmetry, side) is None

    padding = {"padding": "circular"} if "padding" in catalog.describe("downsampler", name).parameters else {}
    downsampler = catalog.entry("downsampler", name)(**padding)
    found = {side for side in (8, 9) if keeps("d4", side)}
    assert row["turns and mirrors exact"] == {frozenset({8}): "even", frozenset({9}): "odd"}.get(
        frozenset(found), "none"
    )
    assert keeps("translation", 8)
    halving = downsampler.halving(16, 8)
    assert row["shifts exact"] == ("all" if halving is not None and halving.is_adaptive else "even")
    assert row["weights"] == f"{count_parameters(halving) if halving is not None else 0:,}"
