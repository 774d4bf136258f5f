"""What the projection into MLflow takes of the machine while a study runs: processor time of its thread over the time.

python benchmarks/projection.py studies/capacity      (a recorded study; a minute and a half)

The trials of a recorded study appear in a new folder one after another, as if they were being trained.
"""

import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from equitune.records.folder import StudyFolder, read_json, write_json
from equitune.report.arms import write_answer
from equitune.report.profile import write_profile
from equitune.tracking.live import Follower
from equitune.tracking.projector import Projector
from equitune.tracking.store import default_tracking_uri

PACE_S = 3.0  # between two trials
LEAST_S = 80.0


def main() -> None:
    recorded = StudyFolder(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = StudyFolder(Path(temporary) / recorded.name)
        trials = list(recorded.trials())
        write_json(folder.study, read_json(recorded.study) | {"trials": len(trials) + 1})  # it does not end
        uri = default_tracking_uri(Path(temporary))
        follower = Follower(Projector(folder, uri, write_answer, write_profile, everything=False), folder, uri, print)
        thread = threading.Thread(target=follower.run, daemon=True)
        thread.start()
        began, processor_s, connected = time.monotonic(), time.process_time(), 0.0
        for trial in trials:
            folder.driver.write_text("{}")
            shutil.copytree(trial.path, folder.trial(trial.number).path)
            time.sleep(PACE_S)
            if follower.computed_s and not connected:
                connected = time.monotonic()
        time.sleep(max(0.0, began + LEAST_S - time.monotonic()))
        took_s, lasted_s = follower.computed_s, time.monotonic() - connected
        all_s = time.process_time() - processor_s
        follower.stop.set()
        thread.join()
    share = took_s / lasted_s
    print(f"projecting {len(trials)} trials in {lasted_s:.0f} s: {took_s:.2f} s, {share:.2%} (at most 1 %)")
    print(f"connecting, once: {all_s - took_s:.1f} s of processor time, most of it the import of MLflow")


if __name__ == "__main__":
    main()
