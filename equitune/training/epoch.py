"""Model and data -> trained model. Reports every epoch; goes on from a checkpoint as if it had never stopped."""

import io
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune.config.trial import TrainingConfig
from equitune.data.split import AnySplit
from equitune.errors import Infeasible
from equitune.evaluation.image_set import EvaluationSet
from equitune.importing.weights import load_torch
from equitune.layers.relaxable import symmetry_penalty
from equitune.networks.build import Augment
from equitune.records.folder import TrialFolder, write_whole
from equitune.records.place import Place
from equitune.results.values import Epoch
from equitune.training.ranks import ALONE, Ranks

OnEpoch = Callable[[Epoch], None]
AtRung = Callable[[nn.Module, Epoch, float], dict[str, float]]  # model, its epoch, seconds of training -> metrics


class Diverged(Infeasible):
    """The training loss stopped being a number."""

    cause = "diverged"


def fit(
    model: nn.Module,
    train: AnySplit,
    validation: EvaluationSet,
    augmentation: list[Augment],
    training: TrainingConfig,
    *,
    seed: int,
    folder: TrialFolder | None = None,
    on_epoch: OnEpoch = lambda epoch: None,
    at_rung: AtRung = lambda model, epoch, seconds: {},
    ranks: Ranks = ALONE,
) -> float:
    """Trains in place.

    Args:
        model: with its initial weights, on the device of the data.
        train: training images.
        validation: held-out images; read after each epoch.
        augmentation: applied to each batch in this order.
        training: the recipe.
        seed: decides the order of images and all augmentation.
        folder: takes the record of each epoch and a checkpoint; where it holds one, training goes on from there.
        on_epoch: called after each epoch that is run here, with its record; what it raises ends the training.
        at_rung: what it returns becomes part of an epoch's record; it leaves the model as it is.
        ranks: that train together. The first one alone evaluates, and has a folder; the others hear from it.

    Returns:
        The seconds of training of all epochs, those included that another call has run; without their evaluation.

    Raises:
        Diverged: the loss is not finite; says at which step.
    """
    device = train.labels.device
    generator = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)  # of dropout
    optimizer = build_optimizer(model, training)
    num_steps = num_batches(len(train.labels), training.batch_size)
    done = _restore(ranks.told(_read(folder)), model, optimizer, generator)
    forward = ranks.spread(torch.compile(model) if training.compile else model)
    earlier = folder.read_epochs() if folder else []
    seconds = sum(record.train_s for record in earlier if record.epoch <= done)
    for epoch in range(done + 1, training.epochs + 1):
        started = time.perf_counter()
        first_step = (epoch - 1) * num_steps
        loss = train_epoch(forward, train, augmentation, training, optimizer, generator, first_step, ranks)
        train_s = time.perf_counter() - started
        seconds += train_s
        with ranks.led() as is_first:
            if not is_first:
                continue
            validation_loss, hits = evaluate(model, validation)
            record = Epoch(
                epoch=epoch,
                time=time.time(),
                train_loss=loss,
                validation_loss=validation_loss,
                validation_accuracy=hits / len(validation),
                lr=optimizer.param_groups[0]["lr"],
                train_s=train_s,
                images_per_s=num_steps * min(training.batch_size, len(train.labels)) / train_s,
            )
            record = record.model_copy(update={"metrics": at_rung(model, record, seconds)})
            if folder:  # the record first: a crash between the two repeats an epoch, and its record is written again
                folder.append_epoch(record)
                _save(folder.checkpoint, model, optimizer, generator, epoch)
            on_epoch(record)
    return seconds


def train_epoch(
    model: Callable[[Tensor], Tensor],
    train: AnySplit,
    augmentation: list[Augment],
    training: TrainingConfig,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    first_step: int = 0,
    ranks: Ranks = ALONE,
) -> float:
    """One pass over the training images in a fresh order; returns the mean loss.

    The images that do not fill the last batch wait for another epoch's order.
    """
    device, n = train.labels.device, len(train.labels)
    num_steps = num_batches(n, training.batch_size)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(model, nn.Module):
        model.train()
    losses = torch.zeros(num_steps, device=device)
    batch_size = min(training.batch_size, n)
    order = torch.randperm(n, generator=generator, device=device)[: num_steps * batch_size]
    for step, (images, labels) in enumerate(train.batches(*ranks.shared_out(order, batch_size))):
        if augmentation:
            images = ranks.in_place(images, batch_size)
            for augment in augmentation:
                images = augment(images, generator)
            images = ranks.part(images)
        if device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, first_step + step, num_steps)
        with autocast(training, device), ranks.whole_batch(batch_size):
            loss = functional.cross_entropy(model(images), labels, label_smoothing=training.label_smoothing)
        loss = ranks.scaled(loss, batch_size)
        if training.symmetry_penalty and isinstance(model, nn.Module):
            loss = loss + training.symmetry_penalty * symmetry_penalty(model).to(device)
        losses[step] = loss.detach()
        if device.type == "cpu":  # on a GPU this would wait for the device: looked at once, after the epoch
            losses[step] = ranks.mean(losses[step])
            _check_finite(losses[step : step + 1], first_step + step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        optimizer.step()
    if device.type != "cpu":
        losses = ranks.mean(losses)
    _check_finite(losses, first_step)
    return float(losses.mean())


def evaluate(model: nn.Module, images: EvaluationSet) -> tuple[float, int]:
    """Return the mean cross-entropy in nats, and the number of images classified correctly."""
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=images.labels.device)
    hits = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    with torch.inference_mode():
        for batch, labels in images.batches():
            scores = model(batch)
            loss += functional.cross_entropy(scores, labels, reduction="sum").double()
            hits += (scores.argmax(1) == labels).sum()
    return float(loss) / len(images), int(hits)


def learning_rate(training: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Return the rate at a step (from 0): linear warm-up, then half a cosine down to 0 at the end of training."""
    total, warmup = training.epochs * steps_per_epoch, training.warmup_epochs * steps_per_epoch
    if step < warmup:
        return training.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total - warmup, 1)
    return training.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Weight decay acts on matrices and kernels alone, not on biases and norms.

    A module that has a `decay_factor` decays its own matrices that many times as fast.
    """
    by_factor: dict[float, list[Tensor]] = {1.0: [], 0.0: []}
    seen: set[Tensor] = set()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.requires_grad and weight not in seen:
                seen.add(weight)
                factor = float(getattr(module, "decay_factor", 1.0)) if weight.ndim >= 2 else 0.0
                by_factor.setdefault(factor, []).append(weight)
    groups = [
        {"params": weights, "weight_decay": training.weight_decay * factor} for factor, weights in by_factor.items()
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum, nesterov=training.momentum > 0)
    return torch.optim.AdamW(groups, lr=training.lr, fused=True)


def num_batches(n: int, batch_size: int) -> int:
    """Full batches in an epoch; one, of all images, where there are fewer than a batch."""
    return max(n // batch_size, 1)


def autocast(training: TrainingConfig, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 arithmetic where asked for; weights and sums stay in fp32."""
    if training.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _check_finite(losses: Tensor, first_step: int) -> None:
    finite = losses.isfinite()
    if not finite.all():
        bad = int((~finite).nonzero()[0, 0])
        raise Diverged(f"diverged: the loss is {float(losses[bad])} at step {first_step + bad + 1}")


def _save(
    path: Place, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, epoch: int
) -> None:
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "dropout": torch.cuda.get_rng_state() if generator.device.type == "cuda" else torch.get_rng_state(),
    }
    buffer = io.BytesIO()  # torch itself tells a full disk as a RuntimeError
    torch.save(state, buffer)
    write_whole(path, buffer.getbuffer())


def _read(folder: TrialFolder | None) -> bytes:
    """Return a checkpoint as it was written; empty where there is none."""
    return folder.checkpoint.read_bytes() if folder and folder.checkpoint.exists() else b""


def _restore(saved: bytes, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> int:
    """Brings back everything a checkpoint holds; returns its epoch, 0 where there is none."""
    if not saved:
        return 0
    state = load_torch(io.BytesIO(saved))
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    (torch.cuda.set_rng_state if generator.device.type == "cuda" else torch.set_rng_state)(state["dropout"])
    return int(state["epoch"])
