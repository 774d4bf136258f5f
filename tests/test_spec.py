"""A study's file: what it may say, and how its mistakes are told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equitune import catalog
from equitune.config import load
from equitune.config.load import load_study
from equitune.config.space import Call, Choice, FloatRange, IntRange
from equitune.config.study import StudySpec, derived_seed
from equitune.config.trial import TrialConfig
from equitune.errors import UserError

Write = Callable[..., Path]

HEAD = "study: s\nobjectives: {accuracy: maximize}\n"


def first(name: str, distribution: Any) -> Any:
    return distribution.choice[0] if isinstance(distribution, Choice) else distribution.bounds[0]


def last(name: str, distribution: Any) -> Any:
    return distribution.choice[-1] if isinstance(distribution, Choice) else distribution.bounds[1]


def mistakes(write: Write, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_study(write(text), overrides)
    return [line.split("study.yaml:")[-1] for line in str(caught.value).splitlines()]


def test_a_study_fills_every_default(small_spec: StudySpec) -> None:
    config = small_spec.suggest(3, first)
    assert config.params == {"model.width": 2, "augmentation.translate.max_px": 0.0, "training.lr": 1e-3}
    assert config.model.args == {"depth": 8, "width": 2, "width_rule": "as_given", "stages": 3}
    assert config.prior is not None
    assert config.prior.name == "conv"
    assert config.prior.args == {"padding": "zero"}
    assert config.downsampler is not None
    assert config.downsampler.name == "stride"
    assert config.training.optimizer == "adamw"
    assert config.measures[0].args["group"] == "translation"
    assert TrialConfig.from_json_text(config.model_dump_json()) == config


def test_every_kind_of_distribution(study_file: Write) -> None:
    spec = load_study(
        study_file(
            HEAD
            + """
model: {name: resnet, depth: {choice: [8, 14]}, width: {int: [4, 64], log: true}}
training: {weight_decay: {float: [0, 1], step: 0.25}, epochs: {int: [2, 8], step: 2}, lr: 1e-3}
"""
        )
    )
    assert spec.parameters() == {
        "model.depth": Choice(choice=(8, 14)),
        "model.width": IntRange(bounds=(4, 64), log=True),
        "training.weight_decay": FloatRange(bounds=(0, 1), step=0.25),
        "training.epochs": IntRange(bounds=(2, 8), step=2),
    }


CONDITIONAL = (
    HEAD
    + """
model:
  choose:
    cnn: {width: {int: [4, 8]}}
    resnet: {width: {int: [8, 16]}}
prior:
  choose:
    conv: {padding: {choice: [zero, circular]}}
    local: {}
downsampler:
  choose:
    aps: {blur: {choice: [1, 3]}}
    blur3: {}
augmentation:
  choose:
    none: {}
    shifts: {translate: {max_px: {float: [1, 2]}}, hflip: {}}
"""
)


def test_a_branch_asks_only_for_its_own_parameters(study_file: Write) -> None:
    spec = load_study(study_file(CONDITIONAL))
    low, high = spec.suggest(0, first), spec.suggest(0, last)
    assert low.params == {
        "model": "cnn",
        "model.cnn.width": 4,
        "prior": "conv",
        "prior.conv.padding": "zero",
        "downsampler": "aps",
        "downsampler.aps.blur": 1,
        "augmentation": "none",
    }
    assert high.params == {
        "model": "resnet",
        "model.resnet.width": 16,
        "prior": "local",
        "downsampler": "blur3",
        "augmentation": "shifts",
        "augmentation.shifts.translate.max_px": 2.0,
    }
    assert [call.name for call in high.augmentation] == ["translate", "hflip"]
    assert set(spec.parameters()) == set(low.params) | set(high.params)


def test_a_transformer_has_a_stem_and_others_have_none(study_file: Write) -> None:
    stem = "stem: {choose: {conv: {}, p4: {head: {choice: [max, mean]}}}}"
    spec = load_study(study_file(HEAD + f"model: vit\n{stem}"))
    config = spec.suggest(0, last)
    assert config.params == {"stem": "p4", "stem.p4.head": "mean"}
    assert config.stem is not None
    assert config.stem.args == {"head": "mean", "padding": "zero"}
    assert set(spec.parameters()) == set(config.params)
    assert TrialConfig.from_json_text(config.model_dump_json()) == config
    default = load_study(study_file(HEAD + "model: vit"))
    assert default.suggest(0, first).stem == Call(name="conv", args={"padding": "zero"})
    assert "stem" not in default.identity()
    assert default.fingerprint() != spec.fingerprint()
    assert load_study(study_file(HEAD + "model: cnn")).suggest(0, first).stem is None


def test_a_penalty_on_amounts_is_heard_by_the_stem(study_file: Write) -> None:
    text = HEAD + "model: vit\ntraining: {symmetry_penalty: 0.1, lr: {choice: [1e-3, 1e-2]}}\n"
    assert load_study(study_file(text + "stem: relaxed_p4")).notices() == []
    for stem in ("", "stem: p4"):
        (said,) = load_study(study_file(text + stem)).notices()
        assert said.startswith("training.symmetry_penalty does nothing with prior attention")


def test_all_mistakes_are_told_at_once_with_their_places(study_file: Write) -> None:
    text = """\
study: s
model:
  name: resnet
  width: {int: [64, 8], log: true}
  widht: 3
prior: {choose: {conv: {}, p5: {}}}
augmentation:
  translate: {max_px: {float: [0, .nan]}}
  rotate: {max_deg: {float: [0, 720]}}
training: {epochs: 6.5, lr: [1, 2]}
measures: [{name: equivariance, group: rotations}, consistency]
objectives: {accuracy: up}
search: {sampler: tpee, trials: 0}
resources: {cpu: none, gup: 1}
speed: high
"""
    found = mistakes(study_file, text)
    assert found == [
        "4:3 model.width: low <= high must hold, but got low=64, high=8",
        "5:3 model.widht: unknown name 'widht': did you mean 'width'? known: depth, width, width_rule, stages",
        f"6:28 prior.choose.p5: unknown prior 'p5': did you mean 'p4'? known: {', '.join(catalog.names('prior'))}",
        "8:35 augmentation.translate.max_px.float.1: must be a finite number, but got nan",
        "9:33 augmentation.rotate.max_deg.float.1: must be <= 180.0, but got 720.0",
        "10:12 training.epochs: must be a whole number, but got 6.5",
        "10:25 training.lr: takes one value, but got a list: to search over values write {choice: [1, 2]}",
        "11:33 measures.0.group: must be one of 'translation', 'rotation', 'flip', 'd4', 'scale', 'shear' or 'hue', but got 'rotations'",
        "12:14 objectives.accuracy: must be maximize or minimize, but got 'up'",
        "13:10 search.sampler: must be one of 'tpe', 'random', 'qmc', 'grid', 'nsga2', 'nsga3', 'gp' or 'cmaes', but got 'tpee'",
        "13:25 search.trials: must be >= 1, but got 0",
        "14:13 resources.cpu: must be a number, but got 'none'",
        "14:24 resources.gup: unknown name 'gup': did you mean 'gpu'? known: cpu, gpu, gpu_memory_gib, workers, sizes, "
        "concurrent, hung_after",
        "15:1 speed: unknown name 'speed': known: study, data, input, model, prior, downsampler, stem, augmentation, "
        "averaging, training, measures, objectives, constraints, search, resources",
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("model: resnt", "unknown model 'resnt': did you mean 'resnet'?"),
        ("model: {width: 3}", "a model needs a name"),
        ("model: 7", "a model must be a mapping, but got 7"),
        ("model: {name: resnet, width: {int: [0, 4]}}", "model.width.int.0: must be >= 1, but got 0"),
        ("model: {name: resnet, width: {int: [4, 8], log: true, step: 2}}", "log: true and step exclude each other"),
        ("model: {name: resnet, width: {int: [4, 9], step: 2}}", "step must divide high - low"),
        ("model: {name: resnet, width: {int: [4]}}", "width.int"),
        ("model: {name: resnet, width: {chioce: [4]}}", "a distribution is {choice: [...]}"),
        ("model: {name: resnet, width: {choice: []}}", "needs at least 1 value(s)"),
        ("model: {name: resnet, width: {choice: [4, 4]}}", "the values of choice must differ"),
        ("model: {name: resnet, width: {choice: [4, wide]}}", "model.width.choice.1: must be a whole number"),
        ("model: {choose: {resnet: {}}, name: cnn}", "choose stands alone, but got 'name' beside it"),
        ("model: {choose: {}}", "choose needs at least one branch"),
        ("model: vit\nprior: conv", "model vit has no layer for prior conv: it takes attention"),
        (
            "model: {name: timm, architecture: resnet18}\nprior: conv",
            "model timm has no layer for prior conv: it brings its own layers: leave prior out",
        ),
        ("model: resnet\nstem: p4", "model resnet has no layer for stem p4: it brings its own layers: leave stem out"),
        ("model: vit\nstem: attention", "model vit has no layer for stem attention: it takes conv, ceconv, "),
        ("model: vit\nstem: partial_p4", "model vit has no layer for stem partial_p4: it takes conv, "),
        ("model: vit\nstem: {name: p4, head: top}", "stem.head: must be one of 'max', 'mean' or 'flatten'"),
        ("model: vit\ndownsampler: aps", "model vit has no layer for downsampler aps: it brings its own layers: leave"),
        ("model: {choose: {cnn: {}, timm: {architecture: x}}}\ndownsampler: aps", "model timm has no layer for"),
        ("model: resnet\ndownsampler: asp", "downsampler: unknown downsampler 'asp': did you mean 'aps'?"),
        ("model: resnet\ndownsampler: {name: aps, blur: 2}", "downsampler.blur: must be one of 1, 3 or 5, but got 2"),
        ("model: resnet\ndata: {name: digits, size: 4}", "data.size: must be >= 8"),
        (
            "model: resnet\ndata: {name: digits, task: truned}",
            "data.task: must be one of 'class', 'turned', 'half_turn'",
        ),
        ("model: resnet\ndata: {name: imagefolder}", "data.path: is required"),
        ("model: resnet\ndata: {name: digits, validation: 1.5}", "data.validation: must be < 1"),
        ("model: resnet\naugmentation: [translate]", "augmentations must be a mapping, but got ['translate']"),
        ("model: resnet\ntraining: {lr: {float: [0, 1], log: true}}", "log: true needs low > 0, but got low=0"),
        ("model: resnet\ntraining: {precision: bf16}", "training.precision: bf16 needs a GPU"),
        ("model: resnet\nstudy: ../x", "stands twice"),
    ],
)
def test_each_mistake_has_its_sentence(line: str, sentence: str, study_file: Write) -> None:
    assert any(sentence in found for found in mistakes(study_file, HEAD + line))


@pytest.mark.parametrize("name", ["CON", "con.x", "nul", "COM1", "lpt9.a.b", "aux"])
def test_a_device_of_windows_is_no_study(name: str, study_file: Write) -> None:
    text = "study: {}\nmodel: resnet\nobjectives: {{accuracy: maximize}}"
    assert any("Windows has a device of the name" in found for found in mistakes(study_file, text.format(repr(name))))
    assert load_study(study_file(text.format(f"{name[0]}_{name}"))).study == f"{name[0]}_{name}"


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "-x", "x" * 65, "a b", "a..", "a."])
def test_a_study_name_is_a_folder_name(name: str, study_file: Write) -> None:
    text = f"study: {name!r}\nmodel: resnet\nobjectives: {{accuracy: maximize}}"
    assert any("a study's name has 1 to 64" in found for found in mistakes(study_file, text))


def test_objectives_must_be_metrics_of_the_study(study_file: Write) -> None:
    text = "study: s\nmodel: resnet\nobjectives: {acuracy: maximize, translation_error: minimize, loss: maximize}"
    found = mistakes(study_file, text)
    assert "did you mean 'accuracy'" in found[0]
    assert "it is reported by measure equivariance: add it under measures" in found[1]
    assert "objectives.loss: better is to minimize, but got 'maximize'" in found[2]


def test_a_metric_may_belong_to_one_group_alone(study_file: Write) -> None:
    text = "study: s\nmodel: resnet\nmeasures: [{name: consistency, group: %s}]\nobjectives: {%s: minimize}"
    spec = load_study(study_file(text % ("translation", "translation_pixel_change")))
    assert spec.metrics()["translation_pixel_change"] == "minimize"
    found = mistakes(study_file, text % ("flip", "translation_pixel_change"))
    assert found[0].startswith("4:14 objectives.translation_pixel_change: unknown metric")
    assert found[0].endswith("; it is reported by measure consistency: add it under measures")
    assert "flip_pixel_change" not in load_study(study_file(text % ("flip", "loss"))).metrics()


def test_an_unknown_metric_is_answered_with_what_its_measure_must_be_told(study_file: Write) -> None:
    text = "study: s\nmodel: resnet\nobjectives: {rotation_orbit_accuracy: maximize}"
    hint = "; it is reported by measure consistency with group: rotation: add it under measures"
    assert mistakes(study_file, text)[0].endswith(hint)


def test_a_metric_is_reported_once(study_file: Write) -> None:
    twice = "model: resnet\nmeasures: [consistency, {name: consistency, protocol: crop}]"
    found = mistakes(study_file, HEAD + twice)
    assert found == [
        "4:25 measures.1: reports translation_consistency, as measures.0 does: keep one of the two",
    ]
    load_study(study_file(HEAD + "model: resnet\nmeasures: [consistency, {name: consistency, group: flip}]"))


def test_overrides_replace_one_value(study_file: Write) -> None:
    path = study_file(HEAD + "model: resnet\nmeasures: [equivariance]")
    spec = load_study(path, ("model.width=8", "training.lr=1e-3", "search.trials=3", "measures.0.most_images=9"))
    config = spec.suggest(0, first)
    assert (config.model.args["width"], config.training.lr, spec.search.trials) == (8, 1e-3, 3)
    assert config.measures[0].args["most_images"] == 9


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.width=x", "--set model.width=x: must be a whole number, but got 'x'"),
        ("model.widht=3", "--set model.widht=3: unknown name 'widht'"),
        ("model.width", "--set takes path=value"),
        ("=3", "--set takes path=value"),
        ("model.width={", "is not YAML"),
        ("measures.5.name=x", "a list is set by position, 0 to 0"),
    ],
)
def test_a_wrong_override_is_named(override: str, sentence: str, study_file: Write) -> None:
    path = study_file(HEAD + "model: resnet\nmeasures: [equivariance]")
    with pytest.raises(UserError) as caught:
        load_study(path, (override,))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


BOMB = "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("study: !!python/object/apply:os.system [true]", "tags that construct objects are not taken"),
        ("study: !!python/name:os.system", "tags that construct objects are not taken"),
        ("study: !!timestamp 2026-01-01", "tags that construct objects are not taken"),
        ("study: !!int x", "is not a int: 'x'"),
        (BOMB, "expands to too much"),
        ("study: &x [*x]", "is nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "is nested too deeply"),
        ("a: " + "[" * 20_000, "is nested too deeply"),
        ("study: a\nstudy: b", "2:1 study: stands twice: remove one"),
        ("[1, 2]", "a study is a mapping"),
        ("", "a study is a mapping"),
        ("study: [", "is not YAML"),
        ("study: \x00", "is not YAML"),
        ("? [a]\n: b", "a key must be plain text"),
        ("a: &x {b: 1}\nc: {<<: *x}", "merge keys are not taken"),
        ("a: 1\n---\nb: 2", "is not YAML"),
    ],
)
def test_hostile_yaml_ends_in_one_sentence(text: str, sentence: str, study_file: Write) -> None:
    found = mistakes(study_file, text)
    assert len(found) == 1
    assert sentence in found[0]


def test_files_that_are_no_studies(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_bytes(b"# " + b"x" * 10_000_000)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"study: \xff\xfe")
    for path, sentence in [
        (big, "a study has at most 200,000 bytes, but this file has 10,000,002"),
        (binary, "a study is UTF-8 text, but byte 7 is not"),
        (tmp_path, "no such file"),
        (tmp_path / "missing.yaml", "no such file"),
    ]:
        with pytest.raises(UserError, match=sentence):
            load_study(path)


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "[1e-3, 1.5, .5, -2, 0x1f, 0o7, no, on, true, null, ~, 1:30, 2026-01-01, .inf, '7']"
    data = load._parse(f"a: {text}", load._Document("x"))["a"]
    assert data == [
        1e-3, 1.5, 0.5, -2, "0x1f", "0o7", "no", "on", True, None, None, "1:30", "2026-01-01", float("inf"), "7",
    ]  # fmt: skip


def test_benign_aliases_work(study_file: Write) -> None:
    spec = load_study(study_file(HEAD + "model: {name: resnet, width: &w 4, depth: 8}\ntraining: {epochs: *w}"))
    assert spec.suggest(0, first).training.epochs == 4


def test_the_fingerprint_ignores_budget_and_place_but_no_more(study_file: Write) -> None:
    path = study_file(HEAD + "model: {name: resnet, width: {int: [2, 4]}}")
    same = load_study(path).fingerprint()
    assert "task" not in load_study(path).identity()["data"]  # studies from before there were tasks go on
    for override in ("search.trials=99", "resources.cpu=2", "data.root=/x", "resources.concurrent=1"):
        assert load_study(path, (override,)).fingerprint() == same
    for override in (
        "search.seed=1",
        "model.width={int: [2, 5]}",
        "data.split_seed=1",
        "data.task=turned",
        "training.lr=1",
        "prior=local",
        "downsampler=aps",
    ):
        assert load_study(path, (override,)).fingerprint() != same


def test_seeds_differ_by_study_number_and_replicate() -> None:
    seeds = {
        derived_seed(study, number, replicate) for study in range(5) for number in range(20) for replicate in range(3)
    }
    assert len(seeds) == 300
    assert derived_seed(0, 0) == derived_seed(0, 0, 0)


def test_what_does_nothing_is_said(study_file: Write) -> None:
    spec = load_study(study_file(HEAD + "model: resnet\naugmentation: {translate: {max_px: 0}, hflip: {}}"))
    assert spec.notices() == [
        "augmentation.translate does nothing at max_px: 0",
        "nothing varies: every trial trains the same configuration with another seed",
    ]
