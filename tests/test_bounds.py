"""Sizes, numbers and texts of a study that are beyond all use: one sentence each, before anything is built or allocated."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from annotated_types import Le, Lt
from click.testing import CliRunner
from pydantic.fields import FieldInfo

from equitune import catalog
from equitune.cli import cli
from equitune.config.call import parsed
from equitune.config.data_shape import DataShape
from equitune.config.load import MAX_MISTAKES, load_study
from equitune.config.plateau import Plateau
from equitune.config.resources import Resources, Size
from equitune.config.search import SearchSpec
from equitune.config.stopping import SchedulerSpec
from equitune.config.strict import MOST_FLOAT, MOST_INT, why_not_number, why_not_text
from equitune.config.trial import DataConfig, InputConfig, TrainingConfig
from equitune.errors import UserError
from equitune.training import speed

Write = Callable[..., Path]

HEAD = "study: s\nmodel: {name: resnet, depth: 8, width: 2}\nobjectives: {accuracy: maximize}\n"
# Whole numbers that ask for no work: at most so many of what is there, or values that are checked against the space.
HARMLESS = {"limit", "most_images", "images", "baseline", "best"}


def sentence(write: Write, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_study(write(text), overrides)
    return str(caught.value)


def whole_numbers() -> Iterator[tuple[str, bool]]:
    """Each setting that takes a whole number, and whether it has an upper bound."""
    for kind in catalog.KINDS:
        for name in catalog.names(kind):
            for parameter, (annotation, _) in catalog.describe(kind, name).parameters.items():
                yield from _bounded(f"{kind} {name}.{parameter}", annotation)
    for model in (TrainingConfig, InputConfig, DataConfig, SearchSpec, SchedulerSpec, Plateau, Resources, Size):
        for name, field in model.model_fields.items():
            yield from _bounded(f"{model.__name__}.{name}", Annotated[field.annotation, *field.metadata, None])


def _bounded(name: str, annotation: Any) -> Iterator[tuple[str, bool]]:
    metadata: list[Any] = []
    parts = [annotation]
    kinds = set()
    while parts:
        part = parts.pop()
        if get_origin(part) is Annotated:
            inner, *more = get_args(part)
            parts.append(inner)
            metadata += [each for one in more for each in (one.metadata if isinstance(one, FieldInfo) else [one])]
        else:
            kinds |= {part}
            parts += [each for each in get_args(part) if get_origin(part) is not None or each is not part]
    if int in kinds:
        yield name, any(isinstance(each, Le | Lt) for each in metadata)


def test_every_whole_number_that_makes_work_has_an_upper_bound() -> None:
    found = dict(whole_numbers())
    assert len(found) > 40
    unbounded = {name for name, has_bound in found.items() if not has_bound}
    assert {name for name in unbounded if name.rsplit(".", 1)[1] not in HARMLESS} == set()
    assert unbounded, "the twin: those that have none are seen"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model={name: resnet, depth: 2147483648, width: 8}", "depth: must be <= 1202, but got 2147483648"),
        ("model.width=100000000", "must be <= 4096"),
        ("model={name: vit, depth: 100000}", "depth: must be <= 512"),
        ("model={name: cnn, width: {int: [1, 1000000]}}", "width.int.1: must be <= 4096"),
        ("prior={name: nonstationary, terms: 1000000000}", "terms: must be <= 100"),
        ("prior={name: relaxed_p4, filters: 1000000000000}", "filters: must be <= 1024"),
        ("averaging={name: augerino, copies: {int: [1, 10000000000000]}}", "copies.int.1: must be <= 1024"),
        ("measures=[{name: consistency, num_shifts: 1000000000000}]", "num_shifts: must be <= 10000"),
        ("training.epochs=1000000000000", "must be <= 1000000"),
        ("training.batch_size={choice: [32, 1000000000]}", "choice.1: must be <= 1000000"),
        ("search.trials=1000000000000", "must be <= 1000000"),
        ("resources.workers=1000000", "must be <= 1024"),
        ("resources.gpu=1000000", "must be <= 1024"),
        ("data.split_seed=4294967296", "must be < 4294967296"),
        (f"model.width={10**30}", "must lie between -2**53 and 2**53, but got 1000"),
        (f"training.lr={10**400}", "must lie between -2**53 and 2**53"),
        ("training.lr=1e300", "must be 0, or between 1e-100 and 1e+100 in size, but got 1e+300"),
        ("training.lr=5e-324", "must be 0, or between 1e-100 and 1e+100 in size"),
        ("training.lr={float: [0.001, 1.0], step: 1.0e-30}", "a range has at most 1,000,000,000 steps"),
        ('study="a\\ud800"', "must hold neither control characters nor halves of characters, but got '\\ud800'"),
        ('data={name: imagefolder, path: "a\\0b"}', "must hold neither control characters"),
        ("measures=[" + "equivariance, " * 101 + "]", "a study has at most 100 measures, but got 101"),
    ],
)  # fmt: skip
def test_what_is_beyond_all_use_is_a_sentence(change: str, said: str, study_file: Write) -> None:
    found = sentence(study_file, HEAD, change)
    assert said in found
    assert len(found.splitlines()) == 1


def test_a_key_that_is_half_a_character_is_refused_at_its_place(study_file: Write) -> None:
    text = 'study: s\nmodel: cnn\nobjectives: {accuracy: maximize, "\\ud800": maximize}\n'
    found = sentence(study_file, text)
    assert "study.yaml:3:34 objectives.?: a key must hold neither control characters nor halves" in found
    found.encode()


def test_thousands_of_mistakes_are_said_in_a_hundred_lines(study_file: Write) -> None:
    names = ", ".join(f"{'m' * 40}{number}: maximize" for number in range(3000))
    found = sentence(study_file, f"study: s\nmodel: cnn\nobjectives: {{{names}}}\n")
    assert len(found.splitlines()) == MAX_MISTAKES + 1
    assert found.endswith("study.yaml: and 2,900 more mistakes: mend these first")
    assert len(found) < 100_000


def test_the_command_line_has_the_same_bounds() -> None:
    assert parsed("consistency:num_shifts=3", "--measure") == ("consistency", {"num_shifts": 3})
    for value, said in (("1" + "0" * 30, "2**53"), ("1e200", "1e-100"), ("a\0", "control characters")):
        with pytest.raises(UserError, match=r"--measure: num_shifts: must") as caught:
            parsed(f"consistency:num_shifts={value}", "--measure")
        assert said in str(caught.value)


def test_the_bounds_let_through_what_is_used() -> None:
    for number in (0, -0.0, MOST_INT, -MOST_INT, 1e-100, MOST_FLOAT, 2.5e-8, float("inf")):
        assert why_not_number(number) is None
    assert why_not_text("ünï — code, 漢字, \t and \n") is None


def test_a_dry_run_takes_no_memory_for_a_huge_batch(small_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million images a step are 1.2 GB of pixels, whose maps would take hundreds."""
    monkeypatch.setattr(speed, "MOST_VALUES", 64 * 256)
    sizes: list[int] = []
    train = speed.train_epoch
    monkeypatch.setattr(
        speed, "train_epoch", lambda model, split, *args: sizes.append(len(split.labels)) or train(model, split, *args)
    )
    huge = small_config.model_copy(update={"training": TrainingConfig(batch_size=1_000_000)})
    assert speed.train_seconds_per_image(huge, DataShape((1, 16, 16), 10), steps=1) > 0
    assert sizes[0] == 64


@pytest.mark.parametrize(
    "words",
    [
        ["ui", "--port", "1000000000000"],
        ["ui", "--port", "-1"],
        ["measure", "resnet", "--mean", "inf,inf,inf"],
        ["measure", "resnet", "--std", "nan"],
        ["show", "nothing", "--against", "x"],
    ],
)
def test_an_option_beyond_all_use_is_named(words: list[str]) -> None:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert words[-2] in done.output


def test_a_dry_run_of_what_diverges_guesses_all_the_same(small_config: Any) -> None:
    wild = small_config.model_copy(update={"training": TrainingConfig(lr=1e60, batch_size=32)})
    assert speed.train_seconds_per_image(wild, DataShape((1, 16, 16), 10), steps=3) > 0
