"""The geometric view of normalizers (Distinct, Fig. 1; SN-TPAMI, Fig. 2), computed from filters."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from normlab.dynamics.ratios import average
from normlab.errors import UserError, unknown
from normlab.figures.style import NORM_COLOURS, PAGE, at_print_size, key_line, legend_above
from normlab.runs.records import Run, expect

_COLOURS = NORM_COLOURS | {"wn": "#777777"}
_THIRDS = {"in": 1 / 3, "ln": 1 / 3, "bn": 1 / 3}


@at_print_size
def geometry(
    runs: Sequence[Run],
    *,
    layer: str = "conv1",
    filters: Annotated[int, Ge(2)] = 6,
    gamma: Annotated[float, Gt(0)] = 1.4,
    batch_values: Annotated[int, Ge(2)] = 4,
    seed: Annotated[int, Ge(0)] = 2,
) -> Figure:
    """Filters as WN, IN, LN, BN and SN make them: their lengths against the unit sphere and gamma, and their angles.

    Each filter has its true length and its true angle to the first one. For white input (mean 0, variance 1, as the
    papers assume) see `lengths`. The papers say that BN also widens the angles; that is an effect of training, which
    filters alone cannot show, so the angles are the same in every panel.

    Args:
        runs: none, for random filters in a plane, or one, whose filters and average ratios are taken.
        layer: the convolution of the run.
        filters: how many are drawn, the first ones.
        gamma: the learned scale, the same for all.
        batch_values: values in each pixel set of BN: samples times positions.
        seed: of the random filters.
    """
    expect(runs, 0, 1)
    if runs:
        weight_CI, what = filters_of(runs[0], layer), f"{layer} of {runs[0].name}"
        ratio = average(runs[0].ratios[-1]["layers"])["var"] if (runs[0].folder / "ratios.jsonl").is_file() else _THIRDS
    else:
        weight_CI, what, ratio = np.random.default_rng(seed).normal(size=(filters, 2)), "random filters", _THIRDS
    if set(ratio) != set(_THIRDS):
        raise UserError(f"{runs[0].name}: its layers mix {', '.join(ratio)}; expected in, ln, bn")
    angle_C = angles(weight_CI)[:filters]
    found = lengths(weight_CI, gamma, ratio, batch_values)
    reach = np.array([length_C[:filters] for length_C in found.values()])
    x, y = reach * np.cos(angle_C), reach * np.sin(angle_C)
    (left, right), (bottom, top) = ((1.1 * min(t.min(), -gamma, -1), 1.1 * max(t.max(), gamma, 1)) for t in (x, y))
    height = 0.8 + PAGE / len(found) * (top - bottom) / (right - left)
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    panels = figure.subplots(1, len(found), sharex=True, sharey=True)
    for axis, (name, length_C) in zip(panels, found.items(), strict=True):
        _draw(axis, length_C[:filters], angle_C, gamma, _COLOURS[name])
        axis.set_title(_title(name, batch_values, ratio), fontsize=6.5)
    panels[0].set(xlim=(left, right), ylim=(bottom, top))
    keys = [
        key_line(color="black", linewidth=0.8, label="unit sphere"),
        key_line(color="black", linewidth=0.8, linestyle=":", label=f"γ = {gamma:g}"),
        key_line(color="grey", label=what),
    ]
    legend_above(figure, keys)
    return figure


def lengths(
    weight_CI: np.ndarray, gamma: float, ratio: Mapping[str, float], batch_values: int
) -> dict[str, np.ndarray]:
    """The length that each normalizer gives the filters, (C,) each, for white input (Distinct, Sec. 2).

    WN and IN divide a filter by its own length, LN all of them by their root mean square. BN divides by its length as
    well, but its statistics come from n values that include the filter's own response. The linear filter nearest to it
    (least squares) is therefore shorter, by the expected standard deviation of n normal values, which tends to 1 as n
    grows. SN, with the same ratios for mean and variance, is the sum of IN, LN and BN weighted by its ratios.
    """
    norm_C = np.linalg.norm(weight_CI, axis=1)
    unit_C = np.full(len(norm_C), gamma)
    found = {
        "wn": unit_C,
        "in": unit_C,
        "ln": gamma * norm_C / np.sqrt(np.mean(norm_C**2)),
        "bn": unit_C * expected_std(batch_values),
    }
    return found | {"sn": sum((share * found[scope] for scope, share in ratio.items()), np.zeros_like(norm_C))}


def expected_std(n: int) -> float:
    """Of the biased standard deviation of n independent values of the standard normal."""
    return math.sqrt(2 / n) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def angles(weight_CI: np.ndarray) -> np.ndarray:
    """Of each filter (C, I) to the first, in radians: from 0 to pi, or, of filters in a plane, from -pi to pi."""
    unit_CI = weight_CI / np.linalg.norm(weight_CI, axis=1, keepdims=True)
    angle_C = np.arccos(np.clip(unit_CI @ unit_CI[0], -1, 1))
    if weight_CI.shape[1] == 2:
        x, y = unit_CI[0]
        angle_C = np.where(x * unit_CI[:, 1] - y * unit_CI[:, 0] < 0, -angle_C, angle_C)
    return angle_C


def filters_of(run: Run, layer: str) -> np.ndarray:
    """The filters (C, I) of a run's convolution. Raises UserError if there is none of that name."""
    path = run.folder / "checkpoints" / "weights.safetensors"
    if not path.is_file():
        raise UserError(f"{run.name}: there are no weights in {path}")
    tensors = load_file(path)
    convolutions = {
        name.removesuffix(".weight"): t for name, t in tensors.items() if t.ndim > 2 and name.endswith("weight")
    }
    if not convolutions:
        raise UserError(f"{run.name}: none of its convolutions has plain weights; weight=ws changes them, mlp has none")
    if layer not in convolutions:
        raise unknown(f"{run.name}: convolution", layer, convolutions)
    return convolutions[layer].reshape(len(convolutions[layer]), -1).astype(float)


def _title(name: str, batch_values: int, ratio: Mapping[str, float]) -> str:
    if name == "bn":
        return f"BN\nof {batch_values} values"
    if name == "sn":
        return "SN\n" + " + ".join(f"{share:.2f} {scope.upper()}" for scope, share in ratio.items())
    return f"{name.upper()}\n"


def _draw(axis: Axes, length_C: np.ndarray, angle_C: np.ndarray, gamma: float, colour: str) -> None:
    turn = np.linspace(0, 2 * np.pi, 181)
    for radius, line in ((1.0, "-"), (gamma, ":")):
        axis.plot(radius * np.cos(turn), radius * np.sin(turn), color="black", linestyle=line, linewidth=0.8)
    for length, angle in zip(length_C, angle_C, strict=True):
        tip = (length * math.cos(angle), length * math.sin(angle))
        axis.annotate(
            "",
            tip,
            (0, 0),
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0},
        )
    axis.set_aspect("equal")
    axis.axis("off")
