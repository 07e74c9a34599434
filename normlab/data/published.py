"""Data that are not here, as their authors published them: so many samples of a shape, to plan runs by.

No torch here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from normlab.errors import UserError, unknown
from normlab.schema import named, signature

_may_be_absent: ContextVar[bool] = ContextVar("may_be_absent", default=False)


@contextmanager
def data_may_be_absent() -> Iterator[None]:
    """Inside, a dataset whose folder is not there is one of the published sizes: a plan needs no more."""
    before = _may_be_absent.set(True)
    try:
        yield
    finally:
        _may_be_absent.reset(before)


def is_absent(node: Mapping[str, Any]) -> bool:
    """Whether a dataset's folder is not there, and need not be."""
    return _may_be_absent.get() and node.get("root") is not None and not Path(node["root"]).exists()


def absent(node: Mapping[str, Any], split: str) -> Any:
    """A dataset of the published sizes, without samples.

    Raises UserError on a dataset that states none, and on a split that it lacks.
    """
    kind = named(node["_target_"])
    counts: Mapping[str, int] = getattr(kind, "counts", {})
    if not counts:
        raise UserError(f"data.root={node['root']}: there is no such folder, and the size of its data is not known")
    if split not in counts:
        raise unknown("split", split, counts)
    number = counts[split]
    if split == "train":
        number = round(number * node.get("fraction", 1.0))
    elif split == "val":
        number = min(number, node.get("val_length") or number)
    described = type(f"Absent{kind.__name__}", (kind,), {"__len__": lambda self: number})
    dataset: Any = object.__new__(described)
    settings = {name: parameter.default for name, parameter in signature(node["_target_"]).items()} | dict(node)
    for name, value in kind.described(settings).items():
        setattr(dataset, name, value)
    return dataset
