"""For notebooks and scripts: a study as pandas tables and figures."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from equitune.analysis.pareto import front
from equitune.errors import UserError
from equitune.records.checked import is_there
from equitune.records.folder import StudyFolder
from equitune.records.place import place_of
from equitune.records.reader import StudyReader, StudyRecord
from equitune.report.front import interactive_front
from equitune.report.parts import Picture
from equitune.report.sections import chapter_of
from equitune.report.table import trial_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as InteractiveFigure


class Study:
    """A study as it stood when it was loaded.

    Attributes:
        record: its value objects: every trial with its configuration, epochs, metrics and profile.
        trials: one row a trial: state, parameters, metrics with their standard errors.
        front: the rows of the trials on the Pareto front, the best in the first objective first.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        self.record: StudyRecord = StudyReader(folder).read()
        for sentence in self.record.damaged:
            warnings.warn(sentence, stacklevel=3)
        self.trials: pd.DataFrame = trial_frame(self.record)
        numbers = [trial.number for trial in front(self.record)]
        self.front: pd.DataFrame = self.trials.set_index("trial", drop=False).loc[numbers].reset_index(drop=True)

    @property
    def name(self) -> str:
        return self.record.name

    def figures(self) -> "dict[str, Figure]":
        """Return the pictures of the study's report, by name; a notebook shows each."""
        pictures = (part for part in chapter_of(self.record, self._folder).parts() if isinstance(part, Picture))
        return {picture.name: picture.draw() for picture in pictures}

    def interactive_front(self) -> "InteractiveFigure":
        """Return the front as a plotly figure: hovering a trial shows its configuration."""
        from plotly.graph_objects import Figure

        return Figure(interactive_front(self.record))

    def profile(self, number: int) -> "pd.DataFrame":
        """Return what was measured of a trial, one row a layer, set of group elements and measure.

        Raises:
            UserError: there is no such trial.
        """
        import pandas as pd

        trial = next((trial for trial in self.record.trials if trial.number == number), None)
        if trial is None:
            raise UserError(f"study {self.name} has no trial {number}: it has {len(self.record.trials)}")
        return pd.DataFrame(trial.result.profile if trial.result else [])


def load_study(path: str | Path) -> Study:
    """Load a study from its folder, such as `studies/capacity` or `s3://bucket/studies/capacity`; it may still run.

    Warns of each file of a trial that is damaged; what it told is left out.

    Raises:
        UserError: there is no study in that folder, or its study.json is damaged.
    """
    found = place_of(str(path))
    folder = StudyFolder(found.expanduser().absolute() if isinstance(found, Path) else found)
    if not is_there(folder.study):
        raise UserError(f"{folder.path} holds no study: name the folder of one, such as studies/capacity")
    return Study(folder)
