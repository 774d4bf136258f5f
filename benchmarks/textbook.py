"""The peer: the same study as a competent user would write it from the manuals of Ray Tune, Optuna and MLflow.

A function trainable, a DataLoader with per-image PIL transforms, OptunaSearch, MLflow's callback, and the measurement
written out in place. It trains the same networks on the same images for as many epochs as `equitune search` does, and
measures the same quantities; only the plumbing differs. Run by `benchmarks/search.py`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.optuna import OptunaSearch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset

from equitune.models.resnet import build
from equitune.priors import conv

SHIFTS = [(4, 0), (-4, 0), (0, 4), (0, -4), (1, 0), (0, 1)]


class Digits(Dataset):
    """Digits on a 12 x 12 canvas, as PIL images through a transform."""

    def __init__(self, images, labels, transform):
        from torchvision import transforms

        to_pil = transforms.ToPILImage()
        self.images = [
            to_pil(torch.nn.functional.pad(torch.tensor(image).float() / 16, (2, 2, 2, 2))) for image in images
        ]
        self.labels, self.transform = labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), int(self.labels[index])


def loaders(batch_size):
    from torchvision import transforms

    digits = load_digits()
    rest, test, rest_labels, test_labels = train_test_split(
        digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    train, validation, labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=0.2, stratify=rest_labels, random_state=0
    )
    normalise = [transforms.ToTensor(), transforms.Normalize((0.1357,), (0.2930,))]
    augment = transforms.Compose([transforms.RandomAffine(0, translate=(1 / 12, 1 / 12)), *normalise])
    return (
        DataLoader(Digits(train, labels, augment), batch_size, shuffle=True, drop_last=True),
        DataLoader(Digits(validation, validation_labels, transforms.Compose(normalise)), 128),
        DataLoader(Digits(test, test_labels, transforms.Compose(normalise)), 128),
    )


def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return hits / len(loader.dataset)


def features(model, images):
    """The outputs of the stem, each block, the last maps and the scores, by hooks."""
    found = {}
    modules = {name: module for name, module in model.named_modules() if name in model.layers}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


def equivariance(model, loader):
    """Chance-normalised error and correlation of every layer under every shift, on 128 images."""
    images = torch.cat([images for images, _ in loader])[:128]
    plain, errors = features(model, images), {}
    for shift in SHIFTS:
        for name, a in features(model, images.roll(shift, (2, 3))).items():
            b = plain[name]
            if b.ndim > 2:
                stride = 12 // b.shape[-1]
                spectrum = torch.fft.rfft2(b)
                rows = torch.fft.fftfreq(b.shape[-2])[:, None] * shift[0] / stride
                cols = torch.fft.rfftfreq(b.shape[-1]) * shift[1] / stride
                b = torch.fft.irfft2(spectrum * torch.exp(-2j * torch.pi * (rows + cols)), s=b.shape[-2:])
            a, b = a.double(), b.double()
            distance = (a - b).square().flatten(1).sum(1).mean()
            errors[name, shift] = float(distance / (a - b.roll(1, 0)).square().flatten(1).sum(1).mean())
            a, b = a - a.mean((0, *range(2, a.ndim)), keepdim=True), b - b.mean((0, *range(2, b.ndim)), keepdim=True)
            float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())
    chosen = [value for (name, shift), value in errors.items() if 1 in shift and "stages" in name]
    return sum(chosen) / len(chosen)


def consistency(model, loader):
    images = torch.cat([images for images, _ in loader])
    draws = [
        torch.stack([image.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (1, 2)) for image in images])
        for _ in range(2)
    ]
    with torch.no_grad():
        return float((model.eval()(draws[0]).argmax(1) == model(draws[1]).argmax(1)).float().mean())


def train(config):
    model, untrained = (
        build((1, 12, 12), 10, conv.build(), depth=config["depth"], width=config["width"]) for _ in range(2)
    )
    train_loader, validation_loader, _ = loaders(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-2, weight_decay=1e-2)
    steps = config["epochs"] * len(train_loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-2, total_steps=steps)
    for epoch in range(config["epochs"]):
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
        metrics = {
            "accuracy": accuracy(model, validation_loader),
            "loss": loss.item(),
            "error": 1.0,
            "consistency": 0.0,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        if epoch == config["epochs"] - 1:
            metrics["error"] = equivariance(model, validation_loader)
            metrics["untrained_error"] = equivariance(untrained, validation_loader)
            metrics["consistency"] = consistency(model, validation_loader)
            metrics["untrained_consistency"] = consistency(untrained, validation_loader)
        with tempfile.TemporaryDirectory() as folder:
            state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, Path(folder) / "checkpoint.pt")
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def read_test_split(results):
    """The test split for the trials that no other beats in accuracy, error and size, from their checkpoints."""
    *_, test_loader = loaders(32)
    rows = [(r.metrics["accuracy"], -r.metrics["error"], -r.metrics["parameters"], r) for r in results]
    for row in rows:
        beaten = any(all(a >= b for a, b in zip(o[:3], row[:3], strict=True)) and o[:3] != row[:3] for o in rows)
        if not beaten:
            config = row[3].config
            model = build((1, 12, 12), 10, conv.build(), depth=config["depth"], width=config["width"])
            with row[3].checkpoint.as_directory() as folder:
                model.load_state_dict(torch.load(Path(folder) / "checkpoint.pt")["model"])
            tested = accuracy(model, test_loader), equivariance(model, test_loader), consistency(model, test_loader)
            print(config, row[:3], tested)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("configurations", help="JSON list of {depth, width}")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    arguments = parser.parse_args()
    configurations = json.loads(arguments.configurations)
    space = {"depth": tune.choice([8, 14]), "width": tune.lograndint(4, 11), "epochs": arguments.epochs}
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(
                metric=["accuracy", "error"], mode=["max", "min"], points_to_evaluate=configurations
            ),
            num_samples=len(configurations),
        ),
        run_config=tune.RunConfig(
            name="textbook",
            storage_path=str(arguments.folder.absolute()),
            callbacks=[
                MLflowLoggerCallback(
                    tracking_uri=f"sqlite:///{arguments.folder.absolute() / 'mlflow.db'}",
                    experiment_name="textbook",
                    save_artifact=True,
                )
            ],
        ),
    )
    results = tuner.fit()
    print(f"{sum(result.error is None for result in results)} trials")
    read_test_split(results)


if __name__ == "__main__":
    main()
