"""Folders of JPEG files like ImageNet's: made where no data are given."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, QUALITY = 500, 375, 90  # ImageNet's most frequent size; the files come to about its mean of 110 kB
CLASSES = 10


def make_folders(root: Path, images: int, distinct: int = 64) -> float:
    """root/train with so many files and root/val with one a class; returns the mean size of a file in bytes.

    Only `distinct` of them are encoded, the rest are links to those: decoding costs the same each time.
    """
    rng = np.random.default_rng(0)
    source = root / "source"
    source.mkdir(parents=True)
    files = [source / f"{number}.jpg" for number in range(min(distinct, images))]
    for file in files:
        _picture(rng).save(file, quality=QUALITY)
    classes = min(CLASSES, images)
    for split, count in (("train", images), ("val", classes)):
        for number in range(count):
            folder = root / split / f"class{number % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            os.link(files[number % len(files)], folder / f"{number}.jpg")
    return sum(file.stat().st_size for file in files) / len(files)


def _picture(rng: np.random.Generator) -> Image.Image:
    """Noise of all scales, each as strong as the others, as in photographs."""
    total = np.zeros((HEIGHT, WIDTH, 3))
    for level in range(8):
        noise = rng.integers(0, 256, (max(2, HEIGHT >> level), max(2, WIDTH >> level), 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        total += np.asarray(layer) - 127.5
    return Image.fromarray(np.clip(127.5 + total / total.std() * 45, 0, 255).astype(np.uint8))
