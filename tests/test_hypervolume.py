"""Hypervolume against closed forms, brute force, chance and Optuna's, with ties, gaps, duplicates and points beyond."""

import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made import BOTH, made
from optuna._hypervolume import compute_hypervolume

from equitune.analysis.hypervolume import Hypervolume, hypervolume, over_time, reference_point
from equitune.config.objectives import Bound

REFERENCE = 4.0
# Few distinct values, so that ties and duplicates abound; 5 lies beyond the reference point.
tables = arrays(
    np.float64,
    st.tuples(st.integers(0, 7), st.integers(1, 5)),
    elements=st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, np.nan, np.inf, -np.inf]),
)


def inclusion_exclusion(points: np.ndarray, reference: np.ndarray) -> float:
    """The measure of a union of boxes: all of them, minus each two, plus each three ..."""
    inside = [row for row in points if np.isfinite(row).all() and (row < reference).all()]
    return sum(
        (-1) ** (size + 1)
        * sum(float(np.prod(reference - np.max(some, axis=0))) for some in combinations(inside, size))
        for size in range(1, len(inside) + 1)
    )


def one_by_one(points: np.ndarray, reference: np.ndarray) -> float:
    volume = Hypervolume(reference.tolist())
    gained = [volume.add(point) for point in points]
    assert min(gained, default=0.0) >= 0
    assert sum(gained) == pytest.approx(volume.value)
    return volume.value


@given(tables)
def test_it_is_the_measure_of_the_union_of_boxes(points: np.ndarray) -> None:
    reference = np.full(points.shape[1], REFERENCE)
    volume = inclusion_exclusion(points, reference)
    assert hypervolume(points, reference) == pytest.approx(volume, abs=1e-9)
    assert one_by_one(points, reference) == pytest.approx(volume, abs=1e-9)


@given(tables, st.randoms(use_true_random=False))
def test_neither_order_nor_duplicates_nor_dominated_points_matter(points: np.ndarray, random: object) -> None:
    reference = np.full(points.shape[1], REFERENCE)
    volume = hypervolume(points, reference)
    order = list(range(len(points))) * 2
    random.shuffle(order)  # type: ignore[attr-defined]
    worse = np.concatenate([points[order], points + 0.25])
    assert hypervolume(worse, reference) == pytest.approx(volume, abs=1e-9)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_closed_forms(objectives: int) -> None:
    """One point is a box; a staircase of n steps covers (n + 1) / 2n of the square, whatever else is constant."""
    reference = np.ones(objectives)
    assert hypervolume(np.full((1, objectives), 0.25), reference) == pytest.approx(0.75**objectives)
    assert hypervolume(np.empty((0, objectives)), reference) == 0
    if objectives > 1:
        n = 10
        steps = np.zeros((n, objectives))
        steps[:, 0], steps[:, 1] = np.arange(n) / n, 1 - np.arange(1, n + 1) / n
        assert hypervolume(steps, reference) == pytest.approx((n + 1) / (2 * n))


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_optuna_finds_the_same(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    for size in (1, 5, 40):
        points = rng.random((size, objectives)).round(1)
        reference = np.ones(objectives)
        assert hypervolume(points, reference) == pytest.approx(compute_hypervolume(points, reference))


def test_so_many_darts_hit_it() -> None:
    rng = np.random.default_rng(0)
    points, darts = rng.random((30, 3)), rng.random((20_000, 3))
    hit = (points[None] <= darts[:, None]).all(axis=2).any(axis=1).mean()
    assert hypervolume(points, np.ones(3)) == pytest.approx(hit, abs=4 * math.sqrt(0.25 / 20_000))  # 4 standard errors


def test_a_broken_twin_that_adds_up_boxes_is_caught() -> None:
    points = np.array([[0.0, 0.5], [0.5, 0.0]])
    boxes = np.prod(1 - points, axis=1).sum()
    assert boxes != pytest.approx(inclusion_exclusion(points, np.ones(2)))


@pytest.mark.parametrize("reference", [[1.0], [1.0, math.nan], [1.0, math.inf], []])
def test_a_reference_point_is_a_finite_number_for_each_objective(reference: list[float]) -> None:
    with pytest.raises(ValueError, match="reference point"):
        hypervolume(np.zeros((1, 2)), reference)


@pytest.mark.parametrize("objectives", [2, 3])
def test_two_thousand_trials_take_a_moment_and_one_more_of_ten_thousand_nothing(objectives: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.random((10_000, objectives))
    began = time.process_time()
    whole = hypervolume(points[:2000], np.ones(objectives))
    assert time.process_time() - began < 2  # 0.05 s alone on a core
    volume = Hypervolume([1.0] * objectives)
    for point in points[:2000]:
        volume.add(point)
    assert volume.value == pytest.approx(whole)
    began = time.process_time()
    for point in points[2000:]:
        volume.add(point)
    assert time.process_time() - began < 8  # 1 ms each; 0.1 s for all alone on a core


def test_a_study_grows_below_one_reference_point() -> None:
    rows = [
        {"accuracy": 0.5, "translation_error": 0.5},
        {"accuracy": 0.9, "translation_error": 0.7},
        {"state": "FAILED"},
        {"accuracy": 0.7, "translation_error": 0.3},
        {"accuracy": 0.99, "translation_error": None},
        {"accuracy": 0.6, "translation_error": 0.4},
        {"state": "RUNNING"},
    ]
    study = made(rows)
    reference = reference_point(study)
    assert reference.point == {"accuracy": 0.5, "translation_error": 0.7}
    assert reference.given == ()
    (step,) = over_time(study)  # the first two are each the worst in something, the last one is dominated
    assert (step.trial, step.ended) == (3, 4)
    assert step.value == pytest.approx(0.2 * 0.4)
    assert step.hours == pytest.approx((60 * 4 + 5) / 3600)
    given = made(rows, references={"accuracy": 0.0})
    assert reference_point(given).point == {"accuracy": 0.0, "translation_error": 0.7}
    assert reference_point(given).given == ("accuracy",)
    values = [step.value for step in over_time(given)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.7 * 0.4)


def test_who_violates_a_constraint_adds_nothing() -> None:
    rows = [
        {"accuracy": 0.9, "parameters": 200.0},
        {"accuracy": 0.8, "parameters": 100.0},
        {"accuracy": 0.5, "parameters": 1.0},
    ]
    study = made(rows, {"accuracy": "maximize"}, constraints={"parameters": Bound(at_most=150)})
    assert [(step.trial, step.value) for step in over_time(study)] == [(1, pytest.approx(0.3))]


def test_one_objective_and_none_that_has_a_value() -> None:
    study = made([{"accuracy": 0.25}, {"accuracy": 0.75}], {"accuracy": "maximize"})
    assert [step.value for step in over_time(study)] == [0.5]
    for rows in ([], [{"state": "FAILED"}], [{"accuracy": 0.5, "translation_error": None}]):
        assert reference_point(made(rows, BOTH)).point is None
        assert over_time(made(rows, BOTH)) == []
