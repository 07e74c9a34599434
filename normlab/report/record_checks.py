"""What the types of a record's fields cannot tell: which values a metric can have, and lists that belong together."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab import schema
from normlab.errors import UserError
from normlab.reading import LAYER, START
from normlab.tasks.metrics import MetricInfo, info_of

_SLACK = 1e-6  # of a metric's range, for rounding
_LARGEST = 1e50  # of a number whose range nothing tells; its square is one still


def check_records(records: Sequence[Mapping[str, Any]], file: Path, metrics: Mapping[str, MetricInfo]) -> None:
    """Raise UserError, with the line, on a record that cannot have been measured, and on two of one cell and seed."""
    lines: dict[tuple[str, str, int], int] = {}
    for line, record in enumerate(records, 1):
        where = f"{file}, line {line}"
        key = (record["row"], record["column"], record["seed"])
        first = lines.setdefault(key, line)
        if record != records[first - 1]:  # the same twice counts once
            cell = f"{record['row']} {record['column']} seed {record['seed']}"
            raise UserError(f"{where}: {cell} has another record in line {first}; remove one of them")
        _check_lists(record, where)
        for name, value, (least, most) in _numbers(record, metrics):
            if not least - _SLACK * (most - least) <= value <= most + _SLACK * (most - least):
                raise UserError(f"{where}: {name}={value:g}: expected a number from {least:g} to {most:g}")


def _numbers(
    record: Mapping[str, Any], metrics: Mapping[str, MetricInfo]
) -> Iterator[tuple[str, float, tuple[float, float]]]:
    """The numbers of a record: what each is called, and the smallest and largest that it can be."""
    free = (-_LARGEST, _LARGEST)
    measured = [
        (f"metrics.{estimator}.{name}", name, value)
        for estimator, values in record["metrics"].items()
        for name, value in values.items()
    ]
    headline = record["headline"]
    if headline.get("value") is not None:
        measured.append(("headline.value", headline["metric"], headline["value"]))
    for path, name, value in measured:
        info = info_of(name, metrics)
        yield path, value, free if info is None else info.range or free
    lists = {f"{kind}.{name}": v for kind in ("epochs_of", "fluctuations") for name, v in record.get(kind, {}).items()}
    start = record.get("start") or {}
    for name, values in (("taken", record), ("moved", record), ("start.moved", start)):
        lists[name] = list(values.get(name.rpartition(".")[2], {}).values())
    if record["status"] == "finished":  # the last losses of one that diverged are anything
        for path, values in lists.items():
            yield from ((path, value, free) for value in values)


def _check_lists(record: Mapping[str, Any], where: str) -> None:
    """Raise UserError on lists that are empty, or of different lengths where each place is one layer or epoch."""
    try:
        for layer in record["layers"]:
            known = schema.check({key: layer[key] for key in LAYER if key in layer}, LAYER, "layers")
            if not (known["mean"] and known["var"]):
                raise UserError("layers: a layer has no ratios")
        if record.get("start") is not None:
            start = schema.check(record["start"], START)
            for layer in start["layers"]:
                schema.check({key: layer[key] for key in LAYER if key in layer}, LAYER, "start.layers")
        for kind in ("choices", "epochs_of", "fluctuations"):
            values = record.get(kind, {})
            if len({len(value) for value in values.values()} | {0}) > 2 or not all(values.values()):
                raise UserError(f"{kind}: expected lists of one length, and none of them empty")
        if record.get("epochs_of") and "train/loss" not in record["epochs_of"]:
            raise UserError("epochs_of: there is no train/loss")
    except UserError as error:
        raise UserError(f"{where}: {error}; the file is damaged, or none of normlab's") from None
