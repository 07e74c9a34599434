"""ModelNet40 as the files of PointNet's authors have it: 2,048 points of each shape in HDF5."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.augment import sample_rng
from normlab.data.clouds import Augmentation
from normlab.data.dataset import SampleError, Samples, check_range, check_split, count_problem, missing
from normlab.data.download import one_line, unpack
from normlab.data.stored import first_existing
from normlab.errors import UserError

_ARCHIVE, _SOURCE = "modelnet40_ply_hdf5_2048.zip", "ShapeNet's or PointNet's page"
_CLASSES = 40
_STORED_POINTS = 2048
_MOST_CLOUDS, _MOST_POINTS, _MOST_FILES = 20_000, 2**16, 100
_MOST_BYTES = 2**20  # of a list
_NAMES = {"train": "train", "val": "test"}


class File(NamedTuple):
    """What a file holds: clouds (N, P, 3) and labels (N,), not looked at."""

    name: str
    points_NP3: NDArray[np.float32]
    labels_N: NDArray[np.int64]


class ModelNet40(Samples[int]):
    """ModelNet40: 9,840 training and 2,468 test clouds. `dataset[epoch, index]` is (float32 points (P, 3), class).

    The first so many points of each are used, as in DGCNN's code; they were drawn at random. Training clouds are
    augmented by its recipe (normlab.data.clouds). WS, Sec. 3.5 counts 9,843 training shapes, three more than the files.

    Args:
        split: "train" or "val", the test set.
        seed: of the augmentation.
        root: folder with modelnet40_ply_hdf5_2048, or that folder itself.
        points: of a cloud, of 2,048.
        rotate, jitter, scale, anisotropic, tilt, shift: the augmentation, as clouds.Augmentation has it.
        on_error: a wrong cloud stops the run, or skip does without it.

    Raises:
        UserError: files are missing or are not what they should be, h5py is not installed, or there is no such split.
    """

    called = "clouds"
    folders = ("modelnet40_ply_hdf5_2048",)
    files = ("*.h5", "*.txt")
    counts: ClassVar = {"train": 9_840, "val": 2_468}
    num_classes = _CLASSES

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/modelnet40",
        points: Annotated[int, Ge(1), Le(2**16)] = 1024,
        rotate: bool = True,
        jitter: Annotated[float, Ge(0), Le(1)] = 0.01,
        scale: tuple[Annotated[float, Gt(0), Le(16)], Annotated[float, Gt(0), Le(16)]] = (0.8, 1.25),
        anisotropic: bool = False,
        tilt: Annotated[float, Ge(0), Le(4)] = 0.06,
        shift: Annotated[float, Ge(0), Le(16)] = 0.1,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        check_split(split)
        check_range("scale", scale)
        self.folder = first_existing(root, *self.folders)
        found = [read(self.folder / name) for name in listed(self.folder, split, root)]
        stored = min(file.points_NP3.shape[1] for file in found)
        if points > stored:
            raise UserError(f"data.points={points}: the clouds in {self.folder} have {stored}")
        self.points_NP3 = np.concatenate([file.points_NP3[:, :points] for file in found])
        self.labels_N = np.concatenate([file.labels_N for file in found])
        self.places = [f"{file.name}[{place}]" for file in found for place in range(len(file.labels_N))]
        self.split, self.seed, self.on_error = split, seed, on_error
        self.shape = (points, 3)
        self.classes = _names(self.folder)
        self.augment = Augmentation(rotate, jitter, scale, anisotropic, tilt, shift)

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"shape": (settings["points"], 3)}

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Unpack the archive that the user put into root."""
        unpack([_ARCHIVE], root, into=root, source=_SOURCE)

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        folder, problems = first_existing(root, *cls.folders), []
        for split, count in cls.counts.items():
            try:
                files = [read(folder / name) for name in listed(folder, split, root)]
            except UserError as error:
                problems.append(f"{split}: {error}")
                continue
            problems += count_problem(split, count, sum(len(file.labels_N) for file in files), cls.called)
            for file in files:
                if file.points_NP3.shape[1] != _STORED_POINTS:
                    problems.append(
                        f"{folder / file.name}: its clouds have {file.points_NP3.shape[1]} points, not {_STORED_POINTS}"
                    )
                wrong = ((k, _problem(*pair)) for k, pair in enumerate(zip(*file[1:], strict=True)))
                problems += [f"{folder / file.name}[{k}]: {problem}" for k, problem in wrong if problem]
        return problems

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, int]:
        points_P3, label = self.points_NP3[stored], int(self.labels_N[stored])
        problem = _problem(points_P3, label)
        if problem:
            raise SampleError(self.split, stored, self.folder, self.places[stored], problem)
        cloud_P3 = torch.from_numpy(points_P3.copy())
        if self.split != "train" or epoch is None:
            return cloud_P3, label
        with sample_rng(self.seed, epoch, index):
            return self.augment(cloud_P3), label


def listed(folder: Path, split: str, root: Path | str) -> list[str]:
    """The names of a split's files: as train_files.txt or test_files.txt lists them. Raises UserError."""
    path = folder / f"{_NAMES[split]}_files.txt"
    if not path.is_file():
        raise missing(path.name, folder, "modelnet40", root)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes and is no list of files")
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from None
    names = [PurePosixPath(line).name for line in lines]  # with the folders of whoever wrote it
    if not names or len(names) > _MOST_FILES:
        raise UserError(f"{path}: expected the names of 1 to {_MOST_FILES} files, found {len(names)}")
    return names


def read(path: Path) -> File:
    """What an HDF5 file holds. Raises UserError where it is missing, or not such a file.

    No more is read than such a file may hold, and nothing outside of it: HDF5 can point to other files.
    """
    if find_spec("h5py") is None:
        raise UserError("data=modelnet40: its files need a further package; pip install 'normlab[points]'")
    import h5py

    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}, which its list names; get {_ARCHIVE} anew")
    try:
        with h5py.File(path, "r") as file:
            points, labels = (_own(file, name) for name in ("data", "label"))
            if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind != "f":
                raise ValueError(f"its data are {points.dtype} {points.shape}, not points (N, P, 3)")
            N, P, _ = points.shape
            if not 0 < N <= _MOST_CLOUDS or not 0 < P <= _MOST_POINTS:
                raise ValueError(f"it is to hold {N:,} clouds of {P:,} points")
            if labels.shape not in ((N,), (N, 1)) or labels.dtype.kind not in "iu":
                raise ValueError(f"its labels are {labels.dtype} {labels.shape}, not whole numbers ({N},) or ({N}, 1)")
            return File(path.name, points[:].astype(np.float32), labels[:].reshape(N).astype(np.int64))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a file of ModelNet40: {one_line(error)}") from None


def _own(file: Any, name: str) -> Any:
    """An array that lies in the file itself. Raises ValueError."""
    import h5py

    link = file.get(name, getlink=True)
    found = file.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"it has no array {name}")
    if found.external or found.is_virtual:
        raise ValueError(f"its {name} lie in another file")
    return found


def _problem(points_P3: NDArray[np.float32], label: int) -> str:
    if not np.isfinite(points_P3).all():
        return "a coordinate is not a finite number"
    return "" if 0 <= label < _CLASSES else f"label {label} is not in 0..{_CLASSES - 1}"


def _names(folder: Path) -> tuple[str, ...]:
    """Of the classes, as the archive has them; their numbers where it does not."""
    try:
        lines = (folder / "shape_names.txt").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        lines = []
    return tuple(lines) if len(lines) == _CLASSES else tuple(map(str, range(_CLASSES)))
