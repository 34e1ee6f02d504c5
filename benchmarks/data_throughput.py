"""Images a second from shards to batches, ours and others', and captions a second.

    python benchmarks/data_throughput.py [--sides=256,512] [--cores=1] [--batches=4] [--rounds=24]
        [--augmentation=random_resized_crop|resize_random_crop]

Everyone decodes JPEGs of 4 to 3 (--sides: the shorter one, in pixels; quality 90, as detailed as
photographs) and makes a random view of 224 x 224 (--augmentation), on the same cores, one after the
other in every round; medians of all rounds, and of the ratios within a round. The others need
torch, torchvision and webdataset and are left out where one of them is missing. They normalise on
the host, as is customary; "uint8" is without, for comparison with ours, which leaves it to the
device. Ours tokenises the captions as well. Linux only.
"""

import argparse
import functools
import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from otter_jax.data import batches, images
from otter_jax.data.pair_loader import PairLoader
from otter_jax.data.sources import open_source
from otter_jax.data.texts import Tokenizer

QUALITY, SIZE, BATCH = 90, 224, 64
PAIRS, PHOTOS = 512, 8
WARM_UP = 6  # Batches; by then every worker has started and every buffer is full.
MEAN = STD = (0.5, 0.5, 0.5)
OURS = ("decoding=1", "decoding=2")
AUGMENTATIONS = ("random_resized_crop", "resize_random_crop")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default="256,512", help="shorter sides of the JPEGs, in pixels")
    parser.add_argument("--cores", default="1", help="numbers of cores")
    parser.add_argument("--batches", type=int, default=4, help=f"batches of {BATCH} a measurement")
    parser.add_argument("--rounds", type=int, default=24, help="measurements of each")
    parser.add_argument("--augmentation", choices=AUGMENTATIONS, default=AUGMENTATIONS[0])
    arguments = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    for side in map(int, arguments.sides.split(",")):
        os.sched_setaffinity(0, available[:1])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            captions = write_pairs(folder, side)
            tokenizer = Tokenizer(write_tokenizer(folder / "tokenizer", captions), max_tokens=32)
            print_stages(folder, tokenizer, captions, arguments.augmentation)
            for cores in map(int, arguments.cores.split(",")):
                os.sched_setaffinity(0, available[:cores])
                print_comparison(compare(folder, tokenizer, cores, arguments), side, cores)


def print_comparison(rounds: dict[str, list[tuple[float, float]]], side: int, cores: int) -> None:
    """Print the medians of `compare`, and how many times as many images a CPU second ours are."""
    times = " | ".join(f"times {label}" for label in OURS)
    print(f"\n| from {side} px, {cores} core(s) | a second | a second of CPU | {times} |")
    print("|---|---|---|---|---|")
    ours = [np.array(rounds[label])[:, 1] for label in OURS]
    for label, rates in rounds.items():
        wall, cpu = np.array(rates).T
        ratios = " | ".join(f"{np.median(own / cpu):.2f}" for own in ours)
        print(
            f"| {label} | {np.median(wall):,.0f} | {np.median(cpu):,.0f} | {ratios} |", flush=True
        )


def compare(
    folder: Path, tokenizer: Tokenizer, cores: int, arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Return `measure` of every pipeline in every round."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        for label, start in pipelines(folder, tokenizer, cores, arguments.augmentation).items():
            found.setdefault(label, []).append(measure(start(), arguments.batches))
    return found


def measure(stream: Iterator[Any], count: int) -> tuple[float, float]:
    """Return images a second, and a second of CPU, once the pipeline runs evenly."""
    for _ in range(WARM_UP):
        next(stream)
    start, used = time.perf_counter(), cpu_seconds()
    for _ in range(count):
        next(stream)
    made = count * BATCH
    return made / (time.perf_counter() - start), made / (cpu_seconds() - used)


def cpu_seconds() -> float:
    """Return what this process and its workers have used, which others' programs leave alone."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def pipelines(
    folder: Path, tokenizer: Tokenizer, cores: int, augmentation: str
) -> dict[str, Callable[[], Iterator[Any]]]:
    """Yield what is compared: functions that start an endless stream of batches."""
    found = {
        label: functools.partial(our_batches, folder, tokenizer, cores, augmentation, decoding)
        for decoding, label in enumerate(OURS, start=1)
    }
    try:
        import torch
        import torchvision
        import webdataset
    except ModuleNotFoundError as error:
        print(f"(without the others: there is no {error.name})")
        return found
    torch.set_num_threads(1)  # As in its workers; more would wait for each other.
    workers = 0 if cores == 1 else cores  # A worker beside the main process only adds copying.
    normalized, raw = (
        torch_transform(torchvision.transforms, augmentation, floats) for floats in (True, False)
    )
    return found | {
        "DataLoader, Pillow, torchvision": lambda: torch_batches(folder, normalized, workers),
        "the same, uint8": lambda: torch_batches(folder, raw, workers),
        "webdataset, Pillow, torchvision": lambda: webdataset_batches(
            webdataset, folder, normalized, workers
        ),
    }


def our_batches(
    folder: Path, tokenizer: Tokenizer, threads: int, augmentation: str, decoding: int
) -> Iterator[Any]:
    """Yield batches as training reads them."""
    loader = PairLoader(
        open_source(f"webdataset:{folder}"),
        tokenizer,
        image_size=SIZE,
        fit="crop",
        augmentation=augmentation,
        flip=False,
        seed=0,
        decoding=decoding,
    )
    return batches.batches(loader, PAIRS, batch_size=BATCH, seed=0, threads=threads)


def torch_transform(
    transforms: Any, augmentation: str, floats: bool
) -> Callable[[Image.Image], Any]:
    """Return the transform of a PyTorch pipeline, with the normalisation or without."""
    if augmentation == "random_resized_crop":
        view = [transforms.RandomResizedCrop(SIZE, images.CROP_SCALE, images.CROP_RATIO)]
    else:
        bicubic = transforms.InterpolationMode.BICUBIC
        shorter_side = round(SIZE * images.RESIZE_FACTOR)
        view = [transforms.Resize(shorter_side, bicubic), transforms.RandomCrop(SIZE)]
    if not floats:
        return transforms.Compose([*view, transforms.PILToTensor()])
    normalize = transforms.Normalize(MEAN, STD)
    return transforms.Compose([*view, transforms.ToTensor(), normalize])


class ImageFolder:
    """A map-style data set of JPEG files, as the released code of OTTER reads them."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Any]):
        """List the files."""
        self.paths, self.transform = sorted(folder.glob("*.jpg")), transform

    def __len__(self) -> int:
        """Return how many files."""
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        """Return one transformed image."""
        return self.transform(Image.open(self.paths[number]).convert("RGB"))


def torch_batches(folder: Path, transform: Callable, workers: int) -> Iterator[Any]:
    """Yield batches of a DataLoader over files."""
    from torch.utils.data import DataLoader, RandomSampler

    data = ImageFolder(folder, transform)
    sampler = RandomSampler(data, replacement=True, num_samples=10**6)
    return iter(DataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=workers))


def webdataset_batches(
    webdataset: Any, folder: Path, transform: Callable, workers: int
) -> Iterator[Any]:
    """Yield batches of a webdataset over the same shards."""
    from torch.utils.data import DataLoader

    data = (
        webdataset.WebDataset(
            [str(path) for path in sorted(folder.glob("*.tar"))],
            resampled=True,
            shardshuffle=False,
        )
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(transform, str)
        .batched(BATCH)
    )
    return iter(DataLoader(data, batch_size=None, num_workers=workers))


def print_stages(
    folder: Path, tokenizer: Tokenizer, captions: list[str], augmentation: str
) -> None:
    """Print what one core does a second, stage by stage."""
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:PHOTOS]]
    arrays = [images.decode(data) for data in files]
    rng = np.random.default_rng(0)
    texts = [captions[start : start + BATCH] for start in range(0, PAIRS, BATCH)]
    kilobytes = np.mean([len(data) for data in files]) / 1024

    def crop(array: np.ndarray) -> np.ndarray:
        return images.training_transform(array, SIZE, rng, augmentation)

    print(f"One core; files of {kilobytes:.0f} KB\n\n| stage | a second |\n|---|---|")
    for stage, function, values, each in (
        ("decode", images.decode, files, 1),
        (augmentation, crop, arrays, 1),
        ("tokenize, texts", tokenizer, texts, BATCH),
    ):
        print(f"| {stage} | {each * calls_per_second(function, values):,.0f} |", flush=True)


def calls_per_second(function: Callable[[Any], Any], values: list[Any], rounds: int = 5) -> float:
    """Return calls a second with each of the values, in the best round."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for value in values:
            function(value)
        seconds.append(time.perf_counter() - start)
    return len(values) / min(seconds)


def photo_like(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return noise that needs the two bits a pixel of photographs as a JPEG; uint8."""
    across, down = np.fft.fftfreq(width) * width, np.fft.fftfreq(height) * height
    frequency = np.maximum(np.hypot(across, down[:, None]), 1.0)
    light, red, blue = (
        np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.4).real
        for _ in range(3)
    )
    colours = np.stack([light + 0.3 * red, light, light + 0.3 * blue], axis=2)
    return np.clip(colours / colours.std() * 50 + 128, 0, 255).astype(np.uint8)


def write_pairs(folder: Path, side: int) -> list[str]:
    """Write PAIRS images as .jpg files and, with captions, as tar shards; returns the captions."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(PHOTOS):
        buffer = io.BytesIO()
        Image.fromarray(photo_like(rng, side, side * 4 // 3)).save(buffer, "JPEG", quality=QUALITY)
        photos.append(buffer.getvalue())
    source = open_source("open_clipart")
    captions = [source[number].caption for number in range(PAIRS)]
    half = PAIRS // 2
    for shard, start in enumerate((0, half)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(start, start + half):
                photo = photos[number % PHOTOS]
                (folder / f"{number:05d}.jpg").write_bytes(photo)
                for suffix, data in (("jpg", photo), ("txt", captions[number].encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return captions


def write_tokenizer(folder: Path, captions: list[str]) -> Path:
    """Return a WordPiece tokenizer of BERT's kind, with a vocabulary made from the captions."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(captions, vocab_size=8000, show_progress=False)
    folder.mkdir()
    tokenizer.save_model(str(folder))
    settings = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


if __name__ == "__main__":
    main()
