"""What a trial asks for and what it may take: by size, by memory as predicted and as measured. No GPU is needed here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune.config.data_shape import DataShape
from equitune.config.load import load_study
from equitune.config.resources import Resources, Size
from equitune.config.trial import TrialConfig
from equitune.data.splits import Splits
from equitune.driver import resources as search_resources
from equitune.driver import run_here, worker
from equitune.driver.cluster import slots
from equitune.driver.resources import (
    Placement,
    Request,
    correction,
    placement_of,
    request_for,
    request_of,
    require_memory,
    share,
)
from equitune.errors import Infeasible, UserError, WorkerLost
from equitune.networks import blueprint, memory
from equitune.networks.blueprint import describe
from equitune.networks.build import initial_model
from equitune.networks.memory import GIB, Footprint, cap_memory, saved_bytes
from equitune.records.folder import StudyFolder, TrialFolder, write_json
from equitune.results.values import TrialResult
from equitune.training import run
from equitune.training.run import run_trial

SIZES = Resources(cpu=1, gpu=0.25, sizes=(Size(parameters=1e6, gpu=0.5), Size(parameters=1e7, gpu=1, cpu=4)))
STUDY = """\
study: sized
model: {{name: resnet, depth: 8, width: 4}}
objectives: {{accuracy: maximize}}
resources: {}
"""


# the file


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{gpu: -1}",
            "4:13 resources.gpu: is a share of a GPU from 0 to 1, a whole number of GPUs, or auto, but got -1",
        ),
        ("{gpu: 1.5}", "resources.gpu: is a share of a GPU from 0 to 1, a whole number of GPUs, or auto, but got 1.5"),
        (
            "{gpu: all}",
            "resources.gpu: is a share of a GPU from 0 to 1, a whole number of GPUs, or auto, but got 'all'",
        ),
        (
            "{gpu: 1, sizes: [{parameters: 1.0e6, gpu: 0.5}, {parameters: 1.0e5, gpu: 1}]}",
            "resources.sizes.1.parameters: sizes must ascend, but 100000 comes after 1e+06: put them in order",
        ),
        (
            "{sizes: [{parameters: 5}]}",
            "resources.sizes.0: asks for nothing: give it cpu, gpu, gpu_memory_gib or workers",
        ),
        ("{sizes: [{cpu: 2}]}", "resources.sizes.0.parameters: is required"),
        ("{sizes: {parameters: 5}}", "resources.sizes: must be a list, such as [{parameters: 1.0e6, gpu: 0.5}]"),
        ("{sizes: [{parameters: 5, gpus: 1}]}", "resources.sizes.0.gpus: unknown name 'gpus': did you mean 'gpu'?"),
        (
            "{gpu: 0, sizes: [{parameters: 5, gpu: 1}]}",
            "resources.sizes.0.gpu: a study runs on one kind of device, but gpu is 0 and here 1",
        ),
        ("{workers: 0}", "resources.workers: must be >= 1, but got 0"),
        (
            "{gpu: 2, workers: 2}",
            "resources.workers: each worker has a GPU of its own: leave it out, gpu: 2 trains with two",
        ),
        (
            "{gpu: auto, sizes: [{parameters: 5, workers: 2}]}",
            "resources.sizes.0.workers: each worker has a GPU of its own: leave it out, gpu: 2 trains with two",
        ),
        (
            "{workers: 2, sizes: [{parameters: 5, workers: 65}]}",
            "training.batch_size: 65 workers cannot share 64 images: raise it to 65 or more",
        ),
        (
            "{gpu: 4}\ntraining: {compile: {choice: [true, false]}}",
            "training.compile: is for one worker a trial, but there are 4: leave it out",
        ),
        (
            "{gpu: 8}\ntraining: {batch_size: {int: [4, 64], log: true}}",
            "training.batch_size: 8 workers cannot share 4 images: raise it to 8 or more",
        ),
        ("{gpu_memory_gib: 4}", "resources.gpu_memory_gib: gpu is 0: leave it out"),
        ("{gpu: auto, gpu_memory_gib: 4}", "resources.gpu_memory_gib: gpu: auto gives each trial what it needs"),
        (
            "{gpu: auto, sizes: [{parameters: 5, gpu: 1}]}",
            "resources.sizes.0.gpu: gpu: auto gives each trial its share: leave it out",
        ),
    ],
)
def test_nonsense_is_refused_in_a_sentence(text: str, sentence: str, study_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as error:
        load_study(study_file(STUDY.format(text)))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_asked_for_is_no_part_of_the_search(study_file: Callable[..., Path]) -> None:
    plain = load_study(study_file(STUDY.format("{cpu: 1}")))
    sized = load_study(study_file(STUDY.format("{cpu: 1, gpu: 0.5, sizes: [{parameters: 1.0e6, gpu: 1}]}")))
    assert plain.fingerprint() == sized.fingerprint()
    assert sized.resources == Resources(cpu=1, gpu=0.5, sizes=(Size(parameters=1e6, gpu=1),))
    shared = load_study(study_file(STUDY.format("{gpu: auto}")))
    assert shared.suggest(0, lambda name, distribution: 1).device == "cuda"


# by size


@pytest.mark.parametrize(
    ("parameters", "request_"),
    [
        (0, Request(1, 0.25)),
        (999_999, Request(1, 0.25)),
        (1_000_000, Request(1, 0.5)),
        (9_999_999, Request(1, 0.5)),
        (10_000_000, Request(4, 1)),
        (10**9, Request(4, 1)),
    ],
)
def test_the_largest_size_that_is_reached_decides(parameters: int, request_: Request) -> None:
    assert request_of(SIZES, parameters) == request_


def test_a_size_leaves_the_rest_as_it_is_for_all() -> None:
    asked = Resources(cpu=2, gpu=0.5, gpu_memory_gib=4, sizes=(Size(parameters=10, gpu=1), Size(parameters=20, cpu=3)))
    assert request_of(asked, 5) == Request(2, 0.5, 4)
    assert request_of(asked, 10) == Request(2, 1, 4)
    assert request_of(asked, 20) == Request(3, 0.5, 4)
    assert request_of(Resources(gpu="auto"), 5) == Request(1, 0.05)


def test_several_gpus_are_as_many_workers_which_share_what_a_trial_occupies() -> None:
    sized = Resources(cpu=4, gpu=0.5, sizes=(Size(parameters=10, gpu=4), Size(parameters=20, gpu=1)))
    assert [request_of(sized, parameters).workers for parameters in (5, 10, 20)] == [1, 4, 1]
    assert request_of(sized, 10).bundle == {"CPU": 4, "GPU": 4}
    cores = Resources(cpu=3, workers=2, sizes=(Size(parameters=10, workers=1),))
    assert [request_of(cores, parameters) for parameters in (5, 10)] == [Request(3, 0, workers=2), Request(3, 0)]
    assert (sized.most_workers(), cores.most_workers(), SIZES.most_workers()) == (4, 2, 1)
    assert placement_of(request_of(sized, 10)).bundles == [{"CPU": 4.0, "GPU": 4.0}]
    assert placement_of(request_of(sized, 5)).bundles == [{"CPU": 4.0, "GPU": 0.5}]
    assert slots(sized, {"CPU": 32.0, "GPU": 8.0}).concurrent == 8  # by their cores: GPUs would hold 16
    with pytest.raises(UserError, match=r"sizes\.0\.gpu: a trial asks for 4 GPU, but there are 2"):
        slots(sized, {"CPU": 32.0, "GPU": 2.0})


def test_as_many_run_at_once_as_fit_of_the_smallest_and_the_largest_must_fit() -> None:
    assert slots(SIZES, {"CPU": 16.0, "GPU": 2.0}).concurrent == 8
    assert slots(SIZES, {"CPU": 5.0, "GPU": 2.0}).concurrent == 5
    assert slots(Resources(gpu="auto"), {"CPU": 64.0, "GPU": 2.0}).concurrent == 40
    falling = Resources(cpu=2, sizes=(Size(parameters=10, cpu=1),))
    assert slots(falling, {"CPU": 4.0}).concurrent == 4
    with pytest.raises(UserError, match=r"resources\.sizes\.1\.cpu: a trial asks for 4 CPUs, but there are 2"):
        slots(SIZES, {"CPU": 2.0, "GPU": 2.0})
    with pytest.raises(UserError, match=r"resources\.gpu: auto shares GPUs among trials, but there is none"):
        slots(Resources(gpu="auto"), {"CPU": 2.0})


def test_what_no_gpu_can_give_is_refused_when_it_is_known() -> None:
    require_memory(SIZES, 16.0)
    require_memory(Resources(gpu="auto"), 4.0)
    capped = Resources(gpu=1, sizes=(Size(parameters=10, gpu_memory_gib=20),))
    with pytest.raises(UserError, match=r"sizes\.0\.gpu_memory_gib: a trial may take 20 GiB, but the GPU has 16\.0"):
        require_memory(capped, 16.0)
    with pytest.raises(
        UserError, match=r"resources\.gpu: 0\.25 of a GPU of 2\.0 GiB is no more than CUDA itself takes"
    ):
        require_memory(SIZES, 2.0)
    with pytest.raises(UserError, match="torch sees none"):
        require_memory(SIZES, 0.0)


# the memory that is predicted


def saved_in_graph(loss: Tensor, owned: set[int]) -> int:
    """What the nodes of a graph hold, read off the nodes themselves: another way than that of `saved_bytes`."""
    kept, seen, nodes = {}, set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        held = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        held += list(getattr(node, "saved_tensors", ()))
        for value in held:
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in owned:
                    kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
    return sum(storage.nbytes() for storage in kept.values())


def on_cpu(config: TrialConfig, shape: tuple[int, int, int], classes: int) -> int:
    model = initial_model(config, DataShape(shape, classes)).train()
    n = config.training.batch_size
    loss = functional.cross_entropy(model(torch.rand(n, *shape)), torch.zeros(n, dtype=torch.int64))
    return saved_in_graph(loss, {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()})


MODELS = [
    "{name: resnet, depth: 8, width: 6}",
    "{name: resnet, depth: 14, width: 4}\nprior: p4",
    "{name: cnn}",
    "{name: cnn}\nprior: local",
    "{name: vit, depth: 2}",
]


@pytest.mark.parametrize("model", MODELS)
def test_predicted_activations_are_what_autograd_saves(model: str, study_file: Callable[..., Path]) -> None:
    text = f"study: m\nmodel: {model}\ntraining: {{batch_size: 16}}\nobjectives: {{accuracy: maximize}}\n"
    config = load_study(study_file(text)).suggest(0, lambda name, distribution: 0)
    said = describe(config, DataShape((1, 12, 12), 10)).footprint
    held = on_cpu(config, (1, 12, 12), 10)
    # Kernels of the CPU keep a little more or less than the meta device does: statistics of norms, indices of pools.
    assert said.activations == pytest.approx(held, rel=0.05)
    half = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": 8})})
    of_half = describe(
        half, DataShape((1, 12, 12), 10)
    ).footprint.activations  # not one half: kernels that are made of weights are kept, too
    assert of_half < said.activations <= 2 * of_half


def test_a_chain_by_hand(small_config: TrialConfig) -> None:
    linear, images = nn.Linear(4, 3, bias=False), torch.rand(5, 4)
    kept, largest = saved_bytes(lambda: linear(images).relu().square().sum(), linear.parameters())
    assert (kept, largest) == (4 * (5 * 4 + 5 * 3), 4 * 5 * 4)  # the images and what relu gives, which square shares
    images.requires_grad_()  # now their gradient needs the weight, which nobody is said to own
    assert saved_bytes(lambda: linear(images).relu().square().sum(), ())[0] == kept + 4 * 3 * 4
    training = small_config.training
    parameters = 4 * describe(small_config, DataShape((1, 16, 16), 10)).parameters
    for changes, times in (({}, 2), ({"optimizer": "sgd"}, 1), ({"optimizer": "sgd", "momentum": 0.0}, 0)):
        config = small_config.model_copy(update={"training": training.model_copy(update=changes)})
        said = describe(config, DataShape((1, 16, 16), 10)).footprint
        assert (said.gradients, said.optimizer) == (parameters, times * parameters)


# auto


def test_shares_and_corrections() -> None:
    assert [share(need, 10.0) for need in (0.01, 0.5, 0.51, 5.0, 9.6, 10.0, 99.0)] == [0.05, 0.05, 0.1, 0.5, 1, 1, 1]
    assert correction([]) == 1.0
    assert correction([(2.0, 1.0), (1.0, 4.0)]) == 2.0
    assert correction([(1.0, 4.0), (1.0, 2.0)]) == 0.5


@pytest.fixture
def placement(
    tmp_path: Path, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Placement]]:
    """A placement over a study's folder; each trial is predicted to hold one GiB, but for constants."""
    monkeypatch.setattr(blueprint, "footprint_of", lambda *_: Footprint(GIB, 0, 0, 0, 0))
    monkeypatch.setattr(search_resources, "_predicted", {})

    def placed(resources: Resources, device_gib: float = 16.0) -> Placement:
        return Placement(resources, StudyFolder(tmp_path / "study"), small_splits, device_gib)

    return placed


def ended(tmp_path: Path, config: TrialConfig, number: int, peak_mib: float | None) -> None:
    folder = StudyFolder(tmp_path / "study").trial(number)
    write_json(folder.config, config.model_copy(update={"number": number}).to_json())
    provenance = {} if peak_mib is None else {"peak_memory_mib": str(peak_mib)}
    write_json(
        folder.result, TrialResult(number=number, state="COMPLETE", provenance=provenance).model_dump(mode="json")
    )


def test_auto_asks_for_what_is_predicted_corrected_by_what_was_measured(
    placement: Callable[..., Placement], small_config: TrialConfig, tmp_path: Path
) -> None:
    place = placement(Resources(gpu="auto"))
    config = small_config.model_copy(update={"number": 50})
    predicted = place.predicted_gib(config)
    assert predicted == pytest.approx(1 + memory.WORKSPACE_GIB, abs=1e-3)  # and the data, which are small
    assert place.needed_gib(config) == memory.CONTEXT_GIB + memory.SLACK * predicted
    assert place.request(config) == Request(1, 0.15)  # 1.875 of 16 GiB
    ended(tmp_path, small_config, 48, None)  # on the CPU, or lost
    assert place.request(config) == Request(1, 0.15)
    ended(tmp_path, small_config, 49, predicted * 1024 * 4)
    assert place.request(config) == Request(1, 0.4)  # 6.0 of 16 GiB
    assert placement(Resources(gpu="auto"), 4.0).request(config) == Request(1, 1.0)
    assert place({"number": 50, "trial": config.model_dump_json()}).required_resources == {"CPU": 1, "GPU": 0.4}
    assert place({"number": 49, "folder": str(tmp_path / "study/trials/00049"), "test": True}).head_cpus == 1


def test_placement_by_size(
    placement: Callable[..., Placement], small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = placement(SIZES)
    for parameters, gpu in ((10, 0.25), (2_000_000, 0.5)):
        monkeypatch.setattr(blueprint.Blueprint, "parameters", parameters)
        assert place.request(small_config) == Request(1, gpu)

    def impossible(*_: Any) -> int:
        raise Infeasible("no such network")

    monkeypatch.setattr(search_resources, "describe", impossible)
    assert place.request(small_config) == Request(1, 0.25)


# what a trial may take, as torch.cuda is told


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU of 16 GiB that is only talked to; the fractions that it was told."""
    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("_", (), {"total_memory": 16 * GIB}))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return told


def test_a_trial_is_held_to_its_share_and_the_next_to_its_own(cuda: list[float]) -> None:
    cap_memory(0.25, None)
    cap_memory(1, None)
    cap_memory(0.5, 4.0)
    cap_memory(1, 8.0)
    cap_memory(2, None)
    cap_memory(0.01, None)
    context = memory.CONTEXT_GIB / 16
    assert cuda == [0.25 - context, 1.0, 0.25, 0.5, 1.0, 0.0]


def test_a_worker_sets_the_cap_before_each_trial(
    cuda: list[float], small_config: TrialConfig, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = type("_", (), {"get_trial_resources": lambda self: type("_", (), {"required_resources": {"GPU": 0.5}})})
    monkeypatch.setattr(worker.tune, "get_context", context)
    worker._cap_memory(small_config, request_of(SIZES, 0))
    assert cuda == []  # on the CPU there is nothing to limit
    on_gpu = small_config.model_copy(update={"device": "cuda"})
    worker._cap_memory(on_gpu, request_for(on_gpu, SIZES, small_splits.data_shape))
    capped = Resources(gpu=0.5, sizes=(Size(parameters=10, gpu_memory_gib=2),))
    worker._cap_memory(on_gpu, request_for(on_gpu, capped, small_splits.data_shape))
    assert cuda == [0.5 - memory.CONTEXT_GIB / 16, 2 / 16]


def test_data_that_exceed_the_share_end_the_trial_as_infeasible(
    small_config: TrialConfig, small_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run_here, "device_data", full)
    folder = StudyFolder(tmp_path).trial(0)
    folder.path.mkdir(parents=True)
    result = worker._run(small_config, small_splits, folder)
    assert (result.state, result.cause) == ("INFEASIBLE", "out_of_memory")
    assert "its share of the GPU does not hold the data: CUDA out of memory" in (result.reason or "")
    assert TrialResult.model_validate_json(folder.result.read_bytes()) == result


def test_the_peak_of_a_trial_is_recorded_on_a_gpu_alone(
    small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_of = memory.peak
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert data_of("cuda") == {"peak_memory_mib": "3.0"}
    assert data_of("cpu") == {}


def test_what_a_trial_reports_has_no_peak_on_the_cpu(small_config: TrialConfig, small_data: Any) -> None:
    assert "peak_memory_mib" not in run_trial(small_config, small_data).provenance


def test_the_worker_of_a_lost_device_reports_nothing_and_ends(
    small_config: TrialConfig, small_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise WorkerLost("the GPU of node-1 does not answer any more: CUDA error: uncorrectable ECC error encountered")

    folder = StudyFolder(tmp_path).trial(0)
    folder.path.mkdir(parents=True)
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "fit", fails)
    monkeypatch.setattr(worker.tune, "report", reports.append)
    monkeypatch.setattr(TrialFolder, "claim", lambda self: None)
    proposed = {"folder": str(folder.path), "trial": small_config.model_dump_json()}
    with pytest.raises(WorkerLost):  # which ends its process: tests/test_team.py
        worker.trainable(proposed, small_splits, Resources(), None)  # type: ignore[arg-type]
    assert reports == []
    assert "uncorrectable ECC error" in folder.log.read_text()
