"""Tiny datasets in the formats of the real ones, for the tests."""

import gzip
import io
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

RANDOM = np.random.RandomState(0)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "", train: int = 40, val: int = 20) -> dict[str, tuple]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, prefix, count in [("train", "train", train), ("val", "t10k", val)]:
        images, labels = RANDOM.randint(0, 256, (count, 28, 28), np.uint8), np.arange(count) % 10
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
        written[split] = images, labels
    return written


def write_cifar(folder: Path, files: dict[str, int], key: str, classes: int) -> dict[str, tuple]:
    """files: name -> number of images; rows hold the red, then the green, then the blue plane."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, count in files.items():
        data, labels = RANDOM.randint(0, 256, (count, 3072), np.uint8), [i % classes for i in range(count)]
        content = {"data": data, key: labels, "batch_label": name, "filenames": ["x.png"] * count}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        written[name] = data, labels
    return written


def write_cifar10(root: Path) -> dict[str, tuple]:
    files = {f"data_batch_{i}": 10 + i for i in range(1, 6)} | {"test_batch": 7}
    return write_cifar(root / "cifar-10-batches-py", files, "labels", 10)


def jpeg(size: tuple[int, int], mode: str = "RGB", color: object = None) -> bytes:
    """A JPEG file of this (width, height): one color, or noise."""
    shape = size[::-1] if mode == "L" else (*size[::-1], len(mode))
    noise = RANDOM.randint(0, 256, shape, np.uint8)
    image = Image.fromarray(noise, mode=mode) if color is None else Image.new(mode, size, color)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def write_class_folders(folder: Path, classes: list[str], count: int, suffix: str = ".jpg") -> None:
    """Images of varied sizes; the first of each class is grey, the second CMYK (ImageNet has both)."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            mode = {0: "L", 1: "CMYK"}.get(i, "RGB")
            content = jpeg((40 + 7 * i, 50 + number), mode)
            (folder / name / f"{name[:3]}_{i + 1:04d}{suffix}").write_bytes(content)
