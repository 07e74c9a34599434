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


def as_python2(data: np.ndarray, key: str, labels: list[int]) -> bytes:
    """A CIFAR file as the real ones are: pickled by Python 2 and its numpy, whose bytes are strings."""

    def text(value: bytes) -> bytes:
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<I", len(value))) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    shape = number(data.shape[0]) + number(data.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
    dtype += b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87Rq\x05"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(data.tobytes()) + b"tb"
    content = text(b"batch_label") + b"q\x02" + text(b"testing batch 1 of 1") + b"q\x03"
    content += text(key.encode()) + b"q\x04](" + b"".join(map(number, labels)) + b"e"
    content += text(b"data") + array + text(b"filenames") + b"](" + b"".join(text(b"x.png") for _ in labels) + b"e"
    return b"\x80\x02}q\x01(" + content + b"u."


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
