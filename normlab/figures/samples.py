"""Samples as pictures: of a dataset, as training meets them (`normlab data show NAME`), and what runs predict."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from normlab import schema
from normlab.config import settings_of
from normlab.data.dataset import VOID
from normlab.errors import UserError
from normlab.figures.style import PAGE, at_print_size, fitting_size, name_of_file, save
from normlab.runs.records import NoRecordsError, Run, expect, labels

_ACROSS, _DOWN = 6, 4  # pictures
_VOID = (1.0, 1.0, 1.0)  # no class has this colour
_OPAQUE = 0.55
_GOLDEN = (5**0.5 - 1) / 2  # of a circle of hues: neighbouring classes are far apart


def show(name: str, words: Sequence[str], out: Path) -> None:
    """Draw samples of a dataset and say where the figure is.

    Args:
        name: of a file in conf/data.
        words: settings of it, as size=16.
        out: the file.

    Raises:
        UserError: a setting or a file that cannot be used, or a dataset of something else than images and clouds.
    """
    name_of_file(out)
    settings = settings_of("data", name, [f"data.{word}" for word in words])
    if settings is None:
        raise UserError(f"{name}: there is nothing to show")
    save(draw(schema.bind(settings)("train", 0)), out)
    print(f"written: {out}")


@at_print_size
def draw(dataset: Any) -> Figure:
    """A grid of samples, spread over the whole dataset: a class above, a map beside, boxes and masks upon the image.

    Of a clip there is a row of frames, spread over it.
    """
    if len(getattr(dataset, "shape", ())) == 4:
        return _draw_clips(dataset)
    count = min(len(dataset), _ACROSS * _DOWN)
    samples = [_sample(dataset, k * len(dataset) // count) for k in range(count)]
    with_map = isinstance(samples[0][1], Tensor)
    if with_map:  # beside each image
        samples = samples[: _ACROSS * _DOWN // 2]
    panels = len(samples) * (2 if with_map else 1)
    rows, columns = math.ceil(panels / _ACROSS), min(panels, _ACROSS)
    side = PAGE / columns
    figure = Figure(figsize=(PAGE, rows * (side + 0.15)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    names = getattr(dataset, "classes", None)
    for k, (image, target) in enumerate(samples):
        axis, *beside = axes[2 * k : 2 * k + 2] if with_map else axes[k : k + 1]
        if image.ndim == 2:
            _draw_cloud(axis, image.numpy())
            axis.set_title(_called(int(target), names), pad=2, fontsize=7)
            continue
        picture_HW3 = _picture(image.numpy())
        axis.imshow(picture_HW3)
        title = _draw_target(beside[0] if with_map else axis, picture_HW3, target, names)
        if title:
            axis.set_title(title, pad=2, fontsize=fitting_size(title, side, 7))
    return figure


def _draw_clips(dataset: Any) -> Figure:
    rows = min(len(dataset), _DOWN)
    figure = Figure(figsize=(PAGE, rows * (PAGE / _ACROSS + 0.15)), layout="constrained")
    for row, k in zip(figure.subplots(rows, _ACROSS, squeeze=False), range(rows), strict=True):
        index = (k * len(dataset) // rows + 3 * k) % len(dataset)  # classes may take turns
        clip_TCHW, label = dataset.take(0, index, index)
        for axis, frame in zip(row, np.linspace(0, len(clip_TCHW) - 1, _ACROSS).round().astype(int), strict=True):
            axis.axis("off")
            axis.imshow(_picture(clip_TCHW[frame].numpy()))
        name = _called(label, getattr(dataset, "classes", None))
        row[0].set_title(name, loc="left", pad=2, fontsize=fitting_size(name, PAGE, 7))
    return figure


@at_print_size
def predictions(runs: Sequence[Run]) -> Figure:
    """What runs predict of a few samples: the image, the truth and what is predicted. Maps are white where nothing
    counts; instances have the colours and the names of their classes.

    Args:
        runs: one or more of the same data; their predictions stand side by side.
    """
    first = _alike(runs, "truth")
    names = ["image", "truth", *(labels(runs) if len(runs) > 1 else ["predicted"])]
    figure, panels_of = _panels(names, len(first))
    for k, (sample, panels) in enumerate(zip(first, panels_of, strict=True)):
        picture_HW3 = _picture(sample["image"].astype(np.float32))
        panels[0].imshow(picture_HW3)
        truth = sample["truth"]
        for axis, shown in zip(panels[1:], [truth, *(run.predictions[k]["predicted"] for run in runs)], strict=True):
            if isinstance(shown, Mapping):
                _draw_instances(axis, picture_HW3, shown, runs[0].classes)
            else:
                axis.imshow(_with_classes(picture_HW3, np.where(truth == VOID, VOID, shown)))
    return figure


@at_print_size
def stylized(runs: Sequence[Run]) -> Figure:
    """Images in the style of another: content, style and what each run makes of them (SN, Fig. 9).

    Args:
        runs: one or more of the same data and style, with a column each.
    """
    first = _alike(runs, "style")
    figure, panels_of = _panels(["content", "style", *labels(runs)], len(first))
    for k, panels in enumerate(panels_of):
        shown = [first[k]["image"], first[k]["style"], *(run.predictions[k]["stylized"] for run in runs)]
        for axis, image_CHW in zip(panels, shown, strict=True):
            axis.imshow(_picture(image_CHW))
    return figure


def _alike(runs: Sequence[Run], shown: str) -> Sequence[Any]:
    """The samples of the first run. Raises UserError unless all runs have them, with the same of what is shown."""
    expect(runs, 1)
    for run in runs:
        if any(shown not in sample for sample in run.predictions):
            raise NoRecordsError(f"{run.name}: its samples have no {shown}; another task's do")
    first = runs[0].predictions
    for run in runs[1:]:
        pairs = zip(first, run.predictions, strict=False)
        if len(first) != len(run.predictions) or not all(
            _same(a[shown], b[shown]) and np.array_equal(a["image"], b["image"]) for a, b in pairs
        ):
            raise UserError(f"{run.name}: its samples are others than those of {runs[0].name}; expected the same data")
    return first


def _panels(names: Sequence[str], samples: int) -> tuple[Figure, list[Any]]:
    """A figure with a panel of each name for each sample, several samples in a row; the names stand above."""
    columns, side = len(names), PAGE / 6
    beside = max(1, 6 // columns)  # samples in a row
    rows = math.ceil(samples / beside)
    figure = Figure(figsize=(side * columns * beside, rows * (side + 0.05) + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns * beside, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for axis, name in zip(axes[0], list(names) * min(beside, samples), strict=False):
        axis.set_title(name, pad=2, fontsize=fitting_size(name, side, 7))
    return figure, [axes.reshape(-1, columns)[k] for k in range(samples)]


def _same(a: Any, b: Any) -> bool:
    """Whether two truths are: maps, instances, or images."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return np.array_equal(a["boxes"], b["boxes"]) and np.array_equal(a["labels"], b["labels"])
    return np.array_equal(a, b)


def _sample(dataset: Any, index: int) -> tuple[Tensor, Any]:
    """As the engine takes it: bytes where these are what a dataset keeps."""
    sample = dataset.take(0, index, index) if hasattr(dataset, "take") else dataset[0, index]
    if not (isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[0], Tensor)):
        raise UserError(f"{type(dataset).__name__}: its samples are no images or clouds with what is known of them")
    if sample[0].ndim != 3 and not (sample[0].ndim == 2 and sample[0].shape[1] == 3):
        raise UserError(f"{type(dataset).__name__}: its samples are no images (C, H, W) and no clouds (P, 3)")
    return sample


def _draw_cloud(axis: Axes, points_P3: NDArray[Any]) -> None:
    """From the front, y upwards; what is nearer is darker."""
    nearest_last_P = np.argsort(points_P3[:, 2])
    x_P, y_P, z_P = points_P3[nearest_last_P].T
    axis.scatter(x_P, y_P, c=z_P, cmap="Greys", vmin=z_P.min() - 1, s=3, linewidths=0)
    axis.set_aspect("equal")


def _picture(image_CHW: NDArray[Any]) -> NDArray[np.floating]:
    """In [0, 1] and three colours. Numbers that are no bytes are drawn from their least to their most."""
    image_HWC = image_CHW.transpose(1, 2, 0)
    if image_HWC.dtype == np.uint8:
        image_HWC = image_HWC / 255
    else:
        least, most = float(image_HWC.min()), float(image_HWC.max())
        image_HWC = (image_HWC - least) / ((most - least) or 1.0)
    if image_HWC.shape[2] != 3:
        image_HWC = image_HWC.mean(2, keepdims=True).repeat(3, 2)
    return image_HWC


def _draw_target(axis: Axes, picture_HW3: NDArray[np.floating], target: Any, names: Sequence[str] | None) -> str:
    """Returns the title: the class, or the classes that there are."""
    if target is None:
        return ""
    if isinstance(target, Mapping):
        _draw_instances(axis, picture_HW3, target, names)
        return ""
    if not isinstance(target, Tensor):
        return _called(int(target), names)
    map_HW = target.numpy()
    there = [int(label) for label in np.unique(map_HW) if label != VOID]
    axis.imshow(_with_classes(picture_HW3, map_HW))
    return ", ".join(_called(label, names) for label in there)


def _with_classes(picture_HW3: NDArray[np.floating], map_HW: NDArray[Any]) -> NDArray[np.floating]:
    painted_HW3 = picture_HW3.copy()
    for label in np.unique(map_HW).tolist():
        _paint(painted_HW3, map_HW == label, _colour(label))
    painted_HW3[map_HW == VOID] = _VOID
    return painted_HW3


def _draw_instances(
    axis: Axes, picture_HW3: NDArray[np.floating], target: Mapping[str, Any], names: Sequence[str] | None = None
) -> None:
    painted_HW3 = picture_HW3.copy()
    for mask_HW, label in zip(target.get("masks", ()), target["labels"].tolist(), strict=False):
        _paint(painted_HW3, np.asarray(mask_HW, bool), _colour(label))
    axis.imshow(painted_HW3)
    for (left, top, right, bottom), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
        corner = (left - 0.5, top - 0.5)  # imshow's pixels have their centres at whole numbers
        axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, ec=_colour(label), lw=1))
        axis.text(*corner, _called(label, names), size=6, va="bottom", color=_colour(label), clip_on=True)


def _paint(picture_HW3: NDArray[np.floating], mask_HW: NDArray[np.bool_], colour: tuple[float, ...]) -> None:
    picture_HW3[mask_HW] = (1 - _OPAQUE) * picture_HW3[mask_HW] + _OPAQUE * np.array(colour)


def _colour(label: int) -> tuple[float, ...]:
    """The first class of a map is often its background: black."""
    return (0.0, 0.0, 0.0) if label == 0 else tuple(hsv_to_rgb((label * _GOLDEN % 1, 0.9, 1.0)).tolist())


def _called(label: int, names: Sequence[str] | None) -> str:
    return names[label] if names is not None and label < len(names) else str(label)
