"""Files of strangers: weights, exported programs, folders of images."""

import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from equitune import catalog
from fuzz import values
from fuzz.case import Case

MEASURE = ["--images", "4", "--measure", "consistency:num_shifts=2,max_shift_px=1", "--batch", "4"]


class Payload:
    """Pickled, it touches a file when it is loaded as objects are."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def weights(rng: random.Random, place: Path) -> Case:
    """Measure a network with weights that are none."""
    suffix = rng.choice([".pth", ".pt", ".bin", ".safetensors"])
    file, canary = place / f"weights{suffix}", place / "canary"
    rng.choice(_SAFE if suffix == ".safetensors" else _PICKLED)(rng, file, canary)
    return _measured([f"resnet:depth=8,width=2@{file}", "--data", "digits"], file, place, canary)


def programs(rng: random.Random, place: Path) -> Case:
    """Measure an exported program of which a record is changed."""
    file, canary = place / "program.pt2", place / "canary"
    rng.choice(_OF_PROGRAMS)(rng, file, canary)
    return _measured([str(file), "--data", "digits"], file, place, canary)


def images(rng: random.Random, place: Path) -> Case:
    """Measure on, or plan with, a folder in which some files are no images."""
    folder, noise = place / "photos", np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(noise.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / label / f"{number}.png")
    for _ in range(rng.choice([1, 1, 2])):
        rng.choice(_OF_IMAGES)(rng, folder / rng.choice("ab"))
    (place / "bin").mkdir()
    (place / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {place / 'canary'}\nexit 1\n")
    (place / "bin" / "gs").chmod(0o755)
    env = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "EQUITUNE_DATA_CACHE": str(place / "cache")}
    case = _measured(["resnet:depth=8,width=2", "--data", str(folder), "--size", "16"], folder, place, place / "canary")
    case.env.update(env)
    case.writes = (*case.writes, place / "cache")
    return case


def _measured(words: list[str], file: Path, place: Path, canary: Path) -> Case:
    out = place / "out"
    return Case(
        ["measure", *words, *MEASURE, "--output", str(out), "--root", str(place)],
        [str(file)],
        writes=(out,),
        canary=canary,
    )


@cache
def _state() -> dict[str, torch.Tensor]:
    network = catalog.entry("model", "resnet")((1, 12, 12), 10, catalog.entry("prior", "conv")(), depth=8, width=2)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@cache
def _program() -> bytes:
    layers = [nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.GELU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.export.export(
            network, (torch.rand(2, 1, 12, 12),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        torch.export.save(made, buffer)
    return buffer.getvalue()


def _saved(data: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer, **options)
    return buffer.getvalue()


def _broken(rng: random.Random, data: bytes) -> bytes:
    change = rng.randrange(4)
    if change == 0:
        return data[: rng.randrange(len(data))]
    flipped = bytearray(data)
    for _ in range(rng.choice([1, 1, 10, 100])):
        at = (
            rng.randrange(len(data))
            if change == 1
            else rng.randrange(min(len(data), 2000))
            if change == 2
            else -1 - rng.randrange(min(len(data), 3000))
        )
        flipped[at] = rng.randrange(256)
    return bytes(flipped)


def _odd_tensor(rng: random.Random, like: torch.Tensor) -> Any:
    shape = tuple(like.shape)
    return rng.choice([
        lambda: like.to_sparse(), lambda: torch.zeros(shape, dtype=torch.complex64), lambda: torch.full(shape, float("nan")), lambda: torch.full(shape, float("inf")),
        lambda: torch.zeros(shape, device="meta"), lambda: torch.zeros(shape, dtype=torch.bool), lambda: torch.zeros(shape, dtype=torch.int64), lambda: like.double(),
        lambda: like.half(), lambda: torch.zeros(()), lambda: torch.zeros((*shape, 1)), lambda: torch.zeros(1).expand(shape or (1,)), lambda: torch.zeros(0),
        lambda: torch.quantize_per_tensor(like.float(), 0.1, 0, torch.qint8), lambda: "x", lambda: None, lambda: [like], lambda: nn.Parameter(like.float()),
        lambda: torch.zeros(1).expand(10**9), lambda: like.to(torch.bfloat16), lambda: torch.zeros(shape, dtype=torch.float8_e4m3fn),
    ])()  # fmt: skip


def _odd_state(rng: random.Random) -> Any:
    state: dict[Any, Any] = dict(_state())
    name = rng.choice(list(state))
    change = rng.randrange(6)
    if change < 3:
        state[name] = _odd_tensor(rng, state[name])
    elif change == 3:
        del state[name]
    elif change == 4:
        state[rng.choice([1, None, ("a",), values.text(rng), "x" * 10_000])] = state.pop(name)
    else:
        return rng.choice(
            [
                {},
                [],
                None,
                1,
                {"state_dict": state},
                {"model": {"state_dict": {}}},
                list(state.values()),
                {"state_dict": None},
                torch.zeros(3),
                {"module.": state},
            ]
        )
    return state


def _plain_state(rng: random.Random, file: Path, canary: Path) -> None:
    file.write_bytes(_saved(_state()))


def _odd(rng: random.Random, file: Path, canary: Path) -> None:
    file.write_bytes(_saved(_odd_state(rng), _use_new_zipfile_serialization=rng.random() < 0.8))


def _damaged(rng: random.Random, file: Path, canary: Path) -> None:
    file.write_bytes(_broken(rng, _saved(_state(), _use_new_zipfile_serialization=rng.random() < 0.8)))


def _deflated(rng: random.Random, file: Path, canary: Path) -> None:
    """The same records, compressed; or a record that swells to a GiB."""
    with zipfile.ZipFile(io.BytesIO(_saved(_state()))) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            swells = rng.random() < 0.1 and "/data/" in name
            new.writestr(name, b"\0" * 2**27 if swells else old.read(name))


def _evil(rng: random.Random, file: Path, canary: Path) -> None:
    payload = Payload(canary)
    file.write_bytes(rng.choice([
        lambda: pickle.dumps(payload), lambda: _saved(payload), lambda: _saved({**_state(), "x": payload}), lambda: _saved({"state_dict": payload}),
        lambda: _saved(payload, _use_new_zipfile_serialization=False), lambda: pickle.dumps(payload, 0), lambda: pickle.dumps({"a": [payload]}, 2),
        lambda: _saved(nn.Linear(2, 2)),
    ])())  # fmt: skip


def _no_file(rng: random.Random, file: Path, canary: Path) -> None:
    rng.choice([
        lambda: None, lambda: file.mkdir(), lambda: os.mkfifo(file), lambda: file.symlink_to(file), lambda: file.symlink_to("/dev/zero"), lambda: file.write_bytes(b""),
        lambda: file.write_bytes(rng.randbytes(1000)), lambda: file.write_text("<html>"), lambda: file.write_bytes(b"PK\x03\x04" + b"\0" * 100), lambda: file.write_bytes(b"\x80" * 50),
    ])()  # fmt: skip


def _safetensors(rng: random.Random, file: Path, canary: Path) -> None:
    """A header of safetensors with sizes, offsets, names or types that are wrong."""
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in _state().items()})
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = rng.choice([each for each in header if each != "__metadata__"])
    change = rng.randrange(9)
    if change == 0:
        header[name]["shape"] = rng.choice([[10**9, 10**9], [-1], [0], [2**63], ["x"], [], None, [1] * 1000])
    elif change == 1:
        header[name]["data_offsets"] = rng.choice([[0, 2**62], [-1, 4], [8, 0], [0], [0, 0], None, [0.5, 1]])
    elif change == 2:
        header[name]["dtype"] = rng.choice(["F64", "C64", "BOOL", "F8_E4M3", "U8", "X", None, "BF16", "I64"])
    elif change == 3:
        header[rng.choice([values.TEXTS[3], "x" * 10_000, "\n"])] = header.pop(name)
    elif change == 4:
        header["__metadata__"] = rng.choice([[], {"a": 1}, {"a": "x" * 10**6}, None])
    elif change == 5:
        body = struct.pack("<f", float("nan")) * (len(body) // 4)
    packed = json.dumps(header).encode()
    length = rng.choice([0, 2**62, 2**64 - 1, 10, len(packed) + 100]) if change == 6 else len(packed)
    data = struct.pack("<Q", length) + packed + body
    file.write_bytes(_broken(rng, data) if change == 7 else data)


_PICKLED: list[Callable[[random.Random, Path, Path], None]] = [
    _plain_state,
    _odd,
    _odd,
    _odd,
    _odd,
    _damaged,
    _damaged,
    _deflated,
    _evil,
    _evil,
    _no_file,
]
_SAFE: list[Callable[[random.Random, Path, Path], None]] = [
    _safetensors,
    _safetensors,
    _safetensors,
    _safetensors,
    _no_file,
    _evil,
]


def _rewritten(rng: random.Random, file: Path, canary: Path) -> None:
    """A program whose JSON is changed in one to three places, or of which a record is another one."""
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(_program())) as old, zipfile.ZipFile(file, "w", compression) as new:
        names = old.namelist()
        aimed = rng.choice([name for name in names if name.endswith(".json")] * 3 + names)
        for name in names:
            data = old.read(name)
            if name == aimed:
                data = (
                    _json_changed(rng, data)
                    if name.endswith(".json") and rng.random() < 0.8
                    else _record(rng, data, canary)
                )
            written = (
                rng.choice(["../x", f"{name}x", name.upper(), "/x"]) if name == aimed and rng.random() < 0.05 else name
            )
            new.writestr(written, data)
        if rng.random() < 0.05:
            new.writestr(f"{names[0].split('/')[0]}/data/weights/evil", pickle.dumps(Payload(canary)))


def _record(rng: random.Random, data: bytes, canary: Path) -> bytes:
    return rng.choice(
        [
            lambda: b"",
            lambda: data[: len(data) // 2],
            lambda: data + b"x" * 100,
            lambda: pickle.dumps(Payload(canary)),
            lambda: rng.randbytes(len(data)),
            lambda: _saved(Payload(canary)),
        ]
    )()


OPERATORS = [
    "torch.ops.aten.max_pool2d_with_indices_backward.default", "torch.ops.aten.embedding_dense_backward.default", "torch.ops.aten.set_.source_Storage", "torch.ops.aten.as_strided.default",
    "torch.ops.aten.empty.memory_format", "torch.ops.aten._embedding_bag.default", "torch.ops.prims.device_put.default", "torch.ops.aten.index.Tensor", "torch.ops.aten.gather.default",
    "torch.ops.aten.zeros.default", "torch.ops.aten.from_file.default", "os.system", "torch.ops.aten.repeat.default", "torch.ops.aten.resize_.default", "torch.ops.aten.expand.default",
]  # fmt: skip


def _json_changed(rng: random.Random, data: bytes) -> bytes:
    try:
        plain = json.loads(data)
    except ValueError:
        return data
    nodes = []

    def walk(part: Any) -> None:
        for key, inner in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            nodes.append((part, key))
            walk(inner)

    walk(plain)
    for _ in range(rng.choice([1, 1, 1, 3])):
        if not nodes:
            break
        parent, key = rng.choice(nodes)
        if key not in (parent if isinstance(parent, dict) else range(len(parent))):
            continue
        before = parent[key]
        if isinstance(before, bool):
            parent[key] = not before
        elif isinstance(before, int):
            parent[key] = rng.choice(
                [0, -1, 1, 2, 10**9, 2**31, 2**62, 2**63, -(2**63), before + 1, before * 1000, 1.5, None]
            )
        elif isinstance(before, str) and "torch.ops" in before:
            parent[key] = rng.choice(OPERATORS)
        elif isinstance(before, str):
            parent[key] = rng.choice(["", "x", "../x", before + "x", "p_0_weight", "\0", "a" * 5000, "9" * 30])
        elif rng.random() < 0.3:
            del parent[key]
        else:
            parent[key] = rng.choice([None, [], {}, 1, "x", [before], before])
    return json.dumps(plain).encode()


def _damaged_program(rng: random.Random, file: Path, canary: Path) -> None:
    file.write_bytes(_broken(rng, _program()))


_OF_PROGRAMS: list[Callable[[random.Random, Path, Path], None]] = [_rewritten] * 8 + [_damaged_program, _damaged_program, _no_file, _evil]  # fmt: skip


def _encoded(kind: str, mode: str = "RGB", side: int = 20, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def _png_of(width: int, height: int) -> bytes:
    data = bytearray(_encoded("PNG"))
    data[16:24] = struct.pack(">II", width, height)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def _animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("P", (20, 20), number) for number in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _an_image(rng: random.Random, folder: Path) -> None:
    name = rng.choice(["z.png", "z.jpg", "z.tif", "z.gif", "z.webp", "z.ppm", "z.bmp", "é.png", "a b.png", "-x.png"])
    data = rng.choice([
        lambda: EPS, lambda: _png_of(2**31 - 1, 2**31 - 1), lambda: _png_of(20_000, 20_000), lambda: _png_of(0, 0), lambda: _png_of(1, 100_000), lambda: _encoded("PNG")[: rng.randrange(80)],
        lambda: _encoded("JPEG")[: rng.randrange(600)], lambda: _encoded("JPEG", "CMYK"), lambda: _encoded("PNG", "I;16"), lambda: _encoded("PNG", "1"), lambda: _encoded("PNG", "LA"),
        lambda: _encoded("PNG", "P"), lambda: _encoded("TIFF", "F"), lambda: _encoded("TIFF", "I;16"), lambda: _encoded("TIFF", "CMYK"), _animated, lambda: b"", lambda: b"\0" * 1000,
        lambda: rng.randbytes(1000), lambda: _broken(rng, _encoded("PNG")), lambda: _broken(rng, _encoded("JPEG")), lambda: _broken(rng, _encoded("TIFF")), lambda: _broken(rng, _encoded("GIF", "P")),
        lambda: _broken(rng, _encoded("WEBP")), lambda: _broken(rng, _encoded("BMP")), lambda: b"P6 99999999 99999999 255\n", lambda: b"P6 20 20 70000\n" + b"x" * 3000, lambda: _encoded("PNG", side=1),
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", lambda: b"%PDF-1.4", lambda: _encoded("ICO", side=16), lambda: _encoded("PCX"), lambda: _encoded("TGA"), lambda: b"8BPS" + b"\0" * 100,
    ])()  # fmt: skip
    (folder / name).write_bytes(data)


def _no_image(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(["z.png", "z.jpg"])
    rng.choice([
        lambda: os.mkfifo(path), lambda: path.symlink_to(path), lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to("nowhere"), lambda: path.mkdir(), lambda: path.symlink_to("/etc/passwd"),
        lambda: (folder / os.fsdecode(b"\xff\xfe.png")).write_bytes(_encoded("PNG")), lambda: (folder / "x\n\x1b[31m.png").write_bytes(b"x"), lambda: (folder / ("a" * 250 + ".png")).write_bytes(b"x"),
        lambda: (folder / "up").symlink_to(".."), lambda: (folder.parent / "empty").mkdir(), lambda: (folder.parent / "loop").symlink_to("loop"), lambda: os.mkfifo(folder.parent / "pipe"),
        lambda: (folder.parent / os.fsdecode(b"\xff")).mkdir(), lambda: (folder.parent / "file.txt").write_text("x"),
    ])()  # fmt: skip


_OF_IMAGES: list[Callable[[random.Random, Path], None]] = [_an_image, _an_image, _no_image]
