"""Hostile values and names, from which the generators draw."""

import random
from typing import Any

NUMBERS: list[Any] = [
    0, 1, 2, 3, 5, 17, 1001, -1, -(2**31), 2**31, 2**31 - 1, 2**32, 2**53 + 1, 2**63, 2**64, 10**12, 10**30, 10**400, 10**4000,
    -(10**30), 0.0, -0.0, 0.5, 1e-3, 1e-9, 1e-300, 5e-324, 1e9, 1e15, 1e300, 1.7e308, -1.7e308, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip
TEXTS = [
    "", " ", ".", "..", "../..", "/", "/etc/passwd", "~", "~nouser/x", "a" * 256, "a" * 5000, "\0", "\n", "\x1b]0;x\x07", "\ud800", "\udc80x",
    "\u202eabc", "ä" * 200, "＝1+1", "=1+1", "CON", "a..", "null", "true", "1e5", "0x10", "1:30", "<b>x</b>", "{}", "[]", "%s%n", "{0.__class__}",
    "${HOME}", "$(touch pwned)", "`touch pwned`", "; touch pwned", "file:///etc/passwd", "file://", "s3://", "::", "a::b", "a:b=c", "x=1,x=2",
    "-", "--", "--help", "-rf", "@", "a@b", "a/b", "a/0", "0", "-1", "999999999999999999999", "*", "!!python/object/apply:os.system ['true']",
]  # fmt: skip


def number(rng: random.Random) -> Any:
    return rng.choice(NUMBERS)


def sized(rng: random.Random) -> Any:
    """What passes for a size: a power of two or ten, or a range up to one."""
    size = rng.choice(
        [rng.choice([2, 10]) ** rng.randrange(1, 31), rng.randrange(1, 100), 6 * rng.randrange(1, 2000) + 2]
    )
    low = rng.randrange(1, 10)
    return rng.choice(
        [
            size,
            size,
            size,
            size / 100,
            {"int": [min(low, size), size]},
            {"float": [0.01, size * 1.0]},
            {"choice": [low, size + low]},
        ]
    )


def text(rng: random.Random) -> str:
    return rng.choice(TEXTS)


def scalar(rng: random.Random) -> Any:
    return rng.choice([number(rng), number(rng), text(rng), True, False, None])


def value(rng: random.Random, depth: int = 0) -> Any:
    """A scalar, a distribution, a list or a mapping."""
    kind = rng.randrange(10)
    if kind < 5 or depth > 3:
        return scalar(rng)
    if kind == 5:
        return {"choice": [scalar(rng) for _ in range(rng.choice([0, 1, 2, 3, 40]))]}
    if kind in (6, 7):
        ends = [number(rng) for _ in range(rng.choice([2, 2, 2, 2, 1, 3, 0]))]
        ends = sorted(ends, key=lambda end: (end != end, end)) if rng.random() < 0.8 else ends
        extra: dict[str, Any] = {}
        if rng.random() < 0.4:
            extra["step"] = number(rng)
        if rng.random() < 0.3:
            extra["log"] = rng.choice([True, False, 1, "yes"])
        return {rng.choice(["int", "float"]): ends, **extra}
    if kind == 8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {text(rng): value(rng, depth + 1) for _ in range(rng.randrange(3))}
