"""Effects, interactions and the front of arms against closed forms, brute force and scipy, with ties and gaps."""

import math
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import BOTH, made
from scipy import stats

from equitune.analysis.arms import arms
from equitune.analysis.effects import Comparison, arm_effects, factor_effects
from equitune.analysis.front_uncertainty import RESAMPLES, front_uncertainty, hypervolume_interval
from equitune.analysis.hypervolume import hypervolume
from equitune.analysis.interactions import interactions
from equitune.analysis.paired import effect_of, holm, resampled, sign_flip_p, smallest_p
from equitune.analysis.pareto import non_dominated
from equitune.config.objectives import Bound
from equitune.errors import UserError
from equitune.records.reader import StudyRecord

ACCURACY = {"accuracy": "maximize"}
tied = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=9)


@given(tied)
def test_flipping_signs_is_that_of_brute_force(numbers: list[float]) -> None:
    x = np.array(numbers)
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, x, strict=True)))
        for signs in product((1, -1), repeat=len(x))
    ]
    assert sign_flip_p(x) == pytest.approx(np.mean([value >= abs(x.sum()) - 1e-9 for value in sums]))
    assert sign_flip_p(x) >= smallest_p(len(x))


@pytest.mark.parametrize("n", [6, 12, 40])
def test_scipy_finds_the_same_p(n: int) -> None:
    x = np.random.default_rng(n).normal(0.3, 1, n).round(1)
    theirs = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=9999, rng=1).pvalue
    assert sign_flip_p(x) == pytest.approx(theirs, abs=0 if n < 13 else 0.02)  # drawn: 4 standard errors of 9,999
    assert sign_flip_p(np.ones(n)) == pytest.approx(smallest_p(n) if n < 15 else 1e-4)


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.04, 0.3, 1.0, math.nan]), max_size=7))
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    """An adjusted p is the largest Bonferroni p of any set of comparisons that it belongs to (Marcus et al., 1976)."""
    compared = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    sets = list(chain.from_iterable(combinations(compared, size) for size in range(1, len(compared) + 1)))
    for index, found in enumerate(holm(p_values)):
        if index not in compared:
            assert math.isnan(found)
        else:
            slow = max(min(1.0, len(some) * min(p_values[i] for i in some)) for some in sets if index in some)
            assert found == pytest.approx(slow)


def test_holm_without_its_steps_is_caught() -> None:
    p_values = [0.01, 0.02]
    assert holm(p_values) == [0.02, 0.02]
    assert [2 * p for p in p_values] != holm(p_values)  # the broken twin: Bonferroni


def test_the_studentised_interval_is_that_of_a_slow_loop() -> None:
    x = np.array([0.3, -0.1, 0.4, 0.2, 0.9, 0.2])
    t = []
    for counts in resampled(len(x)).astype(int):
        drawn = np.repeat(x, counts)
        spread = drawn.std(ddof=1) / math.sqrt(len(x))
        t.append(
            (drawn.mean() - x.mean()) / spread if len(set(drawn)) > 1 else math.copysign(math.inf, drawn[0] - x.mean())
        )
    low, high = np.quantile(t, [0.025, 0.975], method="closest_observation")
    stderr = x.std(ddof=1) / math.sqrt(len(x))
    effect = effect_of(x)
    assert effect.method == "bootstrap"
    assert (effect.low, effect.high) == pytest.approx((x.mean() - high * stderr, x.mean() - low * stderr))


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_intervals_of_five_replicates_hold_the_truth_as_often_as_they_say(kind: str) -> None:
    """400 data sets: 95 % is 0.928 to 0.972 but for 4 standard errors; percentiles, the broken twin, are too narrow."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)) if kind == "normal" else rng.lognormal(size=(400, 5)) - math.exp(0.5)
    effects = [effect_of(row) for row in x]
    held = np.mean([effect.low <= 0 <= effect.high for effect in effects])
    means = resampled(5) @ x.T / 5
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    percentile = np.mean((low <= 0) & (high >= 0))
    assert held > (0.9 if kind == "normal" else 0.83)
    assert percentile < held - 0.08


def test_an_interval_moves_and_stretches_with_its_numbers_and_never_changes() -> None:
    x = np.array([0.1, 0.25, 0.2, 0.4, 0.15])
    one, again, moved = effect_of(x), effect_of(x), effect_of(-3 * x + 1)
    assert one == again
    assert (moved.low, moved.high) == pytest.approx(
        (-3 * one.high + 1, -3 * one.low + 1), abs=0.02
    )  # tails of a sample
    assert one.is_seen


def test_few_numbers_equal_numbers_and_none() -> None:
    nothing, one = effect_of(np.array([])), effect_of(np.array([0.5, math.nan]))
    assert (nothing.n, one.n, one.mean, one.method) == (0, 1, 0.5, "none")
    assert math.isnan(nothing.mean)
    assert math.isnan(one.low)
    assert not one.is_seen
    few = effect_of(np.array([0.1, 0.2, 0.4]))
    theirs = stats.ttest_1samp([0.1, 0.2, 0.4], 0).confidence_interval()
    assert few.method == "student"
    assert (few.low, few.high) == pytest.approx((theirs.low, theirs.high))
    same = effect_of(np.full(6, 0.1 + 0.2))
    assert (same.method, same.low, same.high) == ("same", same.mean, same.mean)
    assert same.p == 2**-5
    assert math.isnan(effect_of(np.full(6, 2.0), is_certain=True).p)
    assert effect_of(np.zeros(6)).p == 1
    ties = effect_of(np.array([0.0, 0.0, 0.0, 0.0, 1.0]))  # a third of the resamples are of zeros alone
    assert ties.method == "student"


def factorial(values: np.ndarray, **more: object) -> StudyRecord:
    """Accuracies (a, b, c, replicates) as a study; the parameters are a, b and c."""
    a, b, c, replicates = values.shape
    rows = [
        {"a": i, "b": j, "c": k, "replicate": r, "accuracy": float(values[i, j, k, r])}
        for r, i, j, k in product(range(replicates), range(a), range(b), range(c))
    ]
    return made(rows, ACCURACY, varied=("a", "b", "c"), **more)  # type: ignore[arg-type]


def by_change(found: list[Comparison]) -> dict[tuple[object, ...], Comparison]:
    return {tuple((change.factor, change.after) for change in each.changes): each for each in found}


def test_main_effects_and_interactions_of_a_known_model() -> None:
    """Luck of a replicate is shared by all its trials: paired, the effects are exact."""
    a, b = np.array([0.0, 0.1, 0.3]), np.array([0.0, 0.05])
    luck = np.random.default_rng(0).normal(size=6)
    values = (a[:, None, None, None] + b[:, None, None] + np.zeros(2)[:, None]) + luck
    values[2, 1] += 0.08  # together they do more
    study = factorial(values)
    main = by_change(factor_effects(study))
    assert main[("a", 1),].effect.mean == pytest.approx(0.1)
    assert main[("a", 2),].effect.mean == pytest.approx(0.3 + 0.08 / 2)
    assert main[("b", 1),].effect.mean == pytest.approx(0.05 + 0.08 / 3)
    assert main[("c", 1),].effect.mean == pytest.approx(0, abs=1e-9)
    assert not main[("c", 1),].effect.is_seen  # it is in the list all the same
    assert main[("a", 1),].contexts == 4
    together = by_change(interactions(study))
    assert together[("a", 2), ("b", 1)].effect.mean == pytest.approx(0.08)
    assert together[("a", 1), ("b", 1)].effect.mean == pytest.approx(0, abs=1e-9)
    assert len(together) == 2 + 2 + 1
    assert together[("a", 2), ("b", 1)].effect.is_seen


def test_noisy_effects_are_those_of_marginal_means() -> None:
    values = np.random.default_rng(1).normal(size=(3, 2, 2, 7)).round(2)
    study = factorial(values)
    main, together = by_change(factor_effects(study)), by_change(interactions(study))
    marginal = values.mean(axis=(1, 2))
    theirs = stats.ttest_rel(marginal[2], marginal[0])
    assert main[("a", 2),].effect.mean == pytest.approx(marginal[2].mean() - marginal[0].mean())
    assert main[("a", 2),].effect.p == pytest.approx(theirs.pvalue, abs=0.1)
    cell = values.mean(axis=2)  # (a, b, replicates)
    contrast = (cell[1, 1] - cell[0, 1]) - (cell[1, 0] - cell[0, 0])
    effect = together[("a", 1), ("b", 1)].effect
    assert effect.mean == pytest.approx(contrast.mean())
    assert effect.p == pytest.approx(sign_flip_p(contrast))
    p_values = [each.effect.p for each in interactions(study)]
    assert [each.effect.p_holm for each in interactions(study)] == pytest.approx(holm(p_values))


def test_a_failed_trial_drops_in_pairs() -> None:
    """Replicate 0 is lucky and its second arm failed: taken apart, arms would seem to differ."""
    rows = [
        {"width": width, "replicate": r, "accuracy": 0.5 + 0.1 * (width == 8) + (0.4 if r == 0 else 0.01 * r)}
        for r in range(5)
        for width in (4, 8)
    ]
    rows[1] = {"width": 8, "replicate": 0, "state": "FAILED"}
    rows[3]["accuracy"] = None
    (found,) = arm_effects(made(rows, ACCURACY, varied=["width"]))
    assert found.effect.n == found.pairs == 3
    assert found.most_pairs == 5
    assert found.effect.mean == pytest.approx(0.1)
    four, eight = ([row["accuracy"] for row in rows if row["width"] == w and row.get("accuracy")] for w in (4, 8))
    assert np.mean(eight) - np.mean(four) < 0.05  # the broken twin: not paired


def test_in_a_factorial_only_the_pair_drops() -> None:
    values = np.ones((2, 2, 2, 5)) * np.array([0.0, 0.2])[:, None, None, None] + np.arange(5)
    study = factorial(values)
    study.trials[0].result.metrics.clear()  # type: ignore[union-attr]  # a 0, b 0, c 0 of replicate 0
    main = by_change(factor_effects(study))
    assert main[("a", 1),].effect.n == 5
    assert (main[("a", 1),].pairs, main[("a", 1),].most_pairs) == (19, 20)
    assert main[("a", 1),].effect.mean == pytest.approx(0.2)


def test_arms_beside_another_arm_and_an_arm_that_does_not_exist() -> None:
    study = factorial(np.random.default_rng(2).normal(size=(2, 1, 1, 5)))
    (one,), (other,) = arm_effects(study), arm_effects(study, against=1)
    assert other.effect.mean == pytest.approx(-one.effect.mean)
    assert (other.changes[0].before, other.changes[0].after) == (1, 0)
    for effects in (arm_effects, factor_effects, interactions):
        with pytest.raises(UserError, match="the study has arms 0 to 1"):
            effects(study, against=7)


def test_levels_that_bring_parameters_of_their_own_are_averaged_over_them() -> None:
    cells = [{"prior": "conv", "prior.conv.padding": padding} for padding in ("zero", "circular")] + [{"prior": "p4"}]
    worth = {"zero": 0.0, "circular": 0.2, None: 0.4}
    rows = [
        {**cell, "width": width, "replicate": r, "accuracy": worth[cell.get("prior.conv.padding")] + 0.01 * width * r}
        for r, cell, width in product(range(3), cells, (4, 8))
    ]
    study = made(rows, ACCURACY, varied=["prior", "prior.conv.padding", "width"])
    main = by_change(factor_effects(study))
    assert main[("prior", "p4"),].effect.mean == pytest.approx(0.4 - 0.1)
    assert main[("prior.conv.padding", "circular"),].effect.mean == pytest.approx(0.2)
    assert set(by_change(interactions(study))) == {
        (("prior", "p4"), ("width", 8)),
        (("prior.conv.padding", "circular"), ("width", 8)),
    }


def test_one_factor_at_a_time_is_no_factorial() -> None:
    cells = [{"a": 0, "b": 0}, {"a": 1, "b": 0}, {"a": 0, "b": 1}]
    rows = [{**cell, "replicate": r, "accuracy": 0.1 * r} for r in range(3) for cell in cells]
    study = made(rows, ACCURACY, varied=("a", "b"))
    assert factor_effects(study) == interactions(study) == []
    assert len(arm_effects(study)) == 2


def test_what_is_no_matter_of_chance_is_not_tested() -> None:
    rows = [
        {"width": width, "replicate": r, "accuracy": 0.5 + 0.01 * r * width, "parameters": 100.0 * width}
        for r in range(5)
        for width in (4, 8)
    ]
    accuracy, parameters = arm_effects(made(rows, {**ACCURACY, "parameters": "minimize"}, varied=["width"]))
    assert not math.isnan(accuracy.effect.p)
    assert math.isnan(parameters.effect.p)
    assert (parameters.effect.low, parameters.effect.high) == (400, 400)


def front_rows(values: np.ndarray) -> list[dict[str, object]]:
    return [
        {
            "arm": arm,
            "replicate": r,
            "accuracy": None if math.isnan(x) else x,
            "translation_error": None if math.isnan(y) else y,
        }
        for r in range(values.shape[1])
        for arm, (x, y) in enumerate(values[:, r].tolist())
    ]


def test_the_front_of_resampled_replicates_is_that_of_a_slow_loop() -> None:
    values = np.random.default_rng(3).random((5, 4, 2)).round(2)  # (arms, replicates, accuracy and error)
    values[0, 1] = np.nan
    study = made(front_rows(values), BOTH, varied=["arm"])
    found = front_uncertainty(study)
    hits = np.zeros(5)
    for counts in resampled(4, RESAMPLES).astype(int):
        drawn = np.repeat(values, counts, axis=1)
        has_any = ~np.isnan(drawn).all(axis=(1, 2))
        means = np.full((5, 2), np.nan)
        means[has_any] = np.nanmean(drawn[has_any], axis=1)
        hits += non_dominated((means * [-1, 1]).round(9))
    assert [member.share for member in found.arms] == pytest.approx((hits / RESAMPLES).tolist())
    means = np.nanmean(values, axis=1) * [-1, 1]
    assert [member.is_on_front for member in found.arms] == non_dominated(means.round(9)).tolist()
    assert found.reference.point is not None
    below = [-found.reference.point["accuracy"], found.reference.point["translation_error"]]
    assert found.hypervolume == pytest.approx(hypervolume(means.round(9), below))
    assert found.interval.n == 4
    assert found.interval.low < found.hypervolume < found.interval.high
    assert front_uncertainty(study).interval == found.interval


def test_the_interval_of_the_hypervolume_holds_the_truth_as_often_as_it_says() -> None:
    """Five arms on a curve, 5 replicates, 150 data sets: 0.95 but for 4 standard errors; percentiles are too narrow."""
    truth, rng = np.array([[0.1, 0.9], [0.25, 0.6], [0.4, 0.4], [0.6, 0.25], [0.9, 0.1]]), np.random.default_rng(0)
    reference = np.full(2, 1.2)
    volume = hypervolume(truth, reference)
    held = percentile = 0
    for _ in range(150):
        values = truth[:, None] + 0.1 * rng.normal(size=(5, 5, 2)) + 0.1 * rng.normal(size=(1, 5, 2))
        interval = hypervolume_interval(values, reference)
        held += interval.low <= volume <= interval.high
        drawn = [hypervolume(values[:, rng.integers(0, 5, 5)].mean(axis=1), reference) for _ in range(99)]
        percentile += np.quantile(drawn, 0.025) <= volume <= np.quantile(drawn, 0.975)
    assert held / 150 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 150)
    assert percentile < held


def test_an_arm_that_always_wins_is_always_on_the_front() -> None:
    values = np.array([[[0.9, 0.1]] * 3, [[0.5, 0.3], [0.6, 0.2], [0.7, 0.4]], [[0.4, 0.6]] * 3])
    shares = [member.share for member in front_uncertainty(made(front_rows(values), BOTH, varied=["arm"])).arms]
    assert shares == [1, 0, 0]


def test_replicates_are_drawn_together_for_all_arms() -> None:
    """Arm 0 beats arm 1 in each replicate by less than replicates differ: drawn apart, arm 1 would be on the front."""
    luck = np.array([0.0, 0.3, 0.6, 0.1])
    values = np.stack([np.stack([luck + 0.01, 0 * luck], 1), np.stack([luck, 0 * luck], 1)])
    found = front_uncertainty(made(front_rows(values), BOTH, varied=["arm"]))
    assert [member.share for member in found.arms] == [1, 0]
    rng = np.random.default_rng(0)
    apart = [
        values[0, rng.integers(0, 4, 4), 0].mean() < values[1, rng.integers(0, 4, 4), 0].mean() for _ in range(200)
    ]
    assert np.mean(apart) > 0.2  # the broken twin


def test_an_arm_whose_mean_violates_a_constraint_is_on_no_front() -> None:
    values = np.array([[[0.9, 0.1], [0.7, 0.1]], [[0.5, 0.3], [0.6, 0.2]]])
    for least, numbers in ((0.8, [0]), (0.85, []), (0.4, [0, 1])):
        constraints = {"accuracy": Bound(at_least=least)}
        found = front_uncertainty(made(front_rows(values), BOTH, varied=["arm"], constraints=constraints))
        assert [member.arm.number for member in found.arms] == numbers


def test_a_front_of_one_replicate_or_of_nothing() -> None:
    one = front_uncertainty(made([{"arm": 0, "accuracy": 0.5, "translation_error": 0.1}], BOTH, varied=["arm"]))
    assert [member.is_on_front for member in one.arms] == [True]
    assert math.isnan(one.arms[0].share)
    nothing = front_uncertainty(made([{"arm": 0, "state": "FAILED"}], BOTH, varied=["arm"]))
    assert nothing.arms == []
    assert len(arms(made([], BOTH))) == 0
