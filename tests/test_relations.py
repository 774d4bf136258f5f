"""Importance and rank correlation: known answers, scipy, gaps and ties, and what is said where there is too little."""

import math
import time
import warnings

import numpy as np
import pytest
from made import BOTH, made
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from equitune.analysis.correlation import RESAMPLES, correlations, overall_and_within, rank_correlation
from equitune.analysis.importance import distributions, importance
from equitune.config.load import load_study
from equitune.records.reader import StudyRecord

IDENTITY = {
    "model": {"resnet": {"depth": {"choice": [8, 14]}, "width": {"int": [4, 64], "log": True}}},
    "prior": {"conv": {"conv": {"padding": {"choice": ["zero", "circular"]}}}, "local": {"local": {}}},
    "augmentation": {},
    "training": {"epochs": 4, "lr": {"float": [0.001, 0.1], "log": True}},
}


def searched(num_trials: int, **changes: object) -> StudyRecord:
    """Width decides accuracy, the learning rate the error, depth nothing; the padding of conv helps accuracy a little."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(num_trials):
        row = {
            "model.depth": int(rng.choice([8, 14])),
            "model.width": int(rng.integers(4, 65)),
            "prior": str(rng.choice(["conv", "local"])),
            "training.lr": float(10 ** rng.uniform(-3, -1)),
        }
        if row["prior"] == "conv":
            row["prior.conv.padding"] = str(rng.choice(["zero", "circular"]))
        row["accuracy"] = row["model.width"] / 64 + 0.05 * (row.get("prior.conv.padding") == "zero")
        row["translation_error"] = abs(math.log10(row["training.lr"]) + 1.5)
        rows.append({**row, **changes})
    names = ("model.depth", "model.width", "prior", "prior.conv.padding", "training.lr")
    return made(rows, BOTH, varied=names, info={"identity": IDENTITY})


def test_what_decides_an_objective_is_found_by_both() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accuracy, error = importance(searched(120))
    for found, decisive in ((accuracy, "model.width"), (error, "training.lr")):
        assert found.reason is None
        assert found.trials == 120
        assert found.best == 12
        assert next(iter(found.ped_anova)) == next(iter(found.fanova)) == decisive
        assert sum(found.ped_anova.values()) == pytest.approx(1)
        assert found.fanova[decisive] > 0.8
        assert sum(found.fanova.values()) <= 1 + 1e-9
        assert "prior.conv.padding" in found.ped_anova  # conditional parameters have their place ...
        assert "prior.conv.padding" not in found.fanova  # ... where the method knows them


def test_low_is_good_for_what_is_minimised_and_high_for_what_is_maximised() -> None:
    """One level of `good` holds every good trial; the worst ones have both. The wrong sign, the broken twin, sees less."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(100):
        good = bool(rng.random() < 0.5)
        rows.append(
            {"good": good, "noise": float(rng.random()), "accuracy": float(rng.random()) * (1.0 if good else 0.5)}
        )
    right = importance(made(rows, {"accuracy": "maximize"}, varied=("good", "noise")))[0].ped_anova["good"]
    wrong = importance(made(rows, {"accuracy": "minimize"}, varied=("good", "noise")))[0].ped_anova["good"]
    assert right > wrong + 0.1


def test_importance_never_changes_and_optuna_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    study = searched(40)
    assert importance(study) == importance(study)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        (searched(19), "19 trials have a value, and it takes 20"),
        (searched(30, accuracy=0.5), "it is the same in every trial"),
        (searched(30, accuracy=None), "0 trials have a value, and it takes 20"),
        (searched(30, state="FAILED"), "0 trials have a value, and it takes 20"),
        (made([{"accuracy": 0.1 * n} for n in range(30)], BOTH), "no parameter varies"),
    ],
)
def test_where_there_is_no_number_there_is_a_reason(study: StudyRecord, reason: str) -> None:
    found = importance(study)[0]
    assert reason in (found.reason or "")
    assert found.ped_anova == found.fanova == {}


def test_distributions_are_those_of_the_study_file_else_what_occurred() -> None:
    known = distributions(searched(30))
    assert known["model.width"] == IntDistribution(low=4, high=64, log=True)
    assert known["training.lr"] == FloatDistribution(low=0.001, high=0.1, log=True)
    assert known["model.depth"] == CategoricalDistribution(["8", "14"])
    assert known["prior"] == CategoricalDistribution(["'conv'", "'local'"])
    assert known["prior.conv.padding"] == CategoricalDistribution(["'zero'", "'circular'"])
    rows = [{"model.width": 4 + n, "model.depth": (8, 20)[n % 2], "switch": (1, True, 1.0)[n % 3]} for n in range(90)]
    wider = distributions(
        made(rows, BOTH, varied=("model.width", "model.depth", "switch"), info={"identity": IDENTITY})
    )
    assert wider["model.width"] == IntDistribution(low=4, high=93)  # it was extended
    assert wider["model.depth"] == CategoricalDistribution(["8", "20"])
    assert wider["switch"] == CategoricalDistribution(["1", "True", "1.0"])


def test_every_name_of_a_study_file_leads_to_its_distribution(study_file: object) -> None:
    text = """\
study: names
model: {choose: {resnet: {depth: {choice: [8, 14]}}, cnn: {}}}
prior: {choose: {conv: {padding: {choice: [zero, circular]}}, local: {}}}
augmentation: {choose: {shifts: {translate: {max_px: {float: [0, 3], step: 0.5}}}, none: {}}}
training: {choose: {slow: {lr: {float: [1e-3, 3e-2], log: true}}, fast: {epochs: {int: [1, 5], step: 2}}}}
objectives: {accuracy: maximize}
"""
    spec = load_study(study_file(text))  # type: ignore[operator]
    ends = {
        name: [getattr(each, "choice", None) or each.bounds][0]  # type: ignore[union-attr]
        for name, each in spec.parameters().items()
    }
    rows = [{name: values[n] for name, values in ends.items()} for n in (0, -1)]
    known = distributions(made(rows, {"accuracy": "maximize"}, varied=list(ends), info={"identity": spec.identity()}))
    assert known.keys() == ends.keys()
    assert known["augmentation.shifts.translate.max_px"] == FloatDistribution(low=0, high=3, step=0.5)
    assert known["training.fast.epochs"] == IntDistribution(low=1, high=5, step=2)
    assert known["training.slow.lr"] == FloatDistribution(low=1e-3, high=3e-2, log=True)
    assert known["model"] == CategoricalDistribution(["'resnet'", "'cnn'"])


def test_spearman_is_scipys_with_ties_and_duplicates() -> None:
    rng = np.random.default_rng(0)
    for n in (4, 15, 60):
        pairs = rng.integers(0, 6, (n, 2)).astype(float)
        found, theirs = rank_correlation([pairs]), stats.spearmanr(pairs[:, 0], pairs[:, 1])
        assert found.rho == pytest.approx(theirs.statistic)
        assert found.trials == n
        if n > 10:
            assert found.p == pytest.approx(theirs.pvalue, abs=4 * math.sqrt(0.25 / RESAMPLES))  # 4 standard errors
            slow = stats.bootstrap(
                tuple(pairs.T), lambda x, y: stats.spearmanr(x, y)[0], paired=True, method="percentile",
                n_resamples=999, vectorized=False, rng=1,
            ).confidence_interval  # fmt: skip
            assert (found.low, found.high) == pytest.approx((slow.low, slow.high), abs=0.06)  # two sets of resamples


def test_pooled_over_strata_it_is_the_mean_weighed_by_trials_minus_one() -> None:
    rng = np.random.default_rng(1)
    strata = [rng.normal(size=(n, 2)) for n in (4, 9, 20, 3)]  # three trials do not count
    constant = np.stack([np.ones(8), np.arange(8.0)], 1)  # nor do equal ones
    found = rank_correlation([*strata, constant])
    rho = [stats.spearmanr(*pairs.T).statistic for pairs in strata[:3]]
    assert found.rho == pytest.approx(np.average(rho, weights=[3, 8, 19]))
    assert (found.trials, found.strata) == (33, 3)
    assert found.low <= found.rho <= found.high
    assert rank_correlation([*strata, constant]) == found


def test_simpsons_paradox() -> None:
    """Larger networks have less error and more accuracy; of equally large ones, less error goes with less accuracy."""
    rows = [
        {
            "translation_error": 0.1 * (5 - size) + 0.004 * n,
            "accuracy": 0.5 + 0.1 * size + 0.004 * n,
            "parameters": 1000.0 * size,
        }
        for size in range(5)
        for n in range(6)
    ]
    (found,) = correlations(made(rows, BOTH))
    assert found.metric == "translation_error"
    assert found.overall.high < -0.5
    assert found.within.rho == pytest.approx(1)
    assert found.within.low > 0.5
    assert (found.within.strata, found.within.trials, found.overall.trials) == (5, 30, 30)
    assert found.within.p < 0.01


def test_gaps_and_too_few_trials_are_said_in_numbers() -> None:
    gap = np.array([math.nan, 1, 2, 3, 4, 5])
    overall, within = overall_and_within(gap, np.array([1.0, 2, 3, 4, 6, 5]), np.array([1.0, 1, 1, 1, 1, math.nan]))
    assert (overall.trials, within.trials, within.strata) == (5, 4, 1)
    nothing = rank_correlation([np.ones((3, 2))])
    assert (nothing.trials, nothing.strata) == (0, 0)
    assert math.isnan(nothing.rho)
    empty = made([{"accuracy": 0.5, "translation_error": None}, {"state": "FAILED"}], BOTH)
    assert [each.metric for each in correlations(empty)] == ["translation_error"]  # an objective is kept


def test_unrelated_numbers_are_seldom_significant() -> None:
    rng = np.random.default_rng(2)
    p = [rank_correlation([rng.normal(size=(8, 2)), rng.normal(size=(5, 2))]).p for _ in range(40)]
    assert np.mean(np.array(p) < 0.05) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 40)
    assert np.mean(p) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 40))


def test_many_categories_take_no_time() -> None:
    """As columns of their own, twenty categories have 2 ** 20 corners, over which fANOVA sums for each of its trees."""
    rng = np.random.default_rng(0)
    rows = [
        {"prior": f"prior {i % 20}", "training.lr": float(rng.uniform()), "accuracy": float(i % 20 % 2)}
        for i in range(60)
    ]
    begun = time.process_time()
    (found,) = importance(made(rows, {"accuracy": "maximize"}, varied=["prior", "training.lr"]))
    assert time.process_time() - begun < 10
    assert found.fanova["prior"] > 0.8 > 0.1 > found.fanova["training.lr"]
