"""The test split, read once a trial, for those on the final front."""

from equitune.config.trial import TrialConfig
from equitune.data.split import move, split_at_size
from equitune.data.splits import Splits
from equitune.evaluation.image_set import EvaluationSet
from equitune.importing.weights import read_tensors
from equitune.networks.build import initial_model, placed
from equitune.networks.device import make_deterministic
from equitune.records.folder import TrialFolder
from equitune.results.values import Measurement
from equitune.training.measure import measure


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
