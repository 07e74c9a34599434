"""Which files of a folder of classes are images, in which order, and which are left out."""

import logging
import os
from collections import Counter
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from normlab.data.splits import Integers
from normlab.data.stored import is_hidden, is_of_system
from normlab.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_MOST_FOLDERS = 100_000  # in a class: links can make a few folders into more than anyone can wait for

_HIDDEN, _OF_SYSTEM, _OTHER = "hidden", "of a system", f"not named {', '.join(EXTENSIONS)}"
_IN_NO_CLASS, _LOOP, _NESTED = "in no class folder", "links to a folder around them", "folders in a class folder"

_log = logging.getLogger(__name__)


class LeftOut:
    """Counts what is left out, by reason, and keeps the first name of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        self.first[reason] = min(name, self.first.get(reason, name))

    def __str__(self) -> str:
        """`5 left out: 4 hidden (cat/._1.jpg), 1 ...`; nothing where there is none."""
        if not self.counts:
            return ""
        reasons = (f"{self.counts[reason]} {reason} ({_plain(self.first[reason])})" for reason in sorted(self.counts))
        return f"{self.counts.total()} left out: {'; '.join(reasons)}"


class ClassFolders(NamedTuple):
    """The classes, sorted, and the image files ("class/name") with the number of their class."""

    classes: list[str]
    files: list[str]
    labels_N: Integers
    unreadable: list[str]  # a line for every folder that cannot be listed
    loose: int = 0  # images that are in no class folder

    def empty(self) -> list[str]:
        """The classes without an image."""
        counts_K = np.bincount(self.labels_N, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts_K, strict=True) if count == 0]

    def layout_problem(self, folder: Path) -> str:
        """What is wrong with the folders, and what to do; nothing where they can be used."""
        if self.loose and not self.classes:
            return (
                f"{folder} has no class folders, but {self.loose} images: move each into a folder named as its class; "
                f"without {folder}, `normlab data prepare imagenet` unpacks ImageNet's archives so"
            )
        if not self.classes:
            return f"{folder} has no class folders"
        if len(self.classes) == 1:
            return (
                f"{folder} has one class folder only, {_plain(self.classes[0])}, and nothing to tell it from: "
                "each class needs a folder there"
            )
        return ""


def class_names(folder: Path, skip: str = "") -> list[str]:
    """The names of the class folders, sorted, without hidden ones and the one named skip. Raises UserError."""
    return _class_names(listed(folder), skip)


def scan(folder: Path, skip: str = "", *, nested: bool = True) -> ClassFolders:
    """The image files in the class folders of folder; says what it leaves out.

    Order and choice are those of torchvision's ImageFolder: the files right in a class folder by name, then those of
    each folder inside, however deep, by the folder's path and then by name; links are followed. Hidden files and
    folders are left out, and a link to a folder that it lies in. A folder with the name of an image is an image that
    cannot be decoded.

    Args:
        folder: of the class folders.
        skip: name of a class folder that is no class.
        nested: False leaves folders in a class folder out.

    Raises:
        UserError: folder cannot be listed.
    """
    left_out, unreadable, members = LeftOut(), [], []
    entries = listed(folder)
    classes = _class_names(entries, skip)
    known = {*classes, skip}
    loose = 0
    for entry in entries:
        if entry.name not in known:
            loose += is_image(entry.name)
            left_out.add(_reason(entry.name, _IN_NO_CLASS if is_image(entry.name) else _OTHER), entry.name)
    for name in classes:
        files, problems = _images(folder, name, left_out, nested)
        members.append(files)
        unreadable += problems
    labels_N = np.repeat(np.arange(len(classes)), [len(files) for files in members])
    if classes:
        say(folder, left_out)
    return ClassFolders(classes, list(chain.from_iterable(members)), labels_N, unreadable, loose)


def complete(folder: Path, found: ClassFolders) -> ClassFolders:
    """What was found, if a run can use it: two classes or more, each with an image. Raises UserError."""
    if problem := found.layout_problem(folder):
        raise UserError(problem)
    if found.unreadable:
        raise UserError(found.unreadable[0])
    if empty := found.empty():
        raise UserError(f"{folder / empty[0]} has no image; {len(empty)} of {len(found.classes)} classes are empty")
    return found


def is_image(name: str) -> bool:
    """Whether a file of this name is taken."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def listed(folder: Path | str) -> list[os.DirEntry[str]]:
    """What is in a folder. Raises UserError."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be listed ({error.strerror})") from None


def say(folder: Path, left_out: LeftOut) -> None:
    """Log what is left out of folder, if anything is: once in a process, and in one rank of a run."""
    if left_out.counts and os.environ.get("RANK", "0") == "0":
        _say(f"{folder}: {left_out}")


@cache
def _say(line: str) -> None:
    _log.warning("%s", line)


def _class_names(entries: list[os.DirEntry[str]], skip: str) -> list[str]:
    return sorted(entry.name for entry in entries if entry.name != skip and not _reason(entry.name) and _is_dir(entry))


def _images(folder: Path, name: str, left_out: LeftOut, nested: bool) -> tuple[list[str], list[str]]:
    """The images of a class, in order, and a line for every folder that cannot be listed."""
    found: list[tuple[str, list[str]]] = []  # a folder's path, and the names there
    unreadable = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(name, frozenset())]  # a path, and the folders around it
    while waiting:
        inside, around = waiting.pop()
        path = f"{folder}/{inside}"
        try:
            status = os.stat(path)
            entries = listed(path)
        except OSError as error:
            unreadable.append(f"{path}: the folder cannot be listed ({error.strerror})")
            continue
        except UserError as error:
            unreadable.append(str(error))
            continue
        here = (status.st_dev, status.st_ino)
        if here in around:
            left_out.add(_LOOP, inside)
            continue
        names = [entry.name for entry in entries]  # what follows is is_image, without a call for each of a million
        images = [name for name in names if name.lower().endswith(EXTENSIONS) and name[0] != "."]
        found.append((inside, sorted(images)))
        if len(found) > _MOST_FOLDERS:
            unreadable.append(f"{folder}/{name}: it has more than {_MOST_FOLDERS:,} folders; links may multiply them")
            break
        if len(images) == len(entries):
            continue
        for entry in entries:
            if is_image(entry.name):
                continue
            reason = _reason(entry.name)
            if not reason and _is_dir(entry):
                if nested:
                    waiting.append((f"{inside}/{entry.name}", around | {here}))
                    continue
                reason = _NESTED
            left_out.add(reason or _OTHER, f"{inside}/{entry.name}")
    return [f"{inside}/{image}" for inside, images in sorted(found) for image in images], sorted(unreadable)


def _reason(name: str, other: str = "") -> str:
    """Why something of this name is never looked at."""
    if is_hidden(name):
        return _HIDDEN
    return _OF_SYSTEM if is_of_system(name) else other


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as a link to itself
        return False


def _plain(name: str) -> str:
    """A file's name as it can be shown: in one line, and without what would steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)
