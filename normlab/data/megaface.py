"""MegaFace's probes and distractors: lists of images, and lists of those that are left out.

Lists are lines, as facescrub_lst and megaface_lst of the code of SN and of ArcFace, or JSON with "path", as those of
MegaFace itself. A list of what is left out has an image's name, or its path, in each line behind the last tab; lines
that begin with # are none.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from normlab.data.download import one_line
from normlab.errors import UserError

PROBES = ("facescrub_lst", "facescrub_features_list.json")
DISTRACTORS = ("megaface_lst", "megaface_features_list.json", "megaface_features_list.json_1000000_1")
NOISY_PROBES = ("facescrub_noises.txt",)
NOISY_DISTRACTORS = ("megaface_noises.txt", "overlap.txt")
_MOST_BYTES = 2**28  # of a list


def probes(folder: Path) -> list[PurePosixPath]:
    """Paths below facescrub_images, PERSON/IMAGE. Raises UserError."""
    noisy = _left_out(folder, NOISY_PROBES)
    return [path for path in _listed(folder, PROBES, 2) if path.name not in noisy]


def distractors(folder: Path, count: int) -> list[PurePosixPath]:
    """So many paths below megaface_images, A/B/IMAGE: first those of persons among the probes are left out, then that
    many are drawn of the others, always the same (SN-TPAMI, Sec. 4.4). Raises UserError where there are fewer."""
    noisy = _left_out(folder, NOISY_DISTRACTORS)
    others = [path for path in _listed(folder, DISTRACTORS, 3) if str(path) not in noisy]
    if len(others) < count:
        raise UserError(f"data.distractors={count}: {folder} has {len(others):,} after those of its lists are left out")
    chosen = np.sort(np.random.RandomState(0).permutation(len(others))[:count])  # numpy: this never changes
    return [others[k] for k in chosen.tolist()]


def _listed(folder: Path, names: Sequence[str], parts: int) -> list[PurePosixPath]:
    """The last so many parts of each path in the first of these lists that is there."""
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {names[0]} and no {names[1]}")
    text = _text(path)
    if ".json" in path.name:
        try:
            lines = json.loads(text)["path"]
            if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                raise ValueError("its path is no list of names")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is none of MegaFace's lists ({one_line(error)})") from None
    else:
        lines = text.split("\n")
    found = [PurePosixPath(*PurePosixPath(line.strip()).parts[-parts:]) for line in lines if line.strip()]
    for line in found:
        if len(line.parts) != parts or ".." in line.parts or line.is_absolute():
            raise UserError(f"{path}: '{line}' is no path of {parts} parts")
    if not found:
        raise UserError(f"{path} lists nothing")
    return found


def _left_out(folder: Path, names: Sequence[str]) -> set[str]:
    lines = [line for name in names if (folder / name).is_file() for line in _text(folder / name).split("\n")]
    return {line.rpartition("\t")[2].strip() for line in lines if line.strip() and not line.startswith("#")}


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes and is no list")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from None
