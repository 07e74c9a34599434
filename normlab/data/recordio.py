"""MXNet's RecordIO with images, as its own code writes it: NAME.rec, and in NAME.idx where each record begins.

A record is a magic number, a length and as many bytes, padded to a multiple of four, all little-endian. Where the bytes
hold the magic number themselves it is left out and the record goes on behind another header, whose three upper bits of
the length say so. An image has a header of its own: flag, label, two numbers; with a flag above 0 that many labels
follow.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from normlab.data.download import one_line
from normlab.errors import UserError

_MAGIC = 0xCED7230A
_LENGTH = 2**29 - 1  # bits of the length; those above are the part
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_MOST_BYTES = 2**24  # of a record
_MOST = 2**60  # as a number or a place in a file, which the system takes up to 2**63
_MOST_PARTS, _MOST_LABELS = 1000, 1000
_IMAGE = struct.Struct("<IfQQ")


class Record(NamedTuple):
    """The labels of a record, one or more, and the bytes of its image."""

    labels: tuple[float, ...]
    content: bytes


class Records:
    """The records of a .rec file, by their numbers. `records[7]` is a Record, and raises ValueError on damaged bytes.

    Args:
        path: of the .rec file, beside which the .idx lies.

    Raises:
        UserError: one of the files is missing or is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for file in (path, path.with_suffix(".idx")):
            if not file.is_file():
                raise UserError(f"{file.parent} has no {file.name}")
        self.numbers_N, self.offsets_N = _index(path.with_suffix(".idx"))
        self._file: tuple[int, int] | None = None  # process, descriptor: pread has no place that processes would share

    def __len__(self) -> int:
        return len(self.numbers_N)

    def __getitem__(self, number: int) -> Record:
        place = int(np.searchsorted(self.numbers_N, number))
        if place == len(self) or self.numbers_N[place] != number:
            raise ValueError(f"its index has no record {number}")
        return _unpacked(self._read(int(self.offsets_N[place])))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_file": None}

    def _read(self, offset: int) -> bytes:
        """A record's bytes. Raises ValueError."""
        parts: list[bytes] = []
        while True:
            header = self._bytes(offset, 8)
            magic, length = struct.unpack("<II", header)
            part, length = length >> 29, length & _LENGTH
            if magic != _MAGIC or part not in ((_WHOLE, _FIRST) if not parts else (_MIDDLE, _LAST)):
                raise ValueError(f"no record begins at byte {offset}")
            if length > _MOST_BYTES or len(parts) == _MOST_PARTS:
                raise ValueError(f"the record at byte {offset} is to have more than {_MOST_BYTES:,} bytes")
            parts.append(self._bytes(offset + 8, length))
            if part in (_WHOLE, _LAST):
                return struct.pack("<I", _MAGIC).join(parts)
            offset += 8 + length + -length % 4

    def _bytes(self, offset: int, count: int) -> bytes:
        if self._file is None or self._file[0] != os.getpid():
            self._file = os.getpid(), os.open(self.path, os.O_RDONLY)
        found = os.pread(self._file[1], count, offset)
        if len(found) < count:
            raise ValueError(f"it ends within the record at byte {offset}")
        return found


def _unpacked(content: bytes) -> Record:
    if len(content) < _IMAGE.size:
        raise ValueError("a record is shorter than the header of an image")
    flag, label, _, _ = _IMAGE.unpack_from(content)
    if not flag:
        return Record((label,), content[_IMAGE.size :])
    end = _IMAGE.size + 4 * flag
    if flag > _MOST_LABELS or len(content) < end:
        raise ValueError(f"a record is to have {flag:,} labels")
    return Record(struct.unpack_from(f"<{flag}f", content, _IMAGE.size), content[end:])


def _index(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of records, ascending, and where each begins. Raises UserError."""
    try:
        values = np.array(path.read_bytes().split(), dtype=np.int64)
        pairs_N2 = values.reshape(-1, 2)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is no index of records ({one_line(error)})") from None
    if not len(pairs_N2) or (pairs_N2 < 0).any() or (pairs_N2 > _MOST).any():
        raise UserError(f"{path} is no index of records; expected a number and a place in each line")
    numbers_N, first_N = np.unique(pairs_N2[:, 0], return_index=True)
    return numbers_N, pairs_N2[first_N, 1]
