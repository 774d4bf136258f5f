"""What a study says and does where the cluster has no machine for its trials, without a cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from equitune.config.resources import Resources, Size
from equitune.driver import machines
from equitune.driver.machines import fits, require_machines
from equitune.driver.resources import Request
from equitune.errors import UserError

GPU = Resources(gpu=1, concurrent=8)
TWO_KINDS = Resources(cpu=1, sizes=(Size(parameters=1e6, cpu=16), Size(parameters=1e7, cpu=32)))


class Group:
    """A placement group, whose place there is from the n-th look on."""

    def __init__(self, name: str, looks: float) -> None:
        self.id, self.looks, self.is_given_back = SimpleNamespace(hex=lambda: name), looks, False

    def wait(self, timeout_seconds: float) -> bool:
        self.looks -= 1
        return self.looks <= 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Group]]:
    """Sets how a cluster answers; returns what it was asked for."""

    def answers(looks: float = 1, infeasible: tuple[str, ...] = (), up: float = 0, scales: bool = True) -> list[Group]:
        groups: list[Group] = []

        @contextmanager
        def asking(missing: dict[str, Request]) -> Iterator[dict[str, Any]]:
            groups.extend(Group(place, looks) for place in missing)
            yield dict(zip(missing, groups, strict=True))
            for group in groups:
                group.is_given_back = True

        monkeypatch.setattr(machines, "_asked", asking)
        monkeypatch.setattr(machines, "_infeasible", lambda: set(infeasible))
        monkeypatch.setattr(machines, "_machines", lambda: [{"CPU": up}])
        monkeypatch.setattr(machines, "_scales", lambda: scales)
        monkeypatch.setattr(machines, "LOOK_EVERY_S", 0.001)
        return groups

    return answers


@pytest.mark.parametrize(
    ("wanted", "up", "room"),
    [
        (Request(1, 0), [{}], False),  # a head that carries no work
        (Request(1, 0), [{}, {"CPU": 1.0}], True),
        (Request(3, 0), [{"CPU": 2.0}, {"CPU": 2.0}], False),  # four in all, but a trial lies on one machine
        (Request(1, 0.1), [{"CPU": 8.0}, {"GPU": 1.0}], False),
        (Request(1, 0.1), [{"CPU": 8.0, "GPU": 1.0}], True),
        (Request(2, 2, workers=2), [{"CPU": 8.0, "GPU": 1.0}], False),
        (Request(2, 2, workers=2), [{"CPU": 8.0, "GPU": 1.0}] * 2, False),
        (Request(2, 2, workers=2), [{"CPU": 8.0, "GPU": 2.0}], True),
        (Request(0.3, 0, workers=3), [{"CPU": 0.3}], True),
    ],
)
def test_a_trial_fits_on_what_is_up(wanted: Request, up: list[dict[str, float]], room: bool) -> None:
    assert fits(wanted, up) == room


def test_it_waits_until_a_machine_is_up_and_gives_its_place_back(asked: Callable[..., list[Group]]) -> None:
    groups, said = asked(looks=5), list[str]()
    require_machines(GPU, said.append)
    (group,) = groups
    assert (group.looks, group.is_given_back) == (0, True)
    assert said == ["waiting for machines: 1 CPU and 1 GPU for a trial"]


def test_it_asks_only_for_what_is_not_there(asked: Callable[..., list[Group]]) -> None:
    groups, said = asked(up=16), list[str]()
    require_machines(Resources(cpu=16), said.append)
    assert (groups, said) == ([], [])
    require_machines(TWO_KINDS, said.append)
    assert [group.id.hex() for group in groups] == ["resources.sizes.1"]
    assert said[0] == "waiting for machines: 32 CPUs for a trial"
    assert "resources.concurrent lets the cluster grow" in said[1]


def test_each_kind_of_trial_needs_a_machine(asked: Callable[..., list[Group]]) -> None:
    asked(looks=3, up=1, infeasible=("resources.sizes.1",))
    with pytest.raises(UserError, match=r"^resources\.sizes\.1: a trial asks for 32 CPUs, but the cluster has no mach"):
        require_machines(TWO_KINDS)


def test_what_is_infeasible_for_another_study_is_no_answer(asked: Callable[..., list[Group]]) -> None:
    asked(looks=3, infeasible=("another's",))
    require_machines(GPU)


def test_it_waits_no_longer_than_it_says(asked: Callable[..., list[Group]]) -> None:
    asked(looks=float("inf"))
    with pytest.raises(UserError, match="1 CPU and 1 GPU, but no machine with that came up within 0 minutes: `ray st"):
        require_machines(GPU, most_s=0.01)


def test_a_cluster_that_starts_no_machines_is_not_waited_for(asked: Callable[..., list[Group]]) -> None:
    groups = asked(scales=False)
    with pytest.raises(UserError, match="resources: a trial asks for 1 CPU and 1 GPU, but no machine of the cluster"):
        require_machines(GPU)
    assert groups == []
