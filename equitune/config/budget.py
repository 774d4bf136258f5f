"""When a study has had enough: the budgets of `search` beside its number of trials."""

from collections.abc import Collection

from equitune.config.search import SearchSpec
from equitune.config.strict import Mistakes


def check_budgets(search: "SearchSpec", without_reference: Collection[str], on_gpu: bool, largest: float) -> None:
    """Refuses budgets that can never be reached, or would cut a design short.

    Args:
        search: the section.
        without_reference: the objectives that have none.
        on_gpu: whether trials run on GPUs.
        largest: the hypervolume that no front can exceed, where each objective has a reference.

    Raises:
        ValidationError: with each of them.
    """
    mistakes = Mistakes()
    if search.gpu_hours is not None and not on_gpu:
        sentence = "a trial uses no GPU, as resources.gpu is 0: set resources.gpu, or take hours"
        mistakes.add(("search", "gpu_hours"), sentence)
    if search.hypervolume is not None and without_reference:
        names = ", ".join(without_reference)
        example = f"{next(iter(without_reference))}: {{direction: ..., reference: 1.0}}"
        sentence = f"a target needs a reference of each objective, but {names} has none: write {example}"
        mistakes.add(("search", "hypervolume"), sentence)
    elif search.hypervolume is not None and search.hypervolume > largest:
        sentence = (
            f"no front has more than {largest:g} below these references, but got {search.hypervolume:g}: give less"
        )
        mistakes.add(("search", "hypervolume"), sentence)
    for name in ("hypervolume", "plateau"):
        if getattr(search, name) is not None and search.design:
            mistakes.add(("search", name), "a design trains each of its cells: leave it out")
    mistakes.raise_any()
