"""What a study would do, found out before anything runs: its trials, their networks, a guess at the time."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from equitune.config.data_shape import DataShape
from equitune.config.space import Choice, Distribution, IntRange, Pick, Scalar
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.data.splits import Splits
from equitune.errors import Infeasible, UserError
from equitune.networks.blueprint import describe
from equitune.results.values import Verdict
from equitune.search.engine import suggested
from equitune.search.samplers import make_sampler, num_independent
from equitune.training.speed import train_seconds_per_image

MEASURE_PASSES = 16  # forward passes of one measure, roughly: two networks, the images and seven elements
TRIES = 10


@dataclass(frozen=True)
class PlannedTrial:
    """One line of a dry run."""

    config: TrialConfig
    parameters: int | None  # None: infeasible
    seconds: float | None
    reason: str | None = None
    exact: dict[str, Verdict] = field(default_factory=dict)  # by symmetry
    width: int | None = None  # where a rule has chosen another one than the configuration names


@dataclass(frozen=True)
class Plan:
    """A dry run. The first `num_exact` trials will run as shown; the later ones depend on results."""

    trials: list[PlannedTrial]
    num_exact: int

    @property
    def seconds(self) -> float:
        return sum(trial.seconds or 0.0 for trial in self.trials)

    def exactness(self) -> Iterator[str]:
        """Of each symmetry how many networks begin with it, what training may break, what breaks it in the others."""
        feasible = [trial.exact for trial in self.trials if trial.exact]
        for symmetry in feasible[0] if feasible else ():
            rules = Counter(exact[symmetry].broken_by for exact in feasible)
            yield f"exact under {symmetry}: {rules.pop(None, 0)} of {len(feasible)} trials"
            later = Counter(rule for exact in feasible if (rule := exact[symmetry].loosened_by))
            yield from (f"  {times} of them until trained: {rule}" for rule, times in later.most_common())
            yield from (f"  {times} not: {rule}" for rule, times in rules.most_common())


def plan(spec: StudySpec, splits: Splits) -> Plan:
    """Asks the sampler for every trial without telling it any result, and builds each network without weights.

    Raises:
        UserError: no network of the study can exist.
    """

    require_feasible(spec, splits.data_shape)
    trials: list[PlannedTrial] = []
    seconds_per_multiply_add = None
    for config in proposals(spec):
        try:
            blueprint = describe(config, splits.data_shape)
            cost = blueprint.cost
            cost.require_within(config.bounds)
        except Infeasible as error:
            trials.append(PlannedTrial(config, None, None, str(error)))
            continue
        if seconds_per_multiply_add is None:
            seconds_per_multiply_add = train_seconds_per_image(config, splits.data_shape) / cost.multiply_adds
        passes = MEASURE_PASSES / 3 * len(config.measures)  # a forward pass is a third of a training step
        images = config.training.epochs * len(splits.train) + passes * len(splits.validation)
        seconds = images * cost.multiply_adds * seconds_per_multiply_add
        exact = {symmetry: said.verdict for symmetry, said in blueprint.exactness.items()}
        trials.append(PlannedTrial(config, cost.parameters, seconds, exact=exact, width=cost.width))
    return Plan(trials, num_exact(spec))


def proposals(spec: StudySpec) -> list[TrialConfig]:
    """Return the study's trials as its sampler proposes them while it knows no results."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=list(spec.directions.values()))
    configs = []
    for number in range(spec.search.trials):
        study.sampler = make_sampler(spec, number, spec.given(number))
        configs.append(spec.suggest(number, partial(suggested, study.ask())))
    return configs


def num_exact(spec: StudySpec) -> int:
    """How many proposals do not depend on results."""

    return num_independent(spec.search)


def require_feasible(spec: StudySpec, data_shape: DataShape) -> None:
    """Refuses a study none of whose networks can be built; a few infeasible ones are left to the search.

    Raises:
        UserError: with the reason.
    """

    reasons: list[tuple[str, str]] = []
    for draw in range(TRIES):
        try:
            config = spec.suggest(draw, random_pick(draw))
            describe(config, data_shape)
        except Infeasible as error:
            reasons.append((" x ".join(map(str, config.input.shape_of(data_shape.image)[1:])), str(error)))
        else:
            return
    sides, reason = reasons[0]
    raise UserError(f"no network of study {spec.study} can be built for images of {sides}: {reason}")


def random_pick(draw: int) -> Pick:
    """Pick at random, the same values for equal draws."""
    rng = np.random.default_rng(draw)

    def pick(name: str, distribution: Distribution) -> Scalar:
        if isinstance(distribution, Choice):
            return distribution.choice[int(rng.integers(len(distribution.choice)))]
        if isinstance(distribution, IntRange):
            low, high = distribution.bounds
            return low + distribution.step * int(rng.integers((high - low) // distribution.step + 1))
        return float(rng.uniform(*distribution.bounds))

    return pick
