"""What a study asks of its trials: objectives, constraints, what a trial costs, and what it measures on its way."""

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from invented import invent

from equitune.analysis.hypervolume import over_time
from equitune.analysis.pareto import front
from equitune.config.data_shape import DataShape
from equitune.config.load import load_study
from equitune.config.objectives import TRIAL_METRICS, UNMEASURED, Bound
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.errors import UserError
from equitune.networks.blueprint import describe
from equitune.preflight.plan import plan
from equitune.records.folder import StudyFolder, TrialFolder, read_json
from equitune.records.reader import StudyReader, StudyRecord
from equitune.report.front import write_front
from equitune.report.machine import as_json
from equitune.report.terminal import front_table, summary
from equitune.results.values import Epoch
from equitune.search.study_record import begin, require_same_search
from equitune.training.run import run_trial

Write = Callable[..., Path]

MEASURED = "study: s\nmodel: resnet\nmeasures: [equivariance, consistency]\n"


def mistakes(write: Write, text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_study(write(text))
    return [line.split("study.yaml:")[-1] for line in str(caught.value).splitlines()]


def constrained(spec: StudySpec, **bounds: Bound) -> StudySpec:
    return spec.model_copy(update={"constraints": bounds})


# The file


def test_an_objective_is_a_direction_or_says_more(study_file: Write) -> None:
    section = "objectives: {accuracy: maximize, translation_error: {direction: minimize, reference: 1}}"
    spec = load_study(study_file(MEASURED + section))
    assert spec.directions == {"accuracy": "maximize", "translation_error": "minimize"}
    assert spec.references == {"translation_error": 1.0}
    assert spec.constraints == {}


def test_a_reference_is_no_part_of_what_is_searched_and_a_constraint_is(study_file: Write) -> None:
    plain, referred, bounded = (
        load_study(study_file(MEASURED + section))
        for section in (
            "objectives: {loss: minimize}",
            "objectives: {loss: {direction: minimize, reference: 2}}",
            "objectives: {loss: minimize}\nconstraints: {accuracy: {at_least: 0.5}}",
        )
    )
    assert "constraints" not in plain.identity()
    assert plain.fingerprint() == referred.fingerprint() != bounded.fingerprint()


def test_a_study_without_constraints_has_the_fingerprint_it_always_had(small_spec: StudySpec) -> None:
    assert small_spec.fingerprint() == "0c9cb2286edb7e6d"  # as it is without those of later versions


def test_mistakes_in_objectives(study_file: Write) -> None:
    section = """\
objectives:
  accuracy: {direction: up}
  loss: {direction: minimize, refrence: 2}
  translation_error: {direction: maximize}
  translation_consistency: {direction: maximize, reference: 1.5}
  parameters: {direction: minimize, reference: 0}
  seconds: {reference: 2}
  translation_correlation: [maximize]
"""
    assert mistakes(study_file, MEASURED + section) == [
        "5:14 objectives.accuracy.direction: must be one of 'maximize' or 'minimize', but got 'up'",
        "6:31 objectives.loss.refrence: unknown name 'refrence': did you mean 'reference'? known: direction, reference",
        "7:3 objectives.translation_error: better is to minimize, but got 'maximize'",
        "8:50 objectives.translation_consistency.reference: is the worst value that still counts, but "
        "translation_consistency is never above 1.5: give a worse one",
        "9:37 objectives.parameters.reference: is the worst value that still counts, but parameters is never below "
        "0: give a worse one",
        "10:3 objectives.seconds.direction: is required",
        "11:3 objectives.translation_correlation: must be maximize or minimize, but got ['maximize']",
    ]


def test_mistakes_in_constraints(study_file: Write) -> None:
    section = """\
objectives: {loss: minimize}
constraints:
  acuracy: {at_least: 0.7}
  rotation_consistency: {at_least: 0.7}
  accuracy: {at_least: 1.5}
  parameters: {at_most: -1}
  loss: {}
  seconds: {at_most: 1, at_least: 2.5}
  translation_error: 0.1
  translation_consistency: {below: 0.5}
  translation_correlation: {at_least: .nan}
"""
    found = mistakes(study_file, MEASURED + section)
    assert found[0].startswith("6:3 constraints.acuracy: unknown metric 'acuracy': did you mean 'accuracy'? known: ")
    assert found[1].startswith("7:3 constraints.rotation_consistency: unknown metric 'rotation_consistency'")
    assert found[1].endswith("it is reported by measure consistency with group: rotation: add it under measures")
    assert found[2:] == [
        "8:14 constraints.accuracy.at_least: accuracy is never above 1, but got 1.5",
        "9:16 constraints.parameters.at_most: parameters is never below 0, but got -1",
        "10:3 constraints.loss: needs a bound: at_most or at_least, such as {at_most: 0.1}",
        "11:3 constraints.seconds: at_least <= at_most must hold, but got at_least=2.5, at_most=1",
        "12:3 constraints.translation_error: must be a mapping, but got 0.1",
        "13:29 constraints.translation_consistency.below: unknown name 'below': known: at_most, at_least",
        "14:29 constraints.translation_correlation.at_least: must be a finite number, but got nan",
    ]


def test_constraints_are_a_mapping(study_file: Write) -> None:
    section = "objectives: {loss: minimize}\nconstraints: [accuracy]"
    assert mistakes(study_file, MEASURED + section) == [
        "5:1 constraints: constraints must be a mapping, but got ['accuracy']"
    ]


def test_a_bound_that_every_value_keeps_is_noticed(study_file: Write) -> None:
    section = "objectives: {loss: minimize}\nconstraints: {accuracy: {at_least: 0, at_most: 0.9}, loss: {at_most: 9}}"
    spec = load_study(study_file(MEASURED + section))
    assert [notice for notice in spec.notices() if "constraints" in notice] == [
        "constraints.accuracy does nothing at at_least: 0"
    ]


# Bounds


def test_a_violation_is_the_distance_to_the_bound_and_at_most_0_within() -> None:
    between = Bound(at_least=0.5, at_most=2.0)
    assert [between.violation(value) for value in (0.25, 0.5, 1.0, 2.0, 5.0)] == [0.25, 0.0, -0.5, 0.0, 3.0]
    assert [Bound(at_most=2.0).violation(value) for value in (1.0, 2.5)] == [-1.0, 0.5]
    assert [between.violation(value) for value in (None, math.nan, math.inf)] == [UNMEASURED] * 3


@pytest.mark.parametrize("value", [None, math.nan, 0.1, 0.5, 0.6, 2.0, 2.1])
def test_what_is_violated_is_what_has_a_reason(value: float | None) -> None:
    bound = Bound(at_least=0.5, at_most=2.0)
    assert (bound.violation(value) > 0) == (bound.why_not(value) is not None)


def test_a_reason_names_the_value_and_the_bound() -> None:
    assert Bound(at_most=2e6).why_not(2_500_000) == "2,500,000 is above at_most 2,000,000"
    assert Bound(at_least=0.7).why_not(0.62) == "0.62 is below at_least 0.7"
    assert Bound(at_least=0.7).why_not(None) == "it has no value, which counts as outside at_least 0.7"


# What a trial costs


def test_a_trial_reports_what_it_costs(small_config: TrialConfig, small_data: DeviceData) -> None:
    epochs: list[Epoch] = []
    result = run_trial(small_config, small_data, on_epoch=epochs.append)
    cost = describe(small_config, small_data.data_shape).cost
    assert set(TRIAL_METRICS) <= set(result.metrics)
    assert result.metrics["parameters"].value == cost.parameters
    assert result.metrics["multiply_adds"].value == cost.multiply_adds
    assert result.metrics["seconds"].value == sum(epoch.train_s for epoch in epochs)
    assert result.metrics["seconds"].unit == "s"
    assert "seconds" not in result.repeatable().metrics


class Stopped(BaseException):
    pass


def test_seconds_are_those_of_every_epoch_after_going_on(
    small_config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    def stop(epoch: Epoch) -> None:
        raise Stopped

    place = TrialFolder(tmp_path / "00000")
    place.path.mkdir()
    with pytest.raises(Stopped):
        run_trial(small_config, small_data, folder=place, on_epoch=stop)
    stray = place.read_epochs()[0].model_copy(update={"epoch": 2, "train_s": 1e3})
    place.append_epoch(stray)  # as after a crash between a record and its checkpoint
    result = run_trial(small_config, small_data, folder=place)
    first, second = place.read_epochs()
    assert second.train_s < 1e3
    assert result.metrics["seconds"].value == first.train_s + second.train_s


# Constraints on what is known before training


def test_what_costs_too_much_does_not_train(small_spec: StudySpec, small_data: DeviceData) -> None:
    spec = constrained(small_spec, parameters=Bound(at_most=1000), accuracy=Bound(at_least=0.7))
    config = spec.suggest(0, lambda name, distribution: distribution.bounds[0])  # type: ignore[union-attr]
    assert config.bounds == {"parameters": Bound(at_most=1000)}
    assert config.rung_metrics == ("accuracy", "translation_error", "parameters")
    assert TrialConfig.from_json_text(config.model_dump_json()) == config
    epochs: list[Epoch] = []
    result = run_trial(config, small_data, on_epoch=epochs.append)
    assert (result.state, result.reason) == ("INFEASIBLE", "parameters: 1,384 is above at_most 1,000")
    assert epochs == []
    wide_enough = config.model_copy(update={"bounds": {"parameters": Bound(at_most=1384)}})
    assert run_trial(wide_enough, small_data).state == "COMPLETE"


def test_the_dry_run_says_what_costs_too_much(small_spec: StudySpec, small_splits: object) -> None:
    bounds = {"multiply_adds": Bound(at_most=60_000)}
    trials = plan(constrained(small_spec, **bounds), small_splits).trials  # type: ignore[arg-type]
    by_width = {trial.config.params["model.width"]: trial for trial in trials}
    assert by_width[2].reason is None
    cost = describe(by_width[4].config, DataShape((1, 16, 16), 10)).cost.multiply_adds
    assert by_width[4].reason == f"multiply_adds: {cost:,} is above at_most 60,000"


# The study's record


def test_the_study_s_record_says_what_was_asked(study_file: Write, tmp_path: Path) -> None:
    section = "objectives: {loss: {direction: minimize, reference: %s}}\nconstraints: {accuracy: {at_least: 0.5}}"
    folder = StudyFolder(tmp_path / "s")
    begin(folder, load_study(study_file(MEASURED + section % 2)), None, ())
    study = StudyReader(folder).read()
    assert study.objectives == {"loss": "minimize"}
    assert study.references == {"loss": 2.0}
    assert study.constraints == {"accuracy": Bound(at_least=0.5)}
    assert read_json(folder.study)["constraints"] == {"accuracy": {"at_least": 0.5}}
    begin(folder, load_study(study_file(MEASURED + section % 3)), None, ())  # goes on with another reference
    assert StudyReader(folder).read().references == {"loss": 3.0}
    with pytest.raises(UserError, match="constraints was"):
        require_same_search(folder, load_study(study_file(MEASURED + "objectives: {loss: minimize}")))


# Constraints on what is known afterwards. Invented trials: accuracy 0.5, 0.58, ... and error 0.1, 0.128, ...


def study_with(tmp_path: Path, spec: StudySpec, **bounds: Bound) -> StudyRecord:
    return StudyReader(invent(tmp_path / "small", constrained(spec, **bounds), 6, states={1: "FAILED"})).read()


def test_who_violates_a_constraint_is_on_no_front(tmp_path: Path, small_spec: StudySpec) -> None:
    study = study_with(tmp_path, small_spec, accuracy=Bound(at_least=0.7), parameters=Bound(at_most=5000))
    assert [trial.number for trial in front(study)] == [4, 3]
    assert [list(study.violations(trial)) for trial in study.trials] == [
        ["accuracy"], [], ["accuracy"], [], [], ["parameters"],
    ]  # fmt: skip
    assert front(replace(study, constraints={})) == sorted(front(study) + [study.trials[n] for n in (0, 2, 5)],
                                                           key=lambda trial: -trial.number)  # fmt: skip


def test_a_constrained_metric_without_a_value_is_violated(tmp_path: Path, small_spec: StudySpec) -> None:
    study = study_with(tmp_path, small_spec, loss=Bound(at_most=9.0))  # which no invented trial has
    assert front(study) == []
    assert study.violations(study.trials[0]) == {"loss": "it has no value, which counts as outside at_most 9"}


def test_who_violates_a_constraint_adds_nothing_to_the_hypervolume(tmp_path: Path, small_spec: StudySpec) -> None:
    study = study_with(tmp_path, small_spec, accuracy=Bound(at_least=0.7))
    assert {step.trial for step in over_time(study)} <= {3, 4, 5}
    assert over_time(replace(study, constraints={}))[-1].value > over_time(study)[-1].value


def test_every_report_says_what_is_violated(tmp_path: Path, small_spec: StudySpec) -> None:
    study = study_with(tmp_path, small_spec, accuracy=Bound(at_least=0.7))
    said = "accuracy: 0.5 is below at_least 0.7"
    assert "  trial 0 COMPLETE: " + said in summary(study)
    plain = as_json(study)
    assert plain["constraints"] == {"accuracy": {"at_least": 0.7}}
    assert plain["trials"][0]["violates"] == {"accuracy": "0.5 is below at_least 0.7"}
    _, page, table = write_front(study, tmp_path)
    rows = {row["trial"]: row for row in csv.DictReader(table.open())}
    assert (rows["0"]["violates"], rows["0"]["front"]) == (said, "False")
    assert (rows["5"]["violates"], rows["5"]["front"]) == ("", "True")
    assert "violates accuracy: 0.5 is below at_least 0.7" in page.read_text()


@pytest.mark.parametrize("at_least", [0.0, 0.7, 2.0])  # none, some and all of them
def test_every_front_with_violators_can_be_drawn(at_least: float, tmp_path: Path, small_spec: StudySpec) -> None:
    study = study_with(tmp_path, small_spec, accuracy=Bound(at_least=at_least))
    _, page, _ = write_front(study, tmp_path)
    assert ("violates a constraint" in page.read_text()) == (at_least > 0)
    assert front_table(study).row_count == len(front(study))
