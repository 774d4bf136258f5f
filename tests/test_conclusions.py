"""Findings in words, and studies beside each other: what follows from numbers by rule, and what must not."""

import math

import numpy as np
import pytest
from made import made

from equitune.analysis.correlation import rank_correlation
from equitune.analysis.findings import Finding, findings
from equitune.analysis.hypervolume import hypervolume
from equitune.analysis.summary import analyse
from equitune.analysis.versus import versus
from equitune.errors import UserError
from equitune.records.reader import StudyRecord
from equitune.results.values import Measurement

ACCURACY = {"accuracy": "maximize"}


def replicated(effect: float, noise: float, replicates: int) -> StudyRecord:
    """Two arms, whose replicates share their luck."""
    rng = np.random.default_rng(0)
    rows = []
    for replicate in range(replicates):
        luck = rng.normal(0.8, 0.05)
        for width, shift in ((4, 0.0), (8, effect)):
            value = luck + shift + rng.normal(0, noise)
            rows.append({"model.width": width, "replicate": replicate, "accuracy": value, "parameters": width})
    return made(rows, ACCURACY, varied=["model.width"])


def of_arms(study: StudyRecord) -> Finding:
    (finding,) = (each for each in findings(study, analyse(study)) if each.sentence.startswith("model.width 4"))
    return finding


def test_an_effect_that_its_replicates_can_prove_is_found() -> None:
    finding = of_arms(replicated(0.03, 0.002, 8))
    assert finding.verdict == "found"
    assert finding.low < finding.effect < finding.high
    assert (finding.n, round(finding.p, 4)) == (8, round(2.0**-7, 4))
    assert finding.sentence.startswith("model.width 4 → 8: accuracy rises (+0.0299")
    assert "n = 8 replicates, Holm's p = 0.008" in finding.sentence
    assert "falls" in of_arms(replicated(-0.03, 0.002, 8)).sentence


def test_too_few_replicates_suggest_and_noise_says_nothing() -> None:
    few = of_arms(replicated(0.03, 0.002, 4))
    assert few.verdict == "suggested"
    assert "which cannot be below 0.12" in few.sentence
    nothing = of_arms(replicated(0.0, 0.02, 8))
    assert nothing.verdict == "not enough evidence"
    assert "not enough evidence of an effect on accuracy" in nothing.sentence


def test_no_sentence_without_its_numbers_and_none_of_certainties() -> None:
    study = replicated(0.03, 0.002, 8)
    for finding in findings(study, analyse(study)):
        assert np.isfinite([finding.effect, finding.low, finding.high, finding.p]).all()
        assert "n = " in finding.sentence
        assert "95 % interval" in finding.sentence
    assert not any("on parameters" in finding.sentence for finding in findings(study, analyse(study)))
    assert findings(made([]), analyse(made([]))) == []


def test_many_comparisons_need_more_evidence() -> None:
    """Twenty parameters of pure chance: without Holm's correction one of them would be a finding."""
    rng = np.random.default_rng(1)
    rows = [{f"p.{i}": float(rng.normal()) for i in range(20)} | {"accuracy": float(rng.normal())} for _ in range(24)]
    rows = [row | {"parameters": 1.0} for row in rows]
    study = made(rows, ACCURACY, varied=[f"p.{i}" for i in range(20)])
    found = findings(study, analyse(study))
    assert len(found) == 20
    assert all(finding.verdict == "not enough evidence" for finding in found)
    assert any(finding.low > 0 or finding.high < 0 for finding in found)  # the broken twin: intervals alone


def test_a_relation_is_found_with_its_direction() -> None:
    rows = [{"model.width": float(w), "accuracy": 0.5 + w / 100, "parameters": 100.0 * w} for w in range(1, 13)]
    study = made(rows, ACCURACY, varied=["model.width"])
    found = findings(study, analyse(study))
    assert [finding.verdict for finding in found] == ["found", "found"]
    assert found[0].sentence.startswith("model.width and accuracy rise together (Spearman's correlation +1.00")


def test_replicates_are_no_trials_of_their_own() -> None:
    """Six configurations whose accuracy and error are unrelated luck, each ten times with a little noise."""
    rng = np.random.default_rng(3)
    arms = [(width, *rng.normal(size=2)) for width in range(1, 7)]
    rows = [
        {"model.width": width, "replicate": replicate, "accuracy": a + rng.normal(0, 0.01), "parameters": width}
        | {"translation_error": e + rng.normal(0, 0.01)}
        for replicate in range(10)
        for width, a, e in arms
    ]
    study = made(rows, varied=["model.width"])
    said = analyse(study)
    assert said.correlations[0].overall.p < 0.05  # the broken twin: 60 trials prove what 6 draws cannot
    (finding,) = (each for each in findings(study, said) if each.sentence.startswith("accuracy and translation error"))
    assert finding.verdict == "not enough evidence"
    assert "n = 6 configurations" in finding.sentence


def test_what_is_certain_is_found_among_many() -> None:
    """One of 130 parameters decides: as many shuffles as there are could not say so after Holm's correction."""
    rng = np.random.default_rng(2)
    table = rng.normal(size=(60, 130))
    rows = [{f"p.{i}": float(value) for i, value in enumerate(row)} | {"accuracy": float(row[0])} for row in table]
    study = made([row | {"parameters": 1.0} for row in rows], ACCURACY, varied=[f"p.{i}" for i in range(130)])
    found = [each for each in findings(study, analyse(study)) if each.verdict == "found"]
    assert [each.sentence.split(" and ")[0] for each in found] == ["p.0"]
    assert "Holm's p < 0.001" in found[0].sentence


@pytest.mark.parametrize("n", [8, 12, 40])
def test_the_tail_beyond_all_shuffles_is_the_heavier_one(n: int) -> None:
    """A perfect order is one of n! orders, or two; scipy's t says 0 there, which is too little."""
    found = rank_correlation([np.stack([np.arange(n), np.arange(n)], axis=1).astype(float)])
    assert 2 / math.factorial(n) < found.p <= 1 / 1999


def test_that_a_wider_network_has_more_parameters_is_no_finding() -> None:
    rows = [{"model.width": float(w), "accuracy": 0.5 + w / 100, "parameters": 100.0 * w} for w in range(1, 13)]
    study = made(rows, {**ACCURACY, "parameters": "minimize"}, varied=["model.width"])
    assert not any("and parameters" in each.sentence for each in findings(study, analyse(study)))


def front_of(shift: float, stderr: float, trials: int = 6) -> StudyRecord:
    study = made([{"accuracy": 0.5 + i / 10 + shift, "translation_error": 0.2 + i / 10} for i in range(trials)])
    for trial in study.trials:
        assert trial.result is not None
        for name, metric in list(trial.metrics.items()):
            value = metric.model_copy(update={"stderr": stderr})
            trial.result.metrics[name] = Measurement.model_validate(value.model_dump())
    return study


def test_studies_are_compared_below_one_reference_point() -> None:
    worse, better = front_of(0.0, 0.001), front_of(0.05, 0.001)
    reference, (first, second) = versus([worse, better])
    assert reference == {"accuracy": 0.5, "translation_error": pytest.approx(0.7)}
    points = np.array([[-(0.55 + i / 10), 0.2 + i / 10] for i in range(6)])
    assert second.hypervolume == pytest.approx(hypervolume(points, [-0.5, 0.7]))
    assert (first.difference, first.low, first.high) == (0, 0, 0)
    assert 0 < second.low < second.difference < second.high
    noisy = versus([front_of(0.0, 0.1), front_of(0.05, 0.1)])[1][1]
    assert noisy.low < 0 < noisy.high
    assert noisy.difference == pytest.approx(second.difference)


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(UserError, match="the studies share no objective"):
        versus([front_of(0, 0), made([{"loss": 1.0}], {"loss": "minimize"})])
    with pytest.raises(UserError, match="study made has no complete trial to compare"):
        versus([front_of(0, 0), made([])])
