"""Image files in one folder per class."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.progress import track

from normlab.console import PlainConsole
from normlab.data.dataset import ImageDataset, OnError, SampleError, Transform
from normlab.data.decode import DecodeError, decode
from normlab.data.download import one_line
from normlab.data.scan import ClassFolders
from normlab.data.splits import Integers

T = TypeVar("T")


class ImageFiles(ImageDataset):
    """Images decoded when they are read, to RGB; those with one channel are copied to three.

    Args:
        split: "train" or "val".
        folder, files: an image is folder/file.
        on_error: what becomes of one that cannot be decoded.
        least_side: JPEG files may be decoded at a half, a quarter or an eighth of their resolution as long as no side
            falls below this, which saves most of the time on large ones.
        seed, labels_N, eval_transform, train_transform: as in ImageDataset.
    """

    def __init__(
        self,
        split: str,
        seed: int,
        folder: Path,
        files: Sequence[str],
        labels_N: Integers,
        on_error: OnError,
        *,
        least_side: int,
        eval_transform: Transform,
        train_transform: Transform | None,
    ):
        super().__init__(seed, labels_N, eval_transform=eval_transform, train_transform=train_transform)
        self.split, self.folder, self.on_error = split, folder, on_error
        # One array: a list of a million strings would be copied, page by page, into every worker that touches it.
        self.files_N = np.array([os.fsencode(file) for file in files])
        self.least_side = least_side

    def read(self, index: int) -> Image.Image:
        file = os.fsdecode(self.files_N[index])
        try:
            return decode(self.folder / file, self.least_side)
        except DecodeError as error:
            raise SampleError(self.split, index, self.folder, file, str(error)) from None


def folder_problems(folder: Path, found: ClassFolders, num_classes: int, num_images: int) -> list[str]:
    """Everything wrong with the classes and images of a folder, one line each; decodes every image."""
    problems = [] if found.classes else [found.layout_problem(folder)]
    if len(found.classes) != num_classes:
        problems.append(f"{folder}: expected {num_classes} class folders, found {len(found.classes)}")
    if len(found.files) != num_images:
        problems.append(f"{folder}: expected {num_images} images, found {len(found.files)}")
    problems += found.unreadable
    problems += [f"{folder / name}: the class has no image" for name in found.empty()]
    return problems + decoding_problems(decode, [folder / file for file in found.files], folder.name)


def decoding_problems(read: Callable[[T], object], samples: Sequence[T], what: str) -> list[str]:
    """A line for each sample that `read` cannot use; of a sample that is no path, the error names the file."""
    with ThreadPool() as pool:  # threads, since decoding releases the lock of the interpreter
        decoded = track(
            pool.imap(partial(_decoding_problem, read), samples, chunksize=64),
            description=f"decoding {what}",
            total=len(samples),
            console=PlainConsole(stderr=True),
            transient=True,
        )
        return [problem for problem in decoded if problem]


def _decoding_problem(read: Callable[[T], object], sample: T) -> str:
    try:
        read(sample)
    except (DecodeError, OSError, MemoryError) as error:
        return f"{sample}: {one_line(error)}" if isinstance(sample, Path) else one_line(error)
    return ""
