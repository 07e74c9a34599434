"""Made-up runs for the tests of figures, and what is read off a drawn figure."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.stats import entropy

from normlab.runs.records import Run
from normlab.tasks.metrics import metrics_of

SCOPES = ("in", "ln", "bn")
COLOURS = {"in": "#0072b2", "ln": "#d55e00", "bn": "#009e73"}
SETTINGS = {"norm": "sn", "weight": "none", "model": "net", "data": "digits", "batch": "8x2", "seed": "0"}
RANGES = (49, 100, 200, 300, 10**9)  # one pixel above the last field of each


@pytest.fixture
def make(tmp_path):
    """A run of given settings with the records it is given: make(batch="8x1", ratios=[...])."""
    count = itertools.count()

    def run(**words) -> Run:
        records = {key: words.pop(key) for key in ("ratios", "metrics", "statistics", "gradients") if key in words}
        folder = tmp_path / f"run-{next(count):08d}"
        folder.mkdir()
        for name, rows in records.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Run(folder, SETTINGS | words, metrics_of("normlab.tasks.classification.Classification"))

    return run


def moments(num_layers: int, epochs: int = 3, seed: int = 0, scopes: tuple[str, ...] = SCOPES) -> list[dict]:
    random = np.random.default_rng(seed)

    def ratio() -> dict[str, float]:
        return dict(zip(scopes, random.dirichlet(np.ones(len(scopes))).tolist(), strict=True))

    def row(i: int) -> dict:
        return {
            "layer": f"layer{1 + i // 3}.{i % 3}.bn1",
            "index": i + 1,
            "kernel_size": [[1, 1], [3, 3]][i % 2],
            "shortcut": i % 5 == 4,
            "receptive_field": 7 + 8 * i,
            "mean": ratio(),
            "var": ratio(),
        }

    return [{"epoch": e, "step": 10 * e, "layers": [row(i) for i in range(num_layers)]} for e in range(epochs)]


def without_fields(records: list[dict], keep: int = 0) -> list[dict]:
    """As of a network that is none of images, or of which only the first layers were traced."""
    for record in records:
        for row in record["layers"][keep:]:
            row |= {"receptive_field": None, "kernel_size": None, "shortcut": False}
    return records


def in_parts(records: list[dict], **sizes: int) -> list[dict]:
    """The layers, in order, are of parts of these sizes."""
    names = [name for name, size in sizes.items() for _ in range(size)]
    for record in records:
        for row, name in zip(record["layers"], names, strict=True):
            row["part"] = name
    return records


def detector() -> list[dict]:
    """69 layers in four parts, of which the first has receptive fields."""
    return in_parts(without_fields(moments(69), keep=53), backbone=53, fpn=8, box=4, mask=4)


PARTS = {"backbone": slice(0, 53), "fpn": slice(53, 61), "box": slice(61, 65), "mask": slice(65, 69), "all": slice(69)}


def over_layers(records: list[dict], inside: slice, moment: str) -> list[list[float]]:
    """Of each scope, at each record, the average of some layers."""
    return [[float(np.mean([row[moment][s] for row in r["layers"][inside]])) for r in records] for s in SCOPES]


def ticks(axis) -> list[str]:
    return [tick.get_text() for tick in axis.get_xticklabels()]


def titles(axes) -> list[str]:
    return [axis.get_title() for axis in axes]


def panel(figure: Figure, label: str):
    (axis,) = (axis for axis in figure.axes if axis.get_label() == label)
    return axis


def ydata(axis) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axis.lines]


def heights(axis) -> dict[str, list[float]]:
    """Colour -> heights of its bars, in order."""
    found: dict[str, list[float]] = {}
    for bar in axis.patches:
        found.setdefault(to_hex(bar.get_facecolor()), []).append(bar.get_height())
    return found


def of_range(rows: list[dict], index: int, value) -> float:
    """The average of value(row) over the layers of a range, by the paper's bounds; 5: of all."""
    low = ((0, *RANGES))[index] if index < 5 else 0
    high = RANGES[index] if index < 5 else 10**9
    return float(np.mean([value(row) for row in rows if low <= row["receptive_field"] < high]))


def apart(p: dict[str, float], q: dict[str, float]) -> float:
    a, b = ([ratio[scope] for scope in SCOPES] for ratio in (p, q))
    return entropy(a, b) + entropy(b, a)
