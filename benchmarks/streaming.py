"""Images a second of a folder that does not fit into memory: `stream: true` beside torch's DataLoader by the textbook.

    python benchmarks/streaming.py --images 3000 --size 224

JPEGs of 500 x 375 are invented, about as large in bytes as ImageNet's photographs. Both read them in a new random order
each epoch, from the page cache, and hand out floating-point batches in [0, 1] on the device. The textbook: ImageFolder,
Resize, CenterCrop, ToTensor, and a DataLoader with persistent workers and pinned memory. Epochs of the two alternate.
The first one counts separately: it holds the start of the processes.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from equitune.config.trial import DataConfig
from equitune.data.on_device import to_device
from equitune.data.splits import load_splits


def photograph(rng):
    """500 x 375 of smooth shapes, edges and some noise; about 110 kB as JPEG."""
    rough = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(rough).resize((500, 375), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((image + rng.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8))


def make_photographs(folder, images, classes=10):
    rng = np.random.default_rng(0)
    for index in range(images):
        path = folder / f"class{index % classes}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(rng).save(path, quality=93)


def textbook(folder, size, batch_size, workers, device):
    """An epoch, as often as it is called."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()],
    )
    loader = DataLoader(
        ImageFolder(folder, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device == "cuda",
    )

    def epoch():
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return epoch


def streamed(folder, size, batch_size, workers, device):
    config = DataConfig(
        name="imagefolder", args={"path": str(folder), "size": size, "stream": True}, validation=0.05, test=0.05
    )
    split = to_device(load_splits(config), device, workers).train
    n = len(split.labels) // batch_size * batch_size

    def epoch():
        yield from split.batches(torch.randperm(len(split.labels), device=device)[:n], batch_size)

    return epoch


def cpu_s():
    """Of this process and all that it has started."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def taken(epoch, device):
    """Images a second, and CPU milliseconds an image, of all processes."""
    started, cpu_started, images = time.perf_counter(), cpu_s(), 0
    for batch, _ in epoch():
        images += len(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - started), 1000 * (cpu_s() - cpu_started) / images


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="of images, instead of invented ones")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device_name = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    versions = f"torch {torch.__version__}, Pillow {Image.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {device_name}, {versions}")
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place) / "photos"
        if arguments.folder is None:
            make_photographs(folder, arguments.images)
        files = [path.stat().st_size for path in folder.rglob("*.jpg")]
        kilobytes = sum(files) / len(files) / 1000
        print(f"{len(files)} images of {kilobytes:.0f} kB, to {arguments.size} px, batches of {arguments.batch_size}")
        for workers in arguments.workers:
            settings = (folder, arguments.size, arguments.batch_size, workers, arguments.device)
            epochs = {"streamed": streamed(*settings), "textbook": textbook(*settings)}
            first = {name: taken(epoch, arguments.device)[0] for name, epoch in epochs.items()}
            rates, cpu_ms = ({name: [] for name in epochs} for _ in range(2))
            for _ in range(arguments.epochs):
                for name, epoch in epochs.items():
                    rate, milliseconds = taken(epoch, arguments.device)
                    rates[name].append(rate)
                    cpu_ms[name].append(milliseconds)
            ratios = [ours / theirs for ours, theirs in zip(rates["streamed"], rates["textbook"], strict=True)]
            print(
                f"{workers} processes: ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
            for name in epochs:
                rate, milliseconds = statistics.median(rates[name]), statistics.median(cpu_ms[name])
                print(
                    f"  {name}: {rate:.0f} images/s, {milliseconds:.2f} ms of CPU an image; first {first[name]:.0f}/s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
