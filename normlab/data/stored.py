"""The files of a dataset: which count, and a digest that tells one dataset from another. No torch here.

fingerprint(root) -> "3f9a0c12d4e5b678"        the same wherever the folder lies
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from normlab.errors import DiskFullError, UserError
from normlab.reading import read_json
from normlab.writing import write_json

SYSTEM = {"thumbs.db", "desktop.ini", "__macosx"}
NOTES = ".fingerprints.json"  # in the folder of the runs: the fingerprints of large datasets
_READ_WHOLE = 2**28  # bytes: of a dataset up to this size every byte counts
_SAMPLE, _OF_A_FILE = 64, 2**20  # of a larger one, the first bytes of so many files, spread over all
_NOTED_FROM = 20_000  # files: what takes seconds to look at is noted
_ALL = ("*",)
_NOTED: dict[str, dict[str, Any]] = {}  # by this process; the cells of a sweep share their data


class _File(NamedTuple):
    name: str  # below the folder, with slashes
    path: str
    size: int


def is_hidden(name: str) -> bool:
    return name.startswith(".")


def is_of_system(name: str) -> bool:
    return name.lower() in SYSTEM


def first_existing(root: Path | str, *folders: str) -> Path:
    """The first of these folders in root that exists, or root itself: people keep the data at either level."""
    candidates = [Path(root) / folder for folder in folders]
    return next((candidate for candidate in candidates if os.path.isdir(candidate)), Path(root))


def fingerprint(
    root: Path | str,
    folders: Sequence[str] = (),
    names: Sequence[str] = _ALL,
    notes: Path | None = None,
    without: str = "",
) -> str:
    """Sixteen hex digits of what is stored: names and sizes of all files, and their bytes.

    Up to 256 MiB every byte counts. Of larger data, those at the beginning of 64 files do: another dataset, another
    file more or less, another resolution or compression show; a change within a large dataset that keeps each size may
    not. Hidden files and those of file managers do not count, all others that `names` fit do: nobody knows which of
    them a dataset reads.

    Args:
        root: folder of the dataset.
        folders: where the data may lie in root; the first that is there counts.
        names: patterns of what is read there, as *.bin or train; of a file and its .gz, both named, the file counts.
        notes: file that keeps the fingerprints of large datasets; one counts again while no folder of the dataset, and
            none of the 64 files, has changed.
        without: file in root that does not count.

    Raises:
        UserError: a folder or a file cannot be read.
    """
    base = str(first_existing(root, *folders).resolve())
    left_out = os.path.relpath(os.path.join(os.path.realpath(root), without), base) if without else ""
    key = f"{base} {' '.join(names)} {left_out}"
    known = _NOTED.get(key) or _read_notes(notes).get(key)
    if known is not None and _stamps(base, known["looked_at"]) == known["looked_at"]:
        return str(known["digest"])
    try:
        below, files = _walk(base, names)
        files = [file for file in files if file.name != left_out]
        digest = hashlib.sha256(
            "".join(f"{file.name}\0{file.size}\0" for file in files).encode(errors="surrogateescape")
        )
        looked_into = _add_bytes(digest, files)
    except OSError as error:
        raise UserError(f"{error.filename or base}: it cannot be read ({error.strerror})") from None
    looked_at = _stamps(base, [*below, *(file.name for file in looked_into)])
    _NOTED[key] = {"digest": digest.hexdigest()[:16], "looked_at": looked_at}
    if notes is not None and len(files) >= _NOTED_FROM:
        _write_note(notes, key)
    return str(_NOTED[key]["digest"])


def _walk(base: str, names: Sequence[str]) -> tuple[list[str], list[_File]]:
    """The folders and the files that count, sorted by name. Links are followed, each folder is entered once."""
    folders, files, entered = [], [], set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        path = os.path.join(base, inside)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.append(inside)
        with os.scandir(path) as entries:
            deeper = []
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                if not _counts(entry.name) or not (inside or any(fnmatchcase(name, pattern) for pattern in names)):
                    continue
                if entry.is_dir():
                    deeper.append(name)
                elif entry.is_file():  # no link to nowhere, no device
                    files.append(_File(name, entry.path, entry.stat().st_size))
        waiting += sorted(deeper, reverse=True)
    unpacked = {f"{file.name}.gz" for file in files if tuple(names) != _ALL}  # MNIST's download keeps both
    return folders, sorted(file for file in files if file.name not in unpacked)


def _counts(name: str) -> bool:
    return not is_hidden(name) and not is_of_system(name)


def _add_bytes(digest: "hashlib._Hash", files: Sequence[_File]) -> Sequence[_File]:
    """Take in the bytes of small data, or the first ones of a sample; returns the files that were looked into."""
    if sum(file.size for file in files) <= _READ_WHOLE:
        for file in files:
            with open(file.path, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return files
    chosen = [files[i * len(files) // _SAMPLE] for i in range(min(_SAMPLE, len(files)))]
    for file in chosen:
        with open(file.path, "rb") as opened:
            digest.update(hashlib.sha256(opened.read(_OF_A_FILE)).digest())
    return chosen


# ---- notes -----------------------------------------------------------------------------------------------------------


def _stamps(base: str, names: Iterable[str]) -> dict[str, list[int] | None]:
    """When each of these changed last, and its size; None where it is gone."""
    return {name: _stamp(os.path.join(base, name)) for name in names}


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]


def _read_notes(path: Path | None) -> dict[str, dict[str, Any]]:
    """Nothing where there are none, or none that can be read: they save time and decide nothing."""
    if path is None or not path.is_file():
        return {}
    try:
        notes = read_json(path)
    except UserError:
        return {}
    return {
        key: note for key, note in notes.items() if isinstance(note, dict) and note.keys() >= {"digest", "looked_at"}
    }


def _write_note(path: Path, key: str) -> None:
    """As far as there is room for it."""
    with contextlib.suppress(OSError, DiskFullError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _read_notes(path) | {key: _NOTED[key]})
