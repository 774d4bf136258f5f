"""Samplers: even, reproducible whatever dies, away from what cannot be; each proposes what the study file allows."""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from equitune.config.load import load_study
from equitune.config.space import Choice, FloatRange, IntRange
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.preflight.plan import num_exact, proposals
from equitune.search.engine import suggested
from equitune.search.samplers import make_sampler, sobol_cell

Write = Callable[..., Path]

SAMPLERS = ("tpe", "random", "qmc", "nsga2", "nsga3", "gp", "cmaes")
BRANCHES = """\
study: branches
model: {choose: {cnn: {width: {int: [2, 8]}}, resnet: {depth: 8, width: {choice: [2, 4, 8, 16]}}}}
augmentation: {translate: {max_px: {float: [0, 2], step: 0.5}}}
training: {epochs: 2, lr: {float: [1e-3, 1e-1], log: true}, batch_size: {int: [8, 128], log: true}}
objectives: {accuracy: maximize}
search: {trials: 16, seed: 7}
"""


def spec_of(write: Write, *overrides: str, text: str = BRANCHES) -> StudySpec:
    return load_study(write(text), overrides)


def test_values_at_shares_of_each_distribution() -> None:
    shares = [index / 12 for index in range(12)]
    assert [Choice(choice=("a", "b", None)).at(share) for share in shares] == ["a"] * 4 + ["b"] * 4 + [None] * 4
    assert [IntRange(bounds=(1, 4)).at(share) for share in shares] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert [IntRange(bounds=(2, 8), step=3).at(share) for share in shares] == [2] * 4 + [5] * 4 + [8] * 4
    stepped = FloatRange(bounds=(0.0, 0.3), step=0.1)
    assert [stepped.at(share) for share in shares] == [0.0] * 3 + [0.1] * 3 + [0.2] * 3 + [0.3] * 3
    assert FloatRange(bounds=(1e-4, 1.0), log=True).at(0.5) == pytest.approx(1e-2)
    assert FloatRange(bounds=(-1.0, 3.0)).at(0.25) == 0.0
    decades = Counter(IntRange(bounds=(1, 99), log=True).at(index / 1000) > 9 for index in range(1000))
    assert decades[True] == pytest.approx(445, abs=2)  # log(99.5 / 9.5) / log(99.5 / 0.5)
    for values in (IntRange(bounds=(3, 3)), FloatRange(bounds=(0.1, 0.1)), FloatRange(bounds=(0.1, 0.3), log=True)):
        assert values.bounds[0] <= values.at(0.0) <= values.at(1 - 2**-32) <= values.bounds[1]


def test_qmc_covers_each_choice_branch_and_range_evenly(study_file: Write) -> None:
    """Also those of branches: of 32 points each of four values of a branch has 4 beside the 4 of the other branch."""
    spec = spec_of(study_file, "search.sampler=qmc", "search.trials=32")
    trials = [config.params for config in proposals(spec)]
    assert Counter(params["model"] for params in trials) == {"cnn": 16, "resnet": 16}
    px = Counter(params["augmentation.translate.max_px"] for params in trials)
    assert set(px) == {0.0, 0.5, 1.0, 1.5, 2.0}
    assert max(px.values()) - min(px.values()) <= 2  # 32 points over five equal parts
    assert sum(params["training.lr"] < 1e-2 for params in trials) == 16
    sobol = [sobol_cell(spec, number) for number in range(32)]
    assert Counter(cell["model.resnet.width"] for cell in sobol) == {2: 8, 4: 8, 8: 8, 16: 8}
    by_chance = spec_of(study_file, "search.sampler=random", "search.trials=32")  # the broken twin
    twin = Counter(config.params["model"] for config in proposals(by_chance))
    assert twin != {"cnn": 16, "resnet": 16}
    other = spec_of(study_file, "search={sampler: qmc, trials: 32, seed: 8}")
    assert [config.params for config in proposals(other)] != trials


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_says_anything_on_the_terminal(
    sampler: str, study_file: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = spec_of(study_file, f"search.sampler={sampler}", "search.trials=3")
        study = optuna.create_study(directions=["maximize"])
        for number in range(3):
            finish(study, spec, number, 0.5)
    assert "Warning" not in capfd.readouterr().err


def finish(study: optuna.Study, spec: StudySpec, number: int, *values: float) -> dict[str, Any]:
    study.sampler = make_sampler(spec, number)
    trial = study.ask()
    params = spec.suggest(number, lambda name, values: suggested(trial, name, values)).params
    study.tell(trial, list(values))
    return params


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("begun", [0, 1, 3])
def test_a_proposal_that_was_cut_off_is_finished_as_it_would_have_been(
    sampler: str, begun: int, study_file: Write
) -> None:
    """A driver may die between any two parameters. Among the finished trials there are enough to learn from."""
    spec = spec_of(study_file, f"search={{sampler: {sampler}, trials: 24, seed: 5}}")
    number = 11 if sampler == "gp" else 16
    proposed = []
    for cut in (None, begun):
        study = optuna.create_study(directions=["maximize"])
        for earlier in range(number):
            finish(study, spec, earlier, (earlier * 37 % 11) / 11)
        study.sampler = make_sampler(spec, number)
        trial = study.ask()
        if cut is not None:
            asked: list[str] = []

            def dying(name: str, values: Any, trial: Any = trial, asked: Any = asked, cut: int = cut) -> Any:
                if len(asked) == cut:
                    raise KeyboardInterrupt
                asked.append(name)
                return suggested(trial, name, values)

            with pytest.raises(KeyboardInterrupt):
                spec.suggest(number, dying)
            study.sampler = make_sampler(spec, number)
            trial = optuna.Trial(study, trial._trial_id)
        proposed.append(spec.suggest(number, lambda name, values, of=trial: suggested(of, name, values)).params)  # type: ignore[misc]
    assert proposed[0] == proposed[1]


def test_a_sampler_seeded_once_a_trial_would_fail_that(study_file: Write) -> None:
    """The broken twin: its second parameter takes the number that was drawn for the first."""
    drawn = []
    for cut in (False, True):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        trial = study.ask()
        trial.suggest_float("a", 0, 1)
        if cut:
            study.sampler = optuna.samplers.RandomSampler(seed=1)
            trial = optuna.Trial(study, trial._trial_id)
        drawn.append(trial.suggest_float("b", 0, 1))
    assert drawn[0] != drawn[1]


TOY = """\
study: toy
model: {name: resnet, depth: 8, width: 4}
training: {epochs: 2, lr: {float: [0.01, 1.0]}, weight_decay: {float: [0, 1]}, momentum: {choice: [0.1, 0.5, 0.9]}}
objectives: {accuracy: maximize, loss: minimize}
search: {trials: 60, seed: 0}
"""


def num_infeasible_at_last(spec: StudySpec, state: optuna.trial.TrialState) -> int:
    """A study whose best accuracy lies where every trial ends infeasible; how many of its last 30 trials go there."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    inside = []
    for number in range(60):
        study.sampler = make_sampler(spec, number)
        trial = study.ask()
        params = spec.suggest(number, lambda name, values, of=trial: suggested(of, name, values)).params  # type: ignore[misc]
        lr, decay = params["training.lr"], params["training.weight_decay"]
        inside.append(lr > 0.6)
        if lr <= 0.6:
            study.tell(trial, [float(lr), float(decay)])
        else:
            if state == optuna.trial.TrialState.PRUNED:
                trial.set_constraint("infeasible", 1.0)
            study.tell(trial, state=state)
    return sum(inside[30:])


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_keep_away_from_where_trials_are_infeasible(sampler: str, study_file: Write) -> None:
    """40 % of the space is infeasible: chance goes there 12 times of 30. TPE went there 8.4 +- 2.3 times (n = 12
    seeds), NSGA-II 4.8 +- 0.7 (n = 6)."""
    spec = spec_of(study_file, f"search.sampler={sampler}", "search.seed=1", text=TOY)
    assert num_infeasible_at_last(spec, optuna.trial.TrialState.PRUNED) <= 8


def test_told_as_failures_they_are_proposed_again_and_again(study_file: Write) -> None:
    """The broken twin: TPE ignores what failed, and goes there with every trial. NSGA-II ignores both alike."""
    spec = spec_of(study_file, "search.seed=1", text=TOY)
    assert num_infeasible_at_last(spec, optuna.trial.TrialState.FAIL) == 30


@pytest.mark.parametrize(
    ("sampler", "exact"),
    [("tpe", 10), ("gp", 10), ("cmaes", 1), ("nsga2", 8), ("nsga3", 8), ("random", 16), ("qmc", 16)],
)
def test_the_proposals_that_depend_on_no_result(sampler: str, exact: int, study_file: Write) -> None:
    """The exact ones are the same whatever the results are, and the next one is not."""
    spec = spec_of(study_file, f"search.sampler={sampler}")
    assert num_exact(spec) == exact
    found = []
    for sign in (1, -1):
        study = optuna.create_study(directions=["maximize"])
        found.append([finish(study, spec, number, sign * (number * 37 % 11) / 11) for number in range(12)])
    same = [json.dumps(one) == json.dumps(other) for one, other in zip(*found, strict=True)]
    assert all(same[:exact])
    assert sampler in ("random", "qmc") or not all(same)
    planned = [config.params for config in proposals(spec)]
    assert planned[: min(exact, 12)] == found[0][:exact]


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("{sampler: tpe, population: 8}", "search.population: only nsga2 and nsga3 have generations, but the sampler is tpe: leave it out"),
        ("{sampler: nsga2, population: 1}", "search.population: must be >= 2, but got 1"),
        ("{sampler: cma}", "search.sampler: must be one of"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_a_sentence(search: str, sentence: str, study_file: Write) -> None:
    with pytest.raises(UserError) as caught:
        spec_of(study_file, text=BRANCHES.replace("{trials: 16, seed: 7}", search))
    assert sentence in str(caught.value)


def test_cmaes_takes_one_objective(study_file: Write) -> None:
    with pytest.raises(UserError, match="search.sampler: cmaes searches for one objective, but the study has 2"):
        spec_of(study_file, text=TOY.replace("{trials", "{sampler: cmaes, trials"))


@pytest.mark.parametrize(
    ("search", "notice"),
    [
        ("{sampler: nsga2, trials: 20}", "search.population: a generation of 8 trials is above a third of the 20"),
        ("{sampler: nsga3, trials: 60, population: 30}", "search.population: a generation of 30 trials"),
        ("{sampler: gp, trials: 101}", "search.sampler: gp takes seconds to propose a trial"),
        ("{sampler: gp}", "search.sampler: gp draws at random model.cnn.width, model.resnet.width"),
        ("{sampler: cmaes}", "search.sampler: cmaes draws at random model, model.cnn.width, model.resnet.width"),
        ("{sampler: nsga2, trials: 200}", "search.sampler: nsga2 draws at random model.cnn.width, model.resnet.width"),
    ],
)
def test_what_is_hardly_meant_is_said(search: str, notice: str, study_file: Write) -> None:
    notices = spec_of(study_file, f"search={search}").notices()
    assert [said for said in notices if said.startswith(notice)]


@pytest.mark.parametrize("search", ["{sampler: tpe}", "{sampler: qmc}", "{sampler: random, trials: 1000}"])
def test_what_is_meant_is_not(search: str, study_file: Write) -> None:
    assert spec_of(study_file, f"search={search}").notices() == []


@pytest.mark.parametrize("sampler", ["gp", "cmaes", "nsga2", "nsga3"])
def test_what_is_said_to_be_drawn_at_random_is(sampler: str, study_file: Write) -> None:
    """Optuna proposes only what every finished trial has; cmaes no choices."""
    spec = spec_of(study_file, f"search={{sampler: {sampler}, trials: 30}}")
    study = optuna.create_study(directions=["maximize"])
    for number in range(10):
        finish(study, spec, number, number % 7)
    together = set(make_sampler(spec, 10).infer_relative_search_space(study, study.trials[-1]))
    everywhere = {"augmentation.translate.max_px", "training.lr", "training.batch_size"}
    assert together == everywhere | ({"model"} if sampler != "cmaes" else set())
