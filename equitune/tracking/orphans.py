"""Runs of a study that is gone: its folder was deleted, or its study.json and mlflow.json lost, and it has begun anew.

Nobody would end such runs any more, and their trials are trained, or shown, again under the new study's id. They are
kept, since they may be all that is left of what was found, but they are ended and marked.
"""

import platform
from collections.abc import Iterable
from typing import Any

from equitune.records.folder import StudyFolder

FOLDER = "equitune.folder"  # tag of a study's run: where the study lies; one folder holds one study
SUPERSEDED = "equitune.superseded_by"  # tag of every run of a study that is gone: the id of the one that replaced it
FRONT = "equitune.front"
REASON = "the study's folder was deleted, or its study.json and mlflow.json lost, and the study has begun anew"


def place_of_study(folder: StudyFolder) -> str:
    """Return where a study lies, as no other study's folder does: HOST:PATH, or the URL in an object store."""
    return str(folder.path) if folder.is_remote else f"{platform.node()}:{folder.path}"


def orphans(runs: Iterable[Any], study_id: str, place: str, is_own_store: bool) -> list[Any]:
    """Return the runs of studies that lay in this folder before, trials included, but for those that are marked.

    Args:
        runs: of the experiment.
        study_id: of the study that lies in the folder now.
        place: of the folder, from `place_of_study`.
        is_own_store: whether the store is the one beside the folder. Runs without the tag FOLDER, from before there was
            one, then count as this folder's; in a store that many share they may belong to anybody.
    """
    runs = [run for run in runs if run.data.tags.get("equitune.study_id", study_id) != study_id]
    own = (place, None) if is_own_store else (place,)
    parents = [run.data.tags for run in runs if run.data.tags.get("equitune.kind") == "study"]
    gone = {tags["equitune.study_id"] for tags in parents if tags.get(FOLDER) in own}
    return [run for run in runs if run.data.tags["equitune.study_id"] in gone and SUPERSEDED not in run.data.tags]


def supersede(client: Any, run: Any, study_id: str) -> None:
    """End a run, where nobody has, and mark it; the mark comes last, so that an interrupted call is made again."""
    run_id, name = run.info.run_id, run.info.run_name or ""
    if run.info.status == "RUNNING":
        client.set_tag(run_id, "equitune.state", "KILLED")
        client.set_tag(run_id, "equitune.reason", REASON)
        client.set_terminated(run_id, "KILLED")
    if run.data.tags.get(FRONT) == "true":
        client.set_tag(run_id, FRONT, "false")
    if not name.endswith(" (superseded)"):
        client.update_run(run_id, name=f"{name} (superseded)")
    client.set_tag(run_id, SUPERSEDED, study_id)
