"""Image files in one folder per class."""

import os
import stat
from collections.abc import Sequence
from errno import EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENXIO, EPERM
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from normlab.console import PlainConsole
from normlab.data.dataset import ImageDataset, OnError, SampleError, Transform
from normlab.data.download import one_line
from normlab.data.splits import Integers
from normlab.errors import UserError

# What the system says about a file itself; other errors (of the disk, the network, too many open files) may pass.
_ABOUT_THE_FILE = {EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENXIO, EPERM}
_DEEP = ("I", "F")  # modes of more than 8 bits a channel start so; turned into RGB, their pixels would be clipped


class DecodeError(Exception):
    """A file that holds no image to use; the message says why, without its path."""


class ClassFolders(NamedTuple):
    """The classes, sorted, and the image files ("class/name") with the number of their class."""

    classes: list[str]
    files: list[str]
    labels_N: Integers
    unreadable: list[str]  # a line for every class folder that cannot be listed

    def empty(self) -> list[str]:
        """The classes without an image."""
        counts_K = np.bincount(self.labels_N, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts_K, strict=True) if count == 0]


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


def decode(path: Path, least_side: int | None = None) -> Image.Image:
    """The image in RGB; a JPEG reduced as long as no side falls below least_side.

    Raises:
        DecodeError: the file is missing, unreadable, damaged, or has more than 8 bits a channel.
        OSError: the disk or the system failed; the file may be good.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise DecodeError("it is no regular file")
        with Image.open(path) as image:
            if image.mode.startswith(_DEEP):
                raise DecodeError(f"its pixels are of mode {image.mode}, not of 8 bits a channel")
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            return image.convert("RGB")
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise DecodeError("it is empty" if empty else "it is no image, or one that is damaged") from None
    except OSError as error:
        if error.errno is not None and error.errno not in _ABOUT_THE_FILE:
            raise
        raise DecodeError(f"cannot be decoded ({error.strerror or one_line(error)})") from None
    except Exception as error:  # damaged bytes make PIL raise SyntaxError, ValueError, DecompressionBombError, ...
        raise DecodeError(f"cannot be decoded ({one_line(error)})") from None


def class_names(folder: Path, skip: str = "") -> list[str]:
    """The names of the folders in folder, sorted, without hidden ones and the one named skip. Raises UserError."""
    names = (entry.name for entry in _listed(folder) if entry.is_dir())
    return sorted(name for name in names if not name.startswith(".") and name != skip)


def scan(folder: Path, skip: str = "") -> ClassFolders:
    """The image files that lie right in the class folders of folder. Raises UserError if that cannot be listed."""
    classes = class_names(folder, skip)
    members, unreadable = [], []
    for name in classes:
        try:
            members.append(sorted(f"{name}/{entry.name}" for entry in _listed(folder / name) if _is_image(entry.name)))
        except UserError as error:
            members.append([])
            unreadable.append(str(error))
    labels_N = np.repeat(np.arange(len(classes)), [len(files) for files in members])
    return ClassFolders(classes, list(chain.from_iterable(members)), labels_N, unreadable)


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be listed ({error.strerror})") from None


def scan_complete(folder: Path, skip: str = "") -> ClassFolders:
    """As scan. Raises UserError when there is no class, or one without an image."""
    found = scan(folder, skip)
    if not found.classes:
        raise UserError(f"{folder} has no class folders")
    if found.unreadable:
        raise UserError(found.unreadable[0])
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
    problems += found.unreadable
    problems += [f"{folder / name}: the class has no image" for name in found.empty()]
    paths = [folder / file for file in found.files]
    with ThreadPool() as pool:  # threads, since decoding releases the lock of the interpreter
        decoded = track(
            pool.imap(_decoding_problem, paths, chunksize=64),
            description=f"decoding {folder.name}",
            total=len(paths),
            console=PlainConsole(stderr=True),
            transient=True,
        )
        problems += [problem for problem in decoded if problem]
    return problems


def _is_image(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png"))


def _decoding_problem(path: Path) -> str:
    try:
        decode(path)
    except (DecodeError, OSError, MemoryError) as error:
        return f"{path}: {one_line(error)}"
    return ""
