"""Conclusions against brute force and closed forms, on data with ties, gaps and duplicates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equitune.analysis.pareto import losses, non_dominated

settings.register_profile("fast", deadline=None, max_examples=100)
settings.load_profile("fast")

# Few distinct values, so that ties and duplicates abound.
tables = arrays(
    np.float64, st.tuples(st.integers(0, 12), st.integers(1, 3)), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan])
)


def brute_force(table: np.ndarray) -> list[bool]:
    rows = [tuple(row) for row in table]
    whole = [row for row in rows if not any(np.isnan(row))]
    return [
        row in whole and not any(all(a <= b for a, b in zip(o, row, strict=True)) and o != row for o in whole)
        for row in rows
    ]


@given(tables)
def test_the_front_is_that_of_brute_force(table: np.ndarray) -> None:
    assert non_dominated(table).tolist() == brute_force(table)


@given(tables)
def test_strictness_matters_where_rows_are_equal(table: np.ndarray) -> None:
    twice = np.concatenate([table, table])
    front = non_dominated(twice)
    assert front[: len(table)].tolist() == front[len(table) :].tolist() == non_dominated(table).tolist()


def test_directions_and_gaps() -> None:
    objectives = {"accuracy": "maximize", "error": "minimize"}
    table = losses([{"accuracy": 0.9, "error": 0.1}, {"accuracy": None, "error": 0.2}], objectives)
    assert table[0].tolist() == [-0.9, 0.1]
    assert np.isnan(table[1, 0])
    assert losses([], objectives).shape == (0, 2)


@pytest.mark.parametrize("n", [1, 50])
def test_a_straight_trade_off_is_all_front(n: int) -> None:
    x = np.linspace(0, 1, n)
    assert non_dominated(np.stack([x, 1 - x], 1)).all()
    assert non_dominated(np.stack([x, x], 1)).sum() == 1


def test_rounding_puts_no_exact_network_on_the_front() -> None:
    """Two exact networks, 3e-14 and 5e-14 from it: the more accurate one beats the other."""
    objectives = {"accuracy": "maximize", "error": "minimize"}
    rows = [{"accuracy": 0.5, "error": 3e-14}, {"accuracy": 0.6, "error": 5e-14}]
    assert non_dominated(losses(rows, objectives)).tolist() == [False, True]
    as_it_is = np.array([[-row["accuracy"], row["error"]] for row in rows])  # the broken twin
    assert non_dominated(as_it_is).all()
