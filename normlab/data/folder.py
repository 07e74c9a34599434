"""Image files in one folder per class."""

import os
from collections.abc import Sequence
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from normlab.data.dataset import ImageDataset, Transform
from normlab.data.splits import Integers
from normlab.errors import UserError

UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for files it cannot decode


class ClassFolders(NamedTuple):
    """The classes, sorted, and the image files ("class/name") with the number of their class."""

    classes: list[str]
    files: list[str]
    labels_N: Integers

    def empty(self) -> list[str]:
        """The classes without an image."""
        counts_K = np.bincount(self.labels_N, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts_K, strict=True) if count == 0]


class ImageFiles(ImageDataset):
    """Images decoded when they are read, to RGB; those with one channel are copied to three.

    Args:
        folder, files: an image is folder/file.
        least_side: JPEG files may be decoded at a half, a quarter or an eighth of their resolution as long as no side
            falls below this, which saves most of the time on large ones.
        seed, labels_N, eval_transform, train_transform: as in ImageDataset.
    """

    def __init__(
        self,
        seed: int,
        folder: Path,
        files: Sequence[str],
        labels_N: Integers,
        *,
        least_side: int,
        eval_transform: Transform,
        train_transform: Transform | None,
    ):
        super().__init__(seed, labels_N, eval_transform=eval_transform, train_transform=train_transform)
        self.folder = folder
        # One array: a list of a million strings would be copied, page by page, into every worker that touches it.
        self.files_N = np.array([os.fsencode(file) for file in files])
        self.least_side = least_side

    def read(self, index: int) -> Image.Image:
        path = self.folder / os.fsdecode(self.files_N[index])
        try:
            with Image.open(path) as image:
                image.draft(None, (self.least_side, self.least_side))
                return image.convert("RGB")
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be decoded: {error}; `normlab data verify` lists all such files") from None


def class_names(folder: Path, skip: str = "") -> list[str]:
    """The names of the folders in folder, sorted, without hidden ones and the one named skip."""
    names = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    return sorted(name for name in names if not name.startswith(".") and name != skip)


def scan(folder: Path, skip: str = "") -> ClassFolders:
    """The image files that lie right in the class folders of folder."""
    classes = class_names(folder, skip)
    members = [
        sorted(f"{name}/{entry.name}" for entry in os.scandir(folder / name) if _is_image(entry.name))
        for name in classes
    ]
    labels_N = np.repeat(np.arange(len(classes)), [len(files) for files in members])
    return ClassFolders(classes, list(chain.from_iterable(members)), labels_N)


def scan_complete(folder: Path, skip: str = "") -> ClassFolders:
    """As scan. Raises UserError when there is no class, or one without an image."""
    found = scan(folder, skip)
    if not found.classes:
        raise UserError(f"{folder} has no class folders")
    if empty := found.empty():
        raise UserError(f"{folder / empty[0]} has no image; {len(empty)} of {len(found.classes)} classes are empty")
    return found


def folder_problems(folder: Path, found: ClassFolders, num_classes: int, num_images: int) -> list[str]:
    """Everything wrong with the classes and images of a folder, one line each; decodes every image."""
    problems = []
    if len(found.classes) != num_classes:
        problems.append(f"{folder}: expected {num_classes} class folders, found {len(found.classes)}")
    if len(found.files) != num_images:
        problems.append(f"{folder}: expected {num_images} images, found {len(found.files)}")
    problems += [f"{folder / name}: the class has no image" for name in found.empty()]
    paths = [folder / file for file in found.files]
    with ThreadPool() as pool:  # threads, since decoding releases the lock of the interpreter
        decoded = track(
            pool.imap(_decoding_problem, paths, chunksize=64),
            description=f"decoding {folder.name}",
            total=len(paths),
            console=Console(stderr=True),
            transient=True,
        )
        problems += [problem for problem in decoded if problem]
    return problems


def _is_image(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png"))


def _decoding_problem(path: Path) -> str:
    try:
        with Image.open(path) as image:
            image.load()
    except UNREADABLE as error:
        return f"{path}: cannot be decoded ({error})"
    return ""
