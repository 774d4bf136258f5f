"""The test split, read once a trial, for those on the final front."""

from equitune.datasets._splits import Splits
from equitune.measures._evaluation import EvaluationSet
from equitune.records.folder import TrialFolder
from equitune.records.results import Measurement
from equitune.spec.trial import TrialConfig
from equitune.trial.build import initial_model, placed
from equitune.trial.device import make_deterministic
from equitune.trial.measure import measure
from equitune.trial.split import move, split_at_size
from equitune.trial.weights import read_tensors


def measure_on_test(
    config: TrialConfig, folder: TrialFolder, splits: Splits, processes: int | None = None
) -> dict[str, Measurement]:
    """Every metric of a finished trial, on the test split, from its saved weights, without the untrained control.

    Args:
        config: the trial's.
        folder: where its weights are.
        splits: its data.
        processes: that decode images which stay in files; None: as many as there are cores.
    """
    make_deterministic(config.device)
    model = placed(initial_model(config, splits.data_shape), config.device)
    model.load_state_dict(read_tensors(folder.weights, config.device))
    test = split_at_size(move(splits.test, config.device, processes), config.input)
    metrics, _ = measure(config, model, None, EvaluationSet(test.pixels, test.labels, "test"))
    return metrics
