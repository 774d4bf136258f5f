"""Draws what each prior or averaging ties together, from this program itself, seeded: `docs/priors/NAME.png`.

python docs/kernels.py [NAME ...]

A kernel is the gradient of one output value with respect to the layer's input, so that nothing here knows how a prior
is built. Red is positive, blue negative, on one scale in each picture.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from equitune import catalog
from equitune.groups.d4 import Turn

PICTURES = Path(__file__).parent / "priors"
SIDE_PX, KERNEL_PX = 13, 3
CENTRE = SIDE_PX // 2
PLACE = (3, 8)  # row and column, off the centre
SHIFTS_PX = (2, 4, 6)  # to the left
TURNS = [Turn(quarters) for quarters in range(4)]
NAMES = ["e", "r", "r²", "r³"]  # r: a quarter turn, counter-clockwise
TILE_PX, HEAD_PX, SIDE_TEXT_PX = 46, 26, 66

Tiles = list[list[Tensor | None]]  # rows of square pictures, None where there is none
Drawing = tuple[Tiles, list[str], list[str]]  # and the names of rows and of columns


def tied(name: str, **args: Any) -> Drawing:
    """Kernels that turns, and shifts, of the image would make equal: in place, and brought back."""
    layer = lifting(name, **args)
    in_place, brought_back = turned(layer, TURNS)
    beside = [kernel(layer, 0, PLACE[0], PLACE[1] - shift) for shift in SHIFTS_PX]
    columns = [*(f"turned\nby {turn}" for turn in NAMES), "", *(f"shifted\nby {shift} px" for shift in SHIFTS_PX)]
    return [in_place, [*brought_back, None, *beside]], ["in place", "brought\nback"], columns


def mirrored(name: str) -> Drawing:
    """Return the same under turns that follow a mirror."""
    rows = turned(lifting(name), [*TURNS, *(Turn(quarters, True) for quarters in range(4))])
    return [*rows], ["in place", "brought\nback"], [*NAMES, "m", *(f"{turn}m" for turn in NAMES[1:])]


def relaxed(name: str, **args: Any) -> Drawing:
    """Kernels brought back, as in `tied`, for each way of relaxing."""
    rows: Tiles = []
    ways = ("position", "orientation", "both")
    for way in ways:
        (_, brought_back), _, columns = tied(name, relaxes=way, **args)
        rows.append(brought_back)
    return rows, [f"relaxes\n{way}" for way in ways], columns


def mixing(name: str, left_out: tuple[int, ...] = ()) -> Drawing:
    """Kernels from the image, and from each entry h of a group axis, to each entry g of one."""
    first = lifting(name)
    hidden = made(name).conv(1, 1, KERNEL_PX, side=SIDE_PX, padding=KERNEL_PX // 2).eval()
    for entry in left_out:
        hidden.logits.data[entry - 1] = -3.0
    rows: Tiles = []
    for entry in range(4):
        found = gradient(hidden, (1, 4, SIDE_PX, SIDE_PX), entry, CENTRE, CENTRE)[0]
        rows.append([kernel(first, entry, CENTRE, CENTRE), None, *(around(each, CENTRE, CENTRE) for each in found)])
    return rows, [f"to {turn}" for turn in NAMES], ["from the\nimage", "", *(f"from {turn}" for turn in NAMES)]


def hues(name: str) -> Drawing:
    """Kernels of a lifting layer from each colour to each hue."""
    layer = lifting(name, channels=3)
    of_hues = [gradient(layer, (3, SIDE_PX, SIDE_PX), entry, CENTRE, CENTRE) for entry in range(3)]
    rows: Tiles = [[around(hue[colour], CENTRE, CENTRE) for hue in of_hues] for colour in range(3)]
    return rows, ["from red", "from green", "from blue"], ["to 0°", "to 120°", "to 240°"]


def softened(name: str) -> Drawing:
    """Draw a kernel at several values of its knob, under quarter turns."""
    softnesses = (0.0, 0.5, 0.9, 1.0)
    kernels = [kernel(lifting(name, softness=softness), 0, CENTRE, CENTRE) for softness in softnesses]
    rows: Tiles = [[moved(g, each) for g in TURNS] for each in kernels]
    return rows, [f"softness {softness:g}" for softness in softnesses], [f"turned\nby {turn}" for turn in NAMES]


def whole(name: str) -> Drawing:
    """Draw what five positions see of a whole map."""
    side, places = 9, [(1, 1), (1, 7), (4, 4), (7, 1), (7, 7)]
    layer = made(name).lift(1, 1, KERNEL_PX, side=side, padding=KERNEL_PX // 2)
    found: list[Tensor | None] = [gradient(layer, (1, side, side), 0, *place)[0] for place in places]
    return [found], ["weights of\nthe map"], [f"row {row},\ncolumn {column}" for row, column in places]


def attended(name: str, heads: int, rows: dict[str, tuple[tuple[int, int], dict[str, Any]]]) -> Drawing:
    """How much a token takes from each place, by head: the norm of the gradient of its output there."""
    grid, tiles = 7, []
    for (row, column), args in rows.values():
        layer = made(name, **args).mix(heads * 8, heads, grid, block=0)
        layer.out = nn.Identity()  # heads side by side, not yet mixed
        tokens = torch.randn(1, grid * grid, heads * 8, requires_grad=True)
        of_heads = layer(tokens)[0, row * grid + column].view(heads, -1)
        jacobian = [
            torch.stack([torch.autograd.grad(value, tokens, retain_graph=True)[0][0] for value in head])
            for head in of_heads
        ]
        tiles.append([each.square().sum((0, 2)).sqrt().view(grid, grid) for each in jacobian])
    return [*tiles], list(rows), [f"head {head + 1}" for head in range(heads)]


def spread(name: str) -> Drawing:
    """Draw an image, and what is averaged over instead of it."""
    image = torch.zeros(1, 1, 21, 21)
    image[..., 4:17, 7:9] = image[..., 4:6, 7:14] = image[..., 9:11, 7:12] = 1  # an F
    rows: Tiles = []
    widths = {"width -20": {"width": -20.0}, "width 0": {}, "width 0,\nrotation": {"acts": "rotation"}}
    for args in widths.values():
        averaging = catalog.entry("averaging", name)(nn.Identity(), copies=6, **args)
        rows.append([image[0, 0], None, *(averaging.moved(image, draw)[0, 0] for draw in averaging.draws)])
    return rows, list(widths), ["image", "", *(f"copy {copy + 1}" for copy in range(6))]


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "attention": partial(attended, "attention", 4, {"token 3, 3": ((3, 3), {}), "token 1, 5": ((1, 5), {})}),
    "augerino": partial(spread, "augerino"),
    "ceconv": partial(hues, "ceconv"),
    "conv": partial(tied, "conv"),
    "fc": partial(whole, "fc"),
    "gpsa": partial(
        attended,
        "gpsa",
        9,
        {
            "token 3, 3\nlocality 1": ((3, 3), {"locality": 1.0}),
            "token 3, 3\nlocality 4": ((3, 3), {"locality": 4.0}),
            "token 1, 5\nlocality 4": ((1, 5), {"locality": 4.0}),
        },
    ),
    "lambda_sym": partial(tied, "lambda_sym", free=0.15),
    "local": partial(tied, "local"),
    "mixed_group": partial(tied, "mixed_group", others=-2.0),
    "nonstationary": partial(tied, "nonstationary", w2=0.2),
    "nonstationary_exact": partial(tied, "nonstationary_exact", w2=0.2),
    "nonstationary_p4": partial(relaxed, "nonstationary_p4", w2=0.2),
    "orbit_c4": partial(mixing, "orbit_c4"),
    "p4": partial(mixing, "p4"),
    "p4m": partial(mirrored, "p4m"),
    "partial_p4": partial(mixing, "partial_p4", left_out=(1, 3)),
    "relaxed_p4": partial(tied, "relaxed_p4", filters=2, spread=0.4),
    "rpp": partial(tied, "rpp", a=0.3),
    "separable_p4": partial(mixing, "separable_p4"),
    "softeq": partial(softened, "softeq"),
}


def made(name: str, **args: Any) -> Any:
    """Return a prior whose layer is about to be built, always with the same weights."""
    torch.manual_seed(4)
    return catalog.entry("prior", name)(**args)


def lifting(name: str, channels: int = 1, **args: Any) -> nn.Module:
    """Return a layer from images to maps of one channel, of the same side."""
    layer: nn.Module = made(name, **args).lift(channels, 1, KERNEL_PX, side=SIDE_PX, padding=KERNEL_PX // 2)
    return layer


def turned(layer: nn.Module, group: list[Turn]) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return the kernels of a lifting layer at each entry g and place g PLACE, and what g brings back from there."""
    marked = torch.zeros(SIDE_PX, SIDE_PX)
    marked[PLACE] = 1
    places = [moved(g, marked).nonzero()[0].tolist() for g in group]
    in_place = [kernel(layer, entry, row, column) for entry, (row, column) in enumerate(places)]
    return [*in_place], [moved(g.inverse(), each) for g, each in zip(group, in_place, strict=True)]


def moved(g: Turn, picture: Tensor) -> Tensor:
    return g.on_images(picture[None, None])[0, 0]


def kernel(layer: nn.Module, entry: int, row: int, column: int) -> Tensor:
    """Return what a value of a map reads of an image with one channel: (k, k)."""
    return around(gradient(layer, (1, SIDE_PX, SIDE_PX), entry, row, column)[0], row, column)


def gradient(layer: nn.Module, shape: tuple[int, ...], entry: int, row: int, column: int) -> Tensor:
    """Of one value of the output, of the only entry where there is one, with respect to an input of this shape."""
    given = torch.zeros(1, *shape, requires_grad=True)
    maps = layer(given)
    (found,) = torch.autograd.grad(maps[0, 0, entry % maps.shape[2], row, column], given)
    return found[0]


def around(plane: Tensor, row: int, column: int) -> Tensor:
    reach = KERNEL_PX // 2
    return plane[row - reach : row + reach + 1, column - reach : column + reach + 1]


def draw(name: str, path: Path) -> None:
    """Write a picture."""
    tiles, rows, columns = DRAWINGS[name]()
    there = [tile.detach() for row in tiles for tile in row if tile is not None]
    largest, side = max(float(tile.abs().max()) for tile in there), len(there[0])
    step = side * 1.2
    lefts = [sum(step if title else step / 3 for title in columns[:index]) for index in range(len(columns) + 1)]
    area = (lefts[-1] / step * TILE_PX, len(rows) * TILE_PX)
    size = (area[0] + SIDE_TEXT_PX + 2, area[1] + HEAD_PX + 2)
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((SIDE_TEXT_PX / size[0], 2 / size[1], area[0] / size[0], area[1] / size[1]))
    for y, row in enumerate(tiles):
        for left, tile in zip(lefts, row, strict=False):
            if tile is not None:
                box = (left, left + side, y * step + side, y * step)
                axes.imshow(tile.detach().numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, extent=box)
                axes.add_patch(Rectangle((left, y * step), side, side, fill=False, color="#999999", lw=0.5))
    axes.set(xlim=(-step / 12, lefts[-1] - step / 12), ylim=(len(rows) * step - step / 12, -step / 12))
    axes.set_xticks([left + side / 2 for left in lefts[:-1]], columns, fontsize=6)
    axes.set_yticks([y * step + side / 2 for y in range(len(rows))], rows, fontsize=6)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for each in sys.argv[1:] or DRAWINGS:
        draw(each, PICTURES / f"{each}.png")
