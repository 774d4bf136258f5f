"""All trials of a study as one table, for pandas and whatever reads CSV or Parquet."""

from pathlib import Path
from typing import TYPE_CHECKING

from equitune.records.reader import StudyRecord
from equitune.report.front import plain, rows

if TYPE_CHECKING:
    import pandas as pd

FILES = ("trials.csv", "trials.parquet")


def trial_frame(study: StudyRecord) -> "pd.DataFrame":
    """One row a trial, in their order: state, metrics with standard errors, those of the test split, parameters."""
    import pandas as pd  # half a second to import

    header, *ended = rows(study)
    at = {name: index for index, name in enumerate(header)}
    for trial in study.trials:
        if trial.result is None:
            row = [trial.config.params.get(name) for name in header]
            row[at["trial"]], row[at["state"]], row[at["front"]] = trial.number, trial.state, False
            ended.append(row)
    frame = pd.DataFrame(ended, columns=header)
    seeds = {trial.number: (trial.config.seed, trial.config.replicate) for trial in study.trials}
    for place, name in enumerate(("seed", "replicate")):
        frame[name] = [seeds[number][place] for number in frame["trial"]]
    for name in frame.columns:
        kinds = {type(value) for value in frame[name].dropna()}
        if len(kinds) > 1 and not kinds <= {int, float}:  # Parquet has one type a column
            frame[name] = frame[name].map(lambda value: value if value is None else str(value))
    return frame.sort_values("trial", ignore_index=True).convert_dtypes()


def write_frame(study: StudyRecord, folder: Path) -> list[Path]:
    """Write the table as FILES; return their paths."""
    frame = trial_frame(study)
    csv, parquet = (folder / name for name in FILES)
    folder.mkdir(parents=True, exist_ok=True)
    frame.map(plain).rename(columns=plain).to_csv(csv, index=False)
    frame.to_parquet(parquet, index=False)
    return [csv, parquet]
