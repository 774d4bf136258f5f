"""The one door for images: named formats of regular files alone, no program is started, and pixels mean what they say."""

import ast
import os
import re
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_STUDY
from PIL import Image

from equitune import cli
from equitune.config.trial import DataConfig
from equitune.data import decoders as _decoders
from equitune.data.decode import FORMATS, NoRegularFile, decoded, glanced
from equitune.data.splits import load_splits
from equitune.datasets.imagefolder import load_folder
from equitune.errors import UserError

REPOSITORY = Path(__file__).parent.parent
SIXTEEN = np.array([[0, 128, 129, 257], [1000, 30000, 32768, 65535]], np.uint16)
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%LanguageLevel: 2\n%%EndComments\n"
    b"%%BeginPage: 1\nshowpage\n%%EOF\n"
)


@pytest.fixture(autouse=True)
def no_decoders_afterwards() -> Iterator[None]:
    yield
    _decoders.close_decoders()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four small images."""
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (9, 12), (20 * index, 40, 60)).save(tmp_path / "photos" / label / f"{index}.png")
    return tmp_path / "photos"


def stream(folder: Path) -> Any:
    return load_splits(DataConfig(name="imagefolder", args={"path": str(folder), "size": 8, "stream": True}))


def in_memory(folder: Path) -> Any:
    return load_folder(folder, 8)


# One door.


def image_doors(source: str) -> Iterator[str]:
    """What a source text opens images with: `Image.open`, or a name that stands for it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value).endswith("Image"):
            yield ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL") and node.module != "PIL":
            yield f"from {node.module}"
        if isinstance(node, ast.Attribute) and node.attr in ("imread", "read_image", "decode_image", "pil_loader"):
            yield ast.unparse(node)


def test_images_are_opened_at_one_door_alone() -> None:
    found = {
        (str(path.relative_to(REPOSITORY)), door)
        for folder in ("equitune", "benchmarks", "docs")
        for path in (REPOSITORY / folder).rglob("*.py")
        for door in image_doors(path.read_text())
    }
    assert found == {("equitune/data/decode.py", "Image.open")}
    assert (REPOSITORY / "equitune/data/decode.py").read_text().count("Image.open(file, formats=FORMATS)") == 1


@pytest.mark.parametrize(
    "line",
    [
        "Image.open(path)",
        "with PIL.Image.open(path) as image: pass",
        "load = Image.open",
        "from PIL.Image import open",
        "torchvision.io.read_image(path)",
        "plt.imread(path)",
    ],
)
def test_another_door_would_be_found(line: str) -> None:
    assert list(image_doors(line))


# Formats: none of them starts a program.


@pytest.fixture
def gs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Ghostscript that writes down how it is called; the file it writes to."""
    log, program = tmp_path / "gs.log", tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it looks once in a process
    return log


@pytest.mark.parametrize("read", [in_memory, stream])
def test_no_image_starts_ghostscript(read: Callable[[Path], Any], folder: Path, gs: Path) -> None:
    (folder / "a/0.png").write_bytes(EPS)
    (folder / "a/x.jpg").write_bytes(EPS)
    with pytest.raises(UserError, match=r"2 images cannot be decoded: .*a/0.png .*a/x.jpg .*: mend or remove them"):
        read(folder)
    assert not gs.exists()
    with pytest.raises(Exception), Image.open(folder / "a/x.jpg") as image:  # noqa: B017, PT011
        image.load()
    assert gs.exists(), "the PostScript is dead, so the test shows nothing"


def test_formats_that_are_read_and_one_that_is_not(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (10, 200, 30))
    for name in FORMATS:
        image.save(tmp_path / "x", name)
        red, green, blue = np.frombuffer(decoded(str(tmp_path / "x"), 4, False), np.uint8).reshape(3, -1).mean(1)
        assert abs(red - 10) + abs(green - 200) + abs(blue - 30) < 12  # JPEG, WebP and the palette of GIF round
    for name in ("ICO", "PCX", "TGA"):
        image.save(tmp_path / "x", name)
        with pytest.raises(OSError, match="cannot identify image file"):
            decoded(str(tmp_path / "x"), 4, False)


# Regular files.


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


@pytest.mark.parametrize("read", [in_memory, stream])
@pytest.mark.parametrize("put", [pipe, link_to_a_pipe, link_to_a_device, unix_socket])
def test_what_is_no_regular_file_is_named_at_once(
    put: Callable[[Path], None], read: Callable[[Path], Any], folder: Path
) -> None:
    put(folder / "a/z.jpg")
    with pytest.raises(UserError, match=r"1 images cannot be decoded: .*/a/z.jpg \((no regular file|OSError)\): mend"):
        read(folder)


def test_a_pipe_is_a_sentence_of_measure_and_of_a_dry_run(
    folder: Path,
    tmp_path: Path,
    study_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pipe(folder / "b/z.png")
    monkeypatch.chdir(tmp_path)
    text = re.sub("data: .*", f"data: {{name: imagefolder, path: {folder}, size: 12, stream: true}}", SMALL_STUDY)
    study = study_file(text)
    for words in (["measure", "cnn:width=2", "--data", str(folder), "--size", "8"], ["search", study, "--dry-run"]):
        monkeypatch.setattr(sys, "argv", ["equitune", *map(str, words)])
        assert cli._exit_code() == 2
        said = capfd.readouterr().err
        assert "b/z.png (no regular file): mend or remove" in said
        assert "Traceback" not in said


def test_a_link_to_an_image_is_an_image(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (7, 8, 9)).save(tmp_path / "elsewhere.png")
    (folder / "a/0.png").unlink()
    (folder / "a/0.png").symlink_to(tmp_path / "elsewhere.png")
    assert load_folder(folder, 8).pixels[0, :, 0, 0].tolist() == [7, 8, 9]
    (tmp_path / "elsewhere.png").unlink()
    with pytest.raises(UserError, match=r"a/0.png \(FileNotFoundError\)"):
        load_folder(folder, 8)
    with pytest.raises(IsADirectoryError):
        decoded(str(folder), 8, False)


def test_opening_leaves_no_file_open(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        decoded(str(folder / "a/0.png"), 8, False)
        for path, error in ((folder / "pipe", NoRegularFile), (folder, OSError)):
            with pytest.raises(error):
                glanced(str(path))
    assert len(os.listdir("/dev/fd")) == before


# What pixels mean.


def pixels(path: Path, image: Image.Image, size: int, grey: bool = False, **options: Any) -> Any:
    image.save(path, **options)
    return np.frombuffer(decoded(str(path), size, grey), np.uint8).reshape(1 if grey else 3, size, size)


@pytest.mark.parametrize(("name", "mode"), [("x.png", "I;16"), ("x.tif", "I;16"), ("x.tif", "I;16B"), ("x.pgm", "I")])
@pytest.mark.parametrize("grey", [True, False])
def test_grey_of_16_bits_is_scaled_and_not_cut_off(name: str, mode: str, grey: bool, tmp_path: Path) -> None:
    square = np.tile(SIXTEEN, (2, 1))
    data = square.astype({"I;16": "<u2", "I;16B": ">u2", "I": "=i4"}[mode])
    image = Image.frombytes(mode, (4, 4), data.tobytes())
    found = pixels(tmp_path / name, image, 4, grey)
    expected = np.array([[0, 0, 1, 1], [4, 117, 128, 255]])  # 65535 is white: round(value / 257)
    assert all(np.array_equal(channel, np.tile(expected, (2, 1))) for channel in found)


def test_pixels_whose_white_is_unknown_are_refused(tmp_path: Path, folder: Path) -> None:
    for data in (np.full((8, 8), 100000, np.int32), np.full((8, 8), 0.5, np.float32)):
        Image.fromarray(data).save(tmp_path / "x.tif")
        for read in (lambda: decoded(str(tmp_path / "x.tif"), 4, False), lambda: glanced(str(tmp_path / "x.tif"))):
            with pytest.raises(ValueError, match="have no known range"):
                read()
    (tmp_path / "x.tif").rename(folder / "a/x.tif")
    with pytest.raises(UserError, match=r"1 images cannot be decoded: .*x.tif \(ValueError\)"):
        load_folder(folder, 8)


@pytest.mark.parametrize("name", ["x.jpg", "x.tif"])
def test_inks_become_colours(name: str, tmp_path: Path) -> None:
    found = pixels(tmp_path / name, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), 4)  # magenta and yellow: red
    assert np.abs(found.astype(int) - np.array([255, 0, 0]).reshape(3, 1, 1)).max() <= 2


def test_palettes_alpha_and_bilevel(tmp_path: Path) -> None:
    colours = Image.new("RGB", (8, 8), (10, 200, 30))
    assert pixels(tmp_path / "p.png", colours.quantize(4), 4)[:, 0, 0].tolist() == [10, 200, 30]
    clear = Image.new("RGBA", (8, 8), (10, 200, 30, 0))
    assert pixels(tmp_path / "a.png", clear, 4)[:, 0, 0].tolist() == [10, 200, 30]  # alpha is left out
    assert pixels(tmp_path / "la.png", Image.new("LA", (8, 8), (77, 5)), 4, True)[0, 0, 0] == 77
    assert pixels(tmp_path / "1.png", Image.new("1", (8, 8), 1), 4, True)[0, 0, 0] == 255


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tif"])
def test_of_an_animation_the_first_frame_is_taken(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (level, level, level)) for level in (200, 20, 90)]
    options = {"lossless": True} if name == "x.webp" else {}
    found = pixels(tmp_path / name, frames[0], 4, save_all=True, append_images=frames[1:], **options)
    assert found[:, 0, 0].tolist() == [200, 200, 200]


def test_the_orientation_of_a_camera_is_left_out(tmp_path: Path) -> None:
    """As torchvision and timm read a folder, so that numbers agree with theirs."""
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 8, 4))  # the upper half
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned
    found = pixels(tmp_path / "x.png", image, 8, True, exif=exif)
    assert found[0, 0, -1] == 255
    assert found[0, -1, 0] == 0


def huge_png() -> bytes:
    """A header of 30,000 x 30,000 pixels, 900 million, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [in_memory, stream])
def test_bombs_and_damaged_images_are_named(read: Callable[[Path], Any], folder: Path) -> None:
    (folder / "a/bomb.png").write_bytes(huge_png())
    with pytest.raises(UserError, match=r"1 images cannot be decoded: .*bomb.png \(DecompressionBombError\)"):
        read(folder)
    (folder / "a/bomb.png").unlink()
    for index in range(12):  # all of a class: of a stream, some are decoded for mean and deviation
        Image.effect_noise((64, 64), 90).save(folder / f"a/{index}.png")
        (folder / f"a/{index}.png").write_bytes((folder / f"a/{index}.png").read_bytes()[:-900])
    with pytest.raises(UserError, match=r"a/\d+.png \(OSError\).*: mend or remove"):
        read(folder)
