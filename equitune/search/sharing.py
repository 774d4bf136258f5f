"""A cluster that several studies share: who holds which part of it, who waits, and when a study lets go of a place.

Ray gives a place to whoever asks first, and a study's warm workers would hand theirs on from trial to trial until its
end. So where another study waits that has less, the study gives a place back when a trial ends, and asks again later.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KINDS = ("CPU", "GPU")  # what places are counted in
Amounts = Mapping[str, float]
NOTHING: Amounts = {}


@dataclass(frozen=True)
class Place:
    """A place that a program has, or waits for: a placement group of Ray.

    Attributes:
        id: of the placement group.
        program: the driver's, as Ray calls it.
        amounts: CPUs and GPUs, of all its bundles.
        is_held: whether it has been given.
    """

    id: str
    program: str
    amounts: Amounts
    is_held: bool


@dataclass(frozen=True)
class Cluster:
    """A cluster at one moment, as one of its programs sees it.

    Attributes:
        own: the program.
        places: all that are held or waited for.
        total: what there is, CPUs and GPUs.
        available: what is free.
    """

    own: str
    places: tuple[Place, ...]
    total: Amounts
    available: Amounts

    def behind(self, given: Amounts = NOTHING) -> set[str]:
        """Return the ids of the places that are waited for by a program that has less than its due.

        A program that has nothing is due a place. One that has something is due another if it then has no more than is
        left to this one, which gives back the amounts `given`.
        """
        held: dict[str, Counter[str]] = {}
        for place in self.places:
            if place.is_held:
                held.setdefault(place.program, Counter()).update(place.amounts)
        left = self._share(held.get(self.own, NOTHING)) - self._share(given)
        found = set()
        for place in self.places:
            if place.is_held or place.program == self.own or not place.amounts:
                continue
            has = self._share(held.get(place.program, NOTHING))
            if has == 0 or has + self._share(place.amounts) <= left + 1e-9:
                found.add(place.id)
        return found

    def in_need(self, place: Amounts, leaving: Amounts = NOTHING) -> set[str]:
        """Return the ids of the places behind that this program would help by giving back one of its own.

        All that it holds counts as what it could give: a large place becomes free one trial after another. A place for
        which there is room is about to be given, or something else is in its way.

        Args:
            place: what it would give back.
            leaving: what it is giving back already.
        """
        free, reach = (_sum(several) for several in ((self.available, leaving), (self.available, *self._own())))
        found = self.behind(_sum((place, leaving)))
        return {
            each.id
            for each in self.places
            if each.id in found and not _fits(each.amounts, free) and _fits(each.amounts, reach)
        }

    def with_room(self) -> set[str]:
        """Return the ids of the places that are waited for although so much is free: no one machine may have it."""
        return {place.id for place in self.places if not place.is_held and _fits(place.amounts, self.available)}

    def taken_by_others(self) -> str:
        """Return what is neither free nor its own, such as `2 of 2 CPUs`; nothing where that is none."""
        own, said = _sum(self._own()), []
        for kind in KINDS:
            total = self.total.get(kind, 0.0)
            taken = total - self.available.get(kind, 0.0) - own.get(kind, 0.0)
            if taken > 1e-3:
                said.append(f"{taken:g} of {total:g} {kind}{'s' if total != 1 else ''}")
        return " and ".join(said)

    def _own(self) -> Iterable[Amounts]:
        return [place.amounts for place in self.places if place.is_held and place.program == self.own]

    def _share(self, amounts: Amounts) -> float:
        """Return the larger of the shares of the cluster's CPUs and GPUs."""
        return max((amount / self.total[kind] for kind, amount in amounts.items() if self.total.get(kind)), default=0.0)


def _fits(amounts: Amounts, room: Amounts) -> bool:
    return all(room.get(kind, 0.0) >= amount for kind, amount in amounts.items())


def _sum(several: Iterable[Amounts]) -> dict[str, float]:
    found: dict[str, float] = {}
    for amounts in several:
        for kind, amount in amounts.items():
            found[kind] = found.get(kind, 0.0) + amount
    return found
