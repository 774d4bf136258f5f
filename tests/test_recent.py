"""What TPE sees of a long study: a function of its trials, bounded, with the front in it."""

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from equitune.analysis.pareto import non_dominated
from equitune.search import recent
from equitune.search.recent import History

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
STATES = [TrialState.COMPLETE] * 5 + [TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST_SEEN", 30)
    monkeypatch.setattr(recent, "MOST_OF_FRONT", 12)


def drawn(n: int, seed: int) -> list[FrozenTrial]:
    """Trials in every state, with ties, a tenth of them infeasible."""
    rng, trials = np.random.default_rng(seed), []
    for number in range(n):
        state = STATES[rng.integers(len(STATES))]
        values = [float(value) for value in rng.integers(0, 40, 2)] if state == TrialState.COMPLETE else None
        trial = create_trial(
            state=state, values=values, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}
        )
        trial.number = number
        if state == TrialState.COMPLETE and rng.random() < 0.1:
            trial.system_attrs = {"constraints:bound": 1.0}
        trials.append(trial)
    return trials


def front(trials: list[FrozenTrial]) -> list[int]:
    able = [trial for trial in trials if trial.state == TrialState.COMPLETE and not trial.system_attrs]
    return [able[index].number for index in np.flatnonzero(non_dominated(np.array([t.values for t in able]) * [-1, 1]))]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_seen_is_the_front_and_what_is_recent(seed: int) -> None:
    trials, history = drawn(300, seed), History(DIRECTIONS)
    for n in range(1, 301, 7):  # as the study grows: some run at first, and end later
        growing = [
            create_trial(state=TrialState.RUNNING) if n - number < 9 else trial
            for number, trial in enumerate(trials[:n])
        ]
        for number, trial in enumerate(growing):
            trial.number = number
        seen = [trial.number for trial in history.seen(growing)]
        running = [trial.number for trial in growing if trial.state == TrialState.RUNNING]
        ended = [trial.number for trial in growing if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        members = front(growing)[-12:] if ended else []
        assert seen == sorted({*members, *ended[::-1][: 30 - len(members)], *running})
        assert seen == [trial.number for trial in History(DIRECTIONS).seen(growing)], (
            "it matters when one began to look"
        )
