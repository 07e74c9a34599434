"""What figures are drawn from: the records of a run. No torch here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from normlab import schema
from normlab.errors import UserError
from normlab.reading import EPOCH, LAYER, Fields, read_jsonl, read_metrics
from normlab.runs.folder import RunFolder
from normlab.schema import Parameter
from normlab.tasks.metrics import MetricInfo, metrics_of
from normlab.values import coerce

Record = dict[str, Any]


class NoRecordsError(UserError):
    """The run has left no records of the kind."""


_IN_LABELS = ("norm", "weight", "model", "data", "batch", "seed")
_MOMENT: Fields = {**EPOCH, "layers": Parameter(list[dict[str, Any]])}
_RATIO_ROW: Fields = {
    "layer": Parameter(str),
    "receptive_field": Parameter(int | None),
    "kernel_size": Parameter(list[int] | None),
    "shortcut": Parameter(bool),
    "mean": LAYER["mean"],
    "var": LAYER["var"],
}
_OPTIONAL: Fields = {"index": Parameter(int), "part": Parameter(str | None)}  # older records may lack them
_STATISTICS_ROW: Fields = {
    "layer": Parameter(str),
    **{name: Parameter(list) for name in ("bn_mean", "bn_std")},
    **{name: Parameter(float) for name in ("en_mean", "en_std")},
}
_GRADIENT_ROW: Fields = {name: Parameter(float) for name in ("remaining", "division", "centring")}

CLASSES = "classes"  # in the metadata of predictions: the names of the labels from 0 on, as JSON
_SHOWN = ("truth", "predicted")  # of a sample, beside its image
_PICTURES = ("style", "stylized")  # images, in their place
_MAP, _INSTANCES = {"": 2}, {"boxes": 2, "labels": 1, "masks": 3}  # what each may be: name -> number of axes


@dataclass(frozen=True)
class Run:
    """A run's settings and records. The records are read when a figure asks for them.

    Attributes:
        folder: of the run.
        settings: norm, weight, model, data and task by name, batch as 8x2, seed.
        metrics: what its task measures; nothing where the task cannot be found.
    """

    folder: Path
    settings: dict[str, str]
    metrics: Mapping[str, MetricInfo] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: RunFolder) -> "Run":
        """Raises UserError if run.json is damaged."""
        config = folder.run()["config"]
        chosen = coerce(config.get("choices", {}), dict[str, str], f"{folder.run_file}: choices")
        words = chosen | {key: str(config.get(key, "")) for key in ("batch", "seed")}
        settings = {key: words.get(key, "") for key in (*_IN_LABELS, "task")}
        return cls(folder.path, settings, metrics_of_run(folder))

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def ratios(self) -> list[Record]:
        """Ratios of every layer at each recorded moment (normlab.dynamics.ratios). Raises NoRecordsError."""
        why = f"norm={self.settings['norm']} has no ratios to learn, or nothing ran"
        return self._records("ratios.jsonl", _RATIO_ROW, why)

    @cached_property
    def epochs(self) -> list[Record]:
        """Measures of each evaluation on the way, as "val/top1". Raises NoRecordsError before the first one."""
        rows = read_metrics(self._whole("metrics.jsonl"), EPOCH, holding='"val')
        found = [row for row in rows if any(key.startswith("val") for key in row)]
        if not found:
            raise NoRecordsError(f"{self.name}: no epoch of it was evaluated; {self.folder / 'metrics.jsonl'} has none")
        return found

    @cached_property
    def statistics(self) -> list[Record]:
        """Statistics of every step (normlab.dynamics.statistics). Raises NoRecordsError."""
        why = "record.statistics=200 makes a run record them at its last updates"
        return self._records("statistics.jsonl", _STATISTICS_ROW, why)

    @cached_property
    def gradients(self) -> list[Record]:
        """Reductions of the gradients (normlab.dynamics.lipschitz). Raises NoRecordsError."""
        why = "record.gradients=true makes a run with weight=ws record them"
        return self._records("gradients.jsonl", _GRADIENT_ROW, why)

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """Of a few samples (normlab.engine.pictures): the image (C, H, W), and as `truth` and `predicted` each a map of
        classes (H, W), or instances: boxes (M, 4), labels (M,) and, where there are, masks (M, H, W); or as `style` and
        `stylized` images (C, H, W).

        Raises NoRecordsError.
        """
        path = self._whole("predictions.safetensors")
        if not path.is_file():
            raise NoRecordsError(f"{self.name}: its task shows no predictions, or it has not ended")
        try:
            tensors = safetensors.numpy.load(path.read_bytes())
        except safetensors.SafetensorError:
            raise UserError(f"{path}: this is no safetensors file, or it is damaged") from None
        samples: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            of, _, what = name.partition(".")
            known = {"": 3} if of in ("image", *_PICTURES) else _MAP | _INSTANCES if of in _SHOWN else {}
            axes = known.get(what)
            if not index.isdecimal() or tensor.ndim != axes:
                raise UserError(f"{path}: {key} of shape {tensor.shape} is nothing that a run keeps")
            sample = samples.setdefault(int(index), {})
            if what:
                sample.setdefault(of, {})[what] = tensor
            else:
                sample[of] = tensor
        found = [samples[index] for index in sorted(samples)]
        for sample in found:
            if not _is_whole(sample):
                raise UserError(f"{path}: a sample is not whole")
        return found

    @cached_property
    def classes(self) -> list[str]:
        """The names of the labels in `predictions`, from 0 on; none where the data have none."""
        path = self._whole("predictions.safetensors")
        try:
            with safetensors.safe_open(path, "numpy") as file:
                return coerce(json.loads((file.metadata() or {}).get(CLASSES, "[]")), list[str], CLASSES)
        except (safetensors.SafetensorError, OSError, ValueError, RecursionError, UserError):
            raise UserError(f"{path}: the names of its classes are damaged, or none of normlab's") from None

    def _whole(self, name: str) -> Path:
        return RunFolder(self.folder).whole(self.folder / name)

    def _records(self, name: str, row_fields: Fields, why: str) -> list[Record]:
        path = self._whole(name)
        records = read_jsonl(path, _MOMENT)
        if not records:
            raise NoRecordsError(f"{self.name}: there is no {name}: {why}")
        for record in records:
            if not record.get("layers") or "epoch" not in record:
                raise UserError(
                    f"{path}: a moment has no layers or no epoch; the file is damaged, or none of normlab's"
                )
            for row in record["layers"]:
                _check_row(row, row_fields, path)
        return records


def _is_whole(sample: Record) -> bool:
    """Whether the parts of a sample fit together."""
    if sample.keys() == {"image", *_PICTURES}:
        return sample["image"].shape == sample["stylized"].shape
    if sample.keys() != {"image", *_SHOWN}:
        return False
    size, shown = sample["image"].shape[-2:], [sample[of] for of in _SHOWN]
    if not all(isinstance(one, dict) for one in shown):
        return all(not isinstance(one, dict) and one.shape == size for one in shown)
    for one in shown:
        lengths = {len(tensor) for tensor in one.values()}
        if not {"boxes", "labels"} <= one.keys() or len(lengths) > 1 or one["boxes"].shape[1] != 4:
            return False
        if "masks" in one and one["masks"].shape[1:] != size:
            return False
    return True


def metrics_of_run(folder: RunFolder) -> dict[str, MetricInfo]:
    """What the task of a run measures; nothing where there is no such task here. Nothing of it is imported."""
    task = folder.run()["config"].get("task")
    try:
        return metrics_of(str(task["_target_"]))
    except (UserError, TypeError, KeyError):
        return {}


def _check_row(row: Record, fields: Fields, path: Path) -> None:
    missing = [key for key in fields if key not in row]
    if missing:
        raise UserError(f"{path}: a layer has no {missing[0]}; the file is damaged, or none of normlab's")
    try:
        present = {**fields, **{key: parameter for key, parameter in _OPTIONAL.items() if key in row}}
        schema.check({key: row[key] for key in present}, present)
    except UserError as error:
        raise UserError(f"{path}: {error}; the file is damaged, or none of normlab's") from None


def labels(runs: Sequence[Run], keys: Iterable[str] = _IN_LABELS) -> list[str]:
    """A short name for each run: its settings that are not the same in all, as "sn (8,2)"; norm and batch if all are.

    Runs that these do not tell apart have their id as well.
    """
    differing = [key for key in keys if len({run.settings[key] for run in runs}) > 1] or ["norm", "batch"]
    if "weight" in differing and "norm" not in differing:
        differing.insert(0, "norm")
    found = [" ".join(filter(None, (spelled(key, run.settings[key]) for key in differing))) for run in runs]
    return [
        text if found.count(text) == 1 else f"{text} {run.name[-8:]}" for text, run in zip(found, runs, strict=True)
    ]


def spelled(key: str, value: str) -> str:
    """As the papers write it: SN, (8,2), +ws; nothing for weights as they are."""
    if key == "batch":
        return f"({value.replace('x', ',')})"
    if key == "norm":
        if value.startswith("sync"):
            return f"Sync{value.removeprefix('sync').upper()}"
        return value.upper() if len(value) <= 3 else value
    if key == "weight":
        return "" if value == "none" else f"+{value}"
    return f"seed {value}" if key == "seed" else value


def expect(runs: Sequence[Run], least: int, most: int | None = None, why: str = "") -> None:
    """Raise UserError unless there are so many runs."""
    if least <= len(runs) <= (most or len(runs)):
        return
    number = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
    raise UserError(f"this figure needs {number} run{'s' * (number != '1')}, got {len(runs)}{why and f': {why}'}")
