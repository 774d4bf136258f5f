"""The models of a study's front in MLflow's registry: one registered model a study, one version a member.

A model is kept as a program that `torch.export` wrote, with its signature and real images as its example: loading it
runs no code of the file, and needs neither this program nor its source.
"""

import hashlib
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equitune.analysis.hypervolume import ended_at
from equitune.analysis.pareto import front, objective_values
from equitune.errors import UserError
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader, StudyRecord, TrialRecord
from equitune.tracking.store import DATABASES, Store, params_of, sentence

if TYPE_CHECKING:
    from equitune.measuring.servable import Servable

LoadModel = Callable[[TrialRecord], "Servable"]

TOLERANCE = 1e-5  # of the largest score: the program calls the same operators, in the same order
TRIAL, WEIGHTS, STUDY = "equitune.trial", "equitune.weights_sha256", "equitune.study_id"


def register_front(
    folder: StudyFolder, tracking_uri: str, load: LoadModel, say: Callable[[str], None] = lambda sentence: None
) -> int:
    """Register the models of the front that are not registered yet, and return how many that were.

    A version's tags name its trial, its objectives and whether it is on the front still; an alias `best_OBJECTIVE`
    points at the best member in each objective. What cannot be registered is said, and the others are.

    Args:
        folder: of the study, whose runs are in the store.
        tracking_uri: of the store; its registry takes the models.
        load: gives a trial's network with images and the scores that they must have.
        say: is told what happens, a sentence at a time.

    Raises:
        UserError: the store does not answer.
    """
    study = StudyReader(folder).read()
    try:
        return _Registry(study, folder, Store(tracking_uri, folder)).register(load, say)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the registry of MLflow at {tracking_uri} cannot be written: {sentence(error)}") from error


class _Registry:
    """One study's versions."""

    def __init__(self, study: StudyRecord, folder: StudyFolder, store: Store) -> None:
        self._study, self._folder, self._store = study, folder, store

    def register(self, load: LoadModel, say: Callable[[str], None]) -> int:
        members = front(self._study)
        if not members:
            return 0
        self._store.open(self._study)
        self._client = self._store.client
        self._make_name()
        versions = self._versions()
        known = {_key(version.tags): version.version for version in versions}
        missing = [trial for trial in members if self._key(trial) not in known]
        if missing:
            say(f"registering {len(missing)} {'models' if len(missing) > 1 else 'model'} of the front in MLflow")
        for trial in missing:
            try:
                known[self._key(trial)] = self._version(trial, load(trial))
            except UserError as error:
                say(f"the model of trial {trial.number} is not registered: {error}")
        on_front = {self._key(trial) for trial in members}
        for version in versions:
            self._mark(version.version, version.tags, _key(version.tags) in on_front)
        self._point(members, known)
        return sum(self._key(trial) in known for trial in missing)

    def _make_name(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(self._study.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            said = f"The networks on the Pareto front of the study {self._study.name}: images (B, C, H, W) in [0, 1]."
            self._client.create_registered_model(self._study.name, description=said)

    def _versions(self) -> list[Any]:
        """Return the versions of this study, and not of another one that had its name."""
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name = '{self._study.name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                return [version for version in found if version.tags.get(STUDY) == self._study.info["id"]]

    def _key(self, trial: TrialRecord) -> tuple[str, str]:
        path = self._folder.trial(trial.number).weights
        return str(trial.number), hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    def _version(self, trial: TrialRecord, network: "Servable") -> str:
        """Make the trial's version of its model."""
        number, digest = self._key(trial)
        tags = {STUDY: self._study.info["id"], TRIAL: number, WEIGHTS: digest, "equitune.front": "true"}
        tags |= {f"equitune.{name}": f"{value:.6g}" for name, value in self._values(trial).items()}
        self._store.ensure_run(self._study, trial)
        run_id = self._store.run_id(trial.number)
        model = self._logged(trial, run_id, digest) or self._log(trial, run_id, network, tags)
        # A registry in a database would ask the process's default store for models:/ID.
        is_database = self._client.tracking_uri.startswith(DATABASES)
        said = ", ".join(f"{name} {value:.4g}" for name, value in self._values(trial).items())
        version = self._client.create_model_version(
            self._study.name,
            model.artifact_location if is_database else f"models:/{model.model_id}",
            run_id,
            tags=tags,
            description=f"trial {number}: {said}",
            model_id=model.model_id,
        )
        return str(version.version)

    def _logged(self, trial: TrialRecord, run_id: str, digest: str) -> Any:
        """Return the trial's model, logged by a call that ended before it was registered; a torn one is removed."""
        same = f"name = '{_model_name(trial)}' and source_run_id = '{run_id}'"
        for model in self._client.search_logged_models([self._store.experiment], same):
            if model.status.name == "READY" and model.tags.get(WEIGHTS) == digest:
                return model
            self._client.delete_logged_model(model.model_id)
        return None

    def _log(self, trial: TrialRecord, run_id: str, network: "Servable", tags: dict[str, str]) -> Any:
        """Log the trial's model with its parameters and objectives; return it."""
        from mlflow.entities import LoggedModelOutput, Metric
        from mlflow.models import Model

        logged = self._client.create_logged_model(
            self._store.experiment,
            name=_model_name(trial),
            source_run_id=run_id,
            tags=tags,
            params=params_of(trial),
            model_type="classifier",
        )
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model"
            about = Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
            try:
                _save(network, path, about)
                _require_same_scores(network, path)
            except UserError:
                self._client.delete_logged_model(logged.model_id)
                raise
            self._client.log_model_artifacts(logged.model_id, str(path))
        self._client.finalize_logged_model(logged.model_id, "READY")
        time_ms, step = int(ended_at(trial) * 1000), trial.config.training.epochs
        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
        points = [  # the very points of the run: they are not doubled, but now also the model's
            Metric(name, value, time_ms, step, model_id=logged.model_id, run_id=run_id)
            for name, value in self._values(trial).items()
        ]
        self._client.log_batch(run_id, metrics=points)
        return logged

    def _values(self, trial: TrialRecord) -> dict[str, float]:
        values = objective_values(self._study, trial)
        return {name: value for name, value in values.items() if value is not None}

    def _mark(self, version: str, tags: dict[str, str], on_front: bool) -> None:
        said = str(on_front).lower()
        if tags.get("equitune.front") != said:
            self._client.set_model_version_tag(self._study.name, version, "equitune.front", said)

    def _point(self, members: list[TrialRecord], known: dict[tuple[str, str], str]) -> None:
        """Points an alias at the best member in each objective."""
        registered = [trial for trial in members if self._key(trial) in known]
        for name, direction in self._study.objectives.items():
            values = {known[self._key(trial)]: self._values(trial)[name] for trial in registered}
            if values:
                best = (max if direction == "maximize" else min)(values, key=values.__getitem__)
                self._client.set_registered_model_alias(self._study.name, f"best_{name}", best)


def _key(tags: dict[str, str]) -> tuple[str, str]:
    return tags.get(TRIAL, ""), tags.get(WEIGHTS, "")


def _model_name(trial: TrialRecord) -> str:
    return f"trial_{trial.number}"


def _save(network: "Servable", path: Path, model: Any) -> None:
    """Write the network as MLflow's PyTorch flavour has it.

    Raises:
        UserError: torch.export cannot take it.
    """
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images, scores = network.images, network.scores
    takes, gives = TensorSpec(images.dtype, (-1, *images.shape[1:])), TensorSpec(scores.dtype, (-1, scores.shape[1]))
    needs = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("mlflow", "numpy", "torch")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pytorch.save_model(
                network.model,
                str(path),
                mlflow_model=model,
                input_example=images[:2],
                signature=ModelSignature(Schema([takes]), Schema([gives])),
                serialization_format="pt2",  # the other one is a pickle, which runs code when it is loaded
                pip_requirements=needs,  # else they are guessed, by a program that takes seconds
            )
    except Exception as error:  # whatever torch's tracing raises
        raise UserError(f"torch.export cannot take it ({type(error).__name__}: {sentence(error)})") from error


def _require_same_scores(network: "Servable", path: Path) -> None:
    """Load the model as a server does, and hold it against the network: all images at once, and one alone.

    Raises:
        UserError: it gives other scores.
    """
    import mlflow.pyfunc
    import numpy as np

    loaded = mlflow.pyfunc.load_model(str(path))
    for count in (len(network.images), 1):
        scores = loaded.predict(network.images[:count])
        error = np.abs(scores - network.scores[:count]).max() / np.abs(network.scores).max()
        if not error <= TOLERANCE:
            raise UserError(f"the exported model's scores differ by {float(error):.1e} of the largest")
