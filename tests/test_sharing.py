"""Studies that share a cluster: who gives way to whom, and what one that waits says."""

import importlib
import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from invented import invent
from rich.console import Console
from scene import Clock, Scene

from equitune.config.study import StudySpec
from equitune.driver import attendance, machines
from equitune.driver.attendance import PATIENCE_S, SLICE_S
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.report.terminal import StudyView
from equitune.search.engine import Engine, Task
from equitune.search.sharing import Cluster, Place
from equitune.search.storage import open_storage
from equitune.search.study_record import begin

OURS = "ours"


def cluster(held: dict[str, list[Any]], waiting: dict[str, list[Any]], total: Any = 2, own: str = OURS) -> Cluster:
    """A cluster whose programs hold and wait for places of so many CPUs, or of such amounts."""

    def amounts(each: Any) -> dict[str, float]:
        return {"CPU": float(each)} if isinstance(each, int | float) else each

    places = [
        Place(f"{kind}-{program}-{index}", program, amounts(each), is_held=kind == "held")
        for kind, programs in (("held", held), ("waiting", waiting))
        for program, several in programs.items()
        for index, each in enumerate(several)
    ]
    all_of_it = amounts(total)
    free = Counter(all_of_it)
    for place in places:
        if place.is_held:
            free.subtract(place.amounts)
    return Cluster(own, tuple(places), all_of_it, free)


@pytest.mark.parametrize(
    ("held", "waiting", "total", "expected"),
    [
        ({OURS: [1, 1]}, {}, 2, 0),  # nobody else is there
        ({OURS: [1, 1]}, {OURS: [1]}, 2, 0),  # only we wait
        ({OURS: [1, 1]}, {"b": [1, 1]}, 2, 2),
        ({OURS: [1], "b": [1]}, {"b": [1]}, 2, 0),  # it is even
        ({OURS: [1], "b": [1]}, {"c": [1]}, 2, 1),  # more programs than places: by turns
        ({OURS: [1, 1, 1], "b": [1]}, {"b": [1]}, 4, 1),
        ({OURS: [1, 1], "b": [1]}, {"b": [1]}, 3, 0),  # nobody would have gained
        ({OURS: [1] * 4}, {"b": [4]}, 4, 1),  # a large place becomes free one trial after another
        ({OURS: [1] * 4}, {"b": [5]}, 4, 0),  # which can never be
        ({OURS: [1]}, {"b": [1]}, 2, 0),  # there is room for it: it is about to begin
        ({OURS: [1, 1]}, {"b": [{"CPU": 1.0, "GPU": 1.0}]}, {"CPU": 2.0, "GPU": 0.0}, 0),  # what we do not have
        ({OURS: [1, 1]}, {"b": [{}]}, 2, 0),  # Ray Train's own, which asks for a sliver of a machine
        (
            {OURS: [{"CPU": 1.0, "GPU": 0.5}] * 2},
            {"b": [{"CPU": 1.0, "GPU": 1.0}]},
            {"CPU": 16.0, "GPU": 1.0},
            1,
        ),
    ],
)
def test_who_gives_way(held: Any, waiting: Any, total: Any, expected: int) -> None:
    now = cluster(held, waiting, total)
    ended = next(place.amounts for place in now.places if place.program == OURS)
    assert len(now.in_need(ended)) == expected


def test_what_is_being_given_back_counts_as_given() -> None:
    """Two trials that end at once do not both give way to one who has nothing."""
    now = cluster({OURS: [1, 1]}, {"b": [1]})
    assert now.in_need({"CPU": 1.0})
    assert not now.in_need({"CPU": 1.0}, leaving={"CPU": 1.0})


def test_what_others_have_is_said() -> None:
    assert cluster({OURS: [1, 1]}, {"b": [1]}).taken_by_others() == ""
    assert cluster({OURS: [1], "b": [1]}, {}).taken_by_others() == "1 of 2 CPUs"
    assert cluster({"b": [{"CPU": 1.0, "GPU": 1.0}]}, {}, {"CPU": 4.0, "GPU": 1.0}).taken_by_others() == (
        "1 of 4 CPUs and 1 of 1 GPU"
    )
    not_of_groups = Cluster(OURS, (), {"CPU": 4.0}, {"CPU": 1.0})  # tasks and actors of other programs
    assert not_of_groups.taken_by_others() == "3 of 4 CPUs"


def turns(num_places: int, programs: dict[str, int], seed: int, gives_way: bool = True, most: int = 3000) -> list[str]:
    """The order in which programs train so many trials each, of one place; who asks first, gets what is free.

    A trial that ends keeps its place for the next of its program, unless others are in need.
    """
    dice, left, order = random.Random(seed), dict(programs), []
    held: dict[str, int] = dict.fromkeys(programs, 0)
    for _ in range(most):
        wanting = [each for each in programs if min(num_places, left[each]) > held[each]]
        while wanting and sum(held.values()) < num_places:
            held[wanting[0] if not order else dice.choice(wanting)] += 1
            wanting = [each for each in programs if min(num_places, left[each]) > held[each]]
        running = [each for each in programs for _ in range(held[each])]
        if not running:
            return order
        ended = dice.choice(running)
        order.append(ended)
        left[ended] -= 1
        now = cluster(
            {each: [1] * count for each, count in held.items() if count},
            {each: [1] * (min(num_places, left[each]) - held[each]) for each in programs},
            num_places,
            ended,
        )
        if left[ended] < held[ended]:
            held[ended] -= 1
        elif gives_way and (needy := now.in_need({"CPU": 1.0})):
            held[ended] -= 1  # and it asks again when one of them has got it
            held[dice.choice(sorted(needy)).split("-")[1]] += 1
    return order


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("num_places", "num_programs"), [(2, 2), (2, 3), (4, 3), (1, 3), (3, 7)])
def test_nobody_waits_for_the_end_of_another(num_places: int, num_programs: int, seed: int) -> None:
    programs = {chr(97 + index): 30 for index in range(num_programs)}
    order = turns(num_places, programs, seed)
    assert Counter(order) == programs
    for name in programs:
        others_last = max(place for place, each in enumerate(order) if each != name)
        assert order.index(name) < others_last / 3, "it waited"


def test_without_giving_way_they_wait_for_each_other() -> None:
    """The broken twin: who has a place hands it on to its own next trial."""
    order = turns(2, {"a": 30, "b": 30, "c": 30}, 0, gives_way=False)
    assert order.index("c") > 28 or order.index("b") > 28


@pytest.fixture
def scene(small_spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scene]:
    def make(now: Cluster | None, is_shared: bool = True) -> Scene:
        made = Scene(tmp_path, small_spec, monkeypatch, is_shared=is_shared)

        def look() -> Cluster:
            assert now is not None, "nobody was to be asked"
            return made.cluster or now

        monkeypatch.setattr(attendance, "look_at_cluster", look)
        return made

    return make


def test_alone_on_its_own_ray_nothing_is_asked_and_workers_stay_warm(scene: Callable[..., Scene]) -> None:
    alone = scene(None, is_shared=False)
    alone.end_trial(0, 100)
    assert alone.controller._reuse_actors
    assert alone.controller._max_pending_trials == 2


def test_where_nobody_waits_workers_stay_warm(scene: Callable[..., Scene]) -> None:
    quiet = scene(cluster({OURS: [1, 1]}, {}))
    quiet.end_trial(0)
    assert quiet.controller._reuse_actors
    assert quiet.controller._max_pending_trials == 2


def test_a_place_that_was_given_back_is_not_asked_for_until_the_other_has_it(scene: Callable[..., Scene]) -> None:
    busy = scene(cluster({OURS: [1, 1]}, {"b": [1, 1]}))
    busy.end_trial(0)
    assert not busy.controller._reuse_actors
    assert busy.controller._max_pending_trials == 0
    busy.cluster = cluster({OURS: [1]}, {"b": [1, 1]})  # Ray has yet to give it
    busy.pass_s(2)
    assert busy.controller._max_pending_trials == 0
    busy.cluster = cluster({OURS: [1], "b": [1]}, {"b": [1]})
    busy.pass_s(1)
    assert busy.controller._max_pending_trials == 2
    busy.end_trial(1)
    assert busy.controller._reuse_actors, "it is even"


def test_a_worker_keeps_its_place_for_a_while(scene: Callable[..., Scene]) -> None:
    """Or studies that take turns would do nothing but start workers."""
    busy = scene(cluster({OURS: [1, 1]}, {"b": [1, 1]}))
    busy.end_trial(0, SLICE_S - 2)
    assert busy.controller._reuse_actors
    busy.end_trial(1)
    assert not busy.controller._reuse_actors


def test_who_does_not_take_what_is_free_is_waited_for_once(scene: Callable[..., Scene]) -> None:
    """Or a place that no machine can hold, although the cluster could, would stop a study for ever."""
    busy = scene(cluster({OURS: [1, 1]}, {"b": [1]}))
    busy.end_trial(0)
    busy.cluster = cluster({OURS: [1]}, {"b": [1]})
    busy.pass_s(PATIENCE_S + 2)
    assert busy.controller._max_pending_trials == 2
    busy.cluster = None
    busy.end_trial(1)
    assert busy.controller._reuse_actors


def test_who_was_too_late_is_given_another_place(scene: Callable[..., Scene]) -> None:
    """A third program was quicker. The broken twin, which takes that for no interest, would let it wait for ever."""
    busy = scene(cluster({OURS: [1, 1]}, {"b": [1]}))
    busy.end_trial(0)
    busy.cluster = cluster({OURS: [], "c": [1, 1]}, {"b": [1]})
    busy.pass_s(PATIENCE_S + 2)
    assert busy.controller._max_pending_trials == 2
    busy.cluster = None
    busy.end_trial(1)
    assert not busy.controller._reuse_actors


def test_a_large_place_is_gathered_trial_by_trial(scene: Callable[..., Scene]) -> None:
    busy = scene(cluster({OURS: [1] * 4}, {"b": [4]}, 4))
    for left in (3, 2, 1, 0):
        busy.end_trial(left, SLICE_S + 1 if left == 3 else 1)
        assert not busy.controller._reuse_actors
        busy.cluster = cluster({OURS: [1] * left}, {"b": [4]}, 4)
        busy.pass_s(3 * PATIENCE_S if left else 1)  # the next trial takes its time
        assert busy.controller._max_pending_trials == 0
    busy.cluster = cluster({"b": [4]}, {}, 4)
    busy.pass_s(1)
    assert busy.controller._max_pending_trials == 2


def test_a_study_without_a_place_says_so_and_why(scene: Callable[..., Scene]) -> None:
    waits = scene(cluster({"a": [1, 1]}, {OURS: [1, 1]}))
    trials = [waits.trial(number) for number in range(2)]
    waits.pass_s(PATIENCE_S - 1)
    assert waits.said == []
    waits.pass_s(100)
    assert waits.said == ["waiting for a place: others have 2 of 2 CPUs"]
    waits.controller.start(trials[0])
    waits.pass_s(2)
    assert waits.said[1:] == ["a place is free: going on"]


def test_a_worker_that_is_starting_is_no_waiting(scene: Callable[..., Scene]) -> None:
    starting = scene(cluster({OURS: [1]}, {}))
    starting.trial(0)
    starting.pass_s(100)
    assert starting.said == []


def test_after_ctrl_c_a_trial_that_waits_for_a_place_is_left_to_the_next_driver(scene: Callable[..., Scene]) -> None:
    """One that has a worker is finished. The broken twin would train what begins days after the interruption."""
    waits = scene(cluster({"a": [1], OURS: [1]}, {OURS: [1]}))
    trials = [waits.trial(number) for number in range(2)]
    waits.controller.start(trials[0])
    waits.pass_s(10 * PATIENCE_S)
    assert waits.controller.stopped == []
    waits.is_draining = True
    waits.pass_s(1)
    assert waits.controller.stopped == [trials[1]]


def test_a_trial_that_waits_uses_no_gpu_hours(small_spec: StudySpec, tmp_path: Path) -> None:
    resources = small_spec.resources.model_copy(update={"gpu": 1.0})
    spec = small_spec.model_copy(update={"resources": resources})
    folder, clock = StudyFolder(tmp_path / "small"), Clock()
    begin(folder, spec, None, ())
    engine = Engine(spec, folder, open_storage(folder, spec), now=clock)
    at_work: set[int] = set()
    engine.is_at_work = at_work.__contains__
    task = engine.next_task()
    assert isinstance(task, Task)
    clock.now_s += 3600
    engine.tick()
    at_work.add(task.number)
    clock.now_s += 1800
    engine.tick()
    assert engine._usage.gpu_s == 1800
    assert engine._usage.wall_s == 5400


def test_where_the_head_is_away_nobody_waits(scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = scene(cluster({OURS: [1, 1]}, {"b": [1]}))

    def away() -> Cluster:
        raise RuntimeError("the head does not answer")

    monkeypatch.setattr(attendance, "look_at_cluster", away)
    alone.end_trial(0)
    assert alone.controller._reuse_actors


@pytest.mark.parametrize(("looks", "over_after"), [(0, 9), (3, 9), (9, 3)])
def test_the_first_look_at_a_gpu_waits_for_one_and_can_be_ended(
    looks: int, over_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are had by others. It was asked for without a sign, and Ctrl-C was not heard."""
    groups, removed, asked = [], [], []

    def wait(timeout_seconds: float) -> bool:
        asked.append(timeout_seconds)
        return len(asked) > looks

    def placement_group(bundles: list[dict[str, float]]) -> Any:
        groups.append(SimpleNamespace(bundles=bundles, wait=wait))
        return groups[-1]

    module = importlib.import_module("ray.util.placement_group")  # a function of the package hides it
    monkeypatch.setattr(module, "placement_group", placement_group)
    monkeypatch.setattr(module, "remove_placement_group", removed.append)
    taken = cluster({"b": [{"CPU": 1.0, "GPU": 1.0}]}, {}, {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr(machines, "look_at_cluster", lambda: taken)
    told: list[str] = []
    with machines.waited_for({"GPU": 0.01}, told.append, lambda: len(asked) > over_after) as group:
        assert removed == []
        assert (group is None) == (over_after < looks)
    assert removed == groups
    assert told == ["waiting for a place: others have 1 of 4 CPUs and 1 of 1 GPU"] * (looks > 0)


def test_the_live_view_says_who_waits_for_a_worker(small_spec: StudySpec, tmp_path: Path) -> None:
    """Also one that had a worker before."""
    folder = invent(tmp_path / "small", small_spec, 3, states={1: "RUNNING", 2: "RUNNING"})
    folder.driver.touch()
    folder.trial(1).claim()

    def shown() -> str:
        console = Console(file=io.StringIO(), width=100)
        console.print(StudyView(folder, console)._live())
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    assert "trial 1: measuring, accuracy 0.570" in shown()
    assert "trial 2: waiting for a worker after epoch 2/2" in shown()
    folder.trial(1).release()
    assert "trial 1: waiting for a worker after epoch 2/2" in shown()


def test_a_trial_of_a_dead_driver_has_no_worker_until_one_claims_it(small_spec: StudySpec, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "small")
    begin(folder, small_spec, None, ())
    task = Engine(small_spec, folder, open_storage(folder, small_spec)).next_task()
    assert isinstance(task, Task)
    task.folder.claim()
    assert [trial.has_worker for trial in StudyReader(folder).read().trials] == [True]
    Engine(small_spec, folder, open_storage(folder, small_spec))  # the next driver
    assert [trial.has_worker for trial in StudyReader(folder).read().trials] == [False]
    assert not task.folder.is_held()
