"""What all figures share: colours, sizes in print, lines and files. No torch here."""

import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from normlab.errors import UserError
from normlab.writing import write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers; BN green, IN blue, LN red as in Distinct, Fig. 2.
COLOURS = {"bn": "#009E73", "in": "#0072B2", "ln": "#D55E00", "gn": "#CC79A7", "en": "#E69F00"}
_PALER = (0.0, 0.34, 0.46, 0.55, 0.62, 0.68, 0.73, 0.78, 0.82, 0.86)  # shares of white


def _paler(colour: str, step: int) -> str:
    """A colour with more white in it at each step from 0 on."""
    share = _PALER[min(step, len(_PALER) - 1)]
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * share):02X}" for part in parts)


_FAMILIES = COLOURS | {"sn": "#000000", "hn": "#56B4E9"}
_VARIANTS = {  # of a family, in the order in which they grow paler
    "bn": ("syncbn", "brn", "bn_frozen", "bn_mean", "bn_std"),
    "sn": ("syncsn", "sn_tied", "sn_hard", "group_sn", "sn_std", "sn_in_ln", "sn_in_bn", "sn_ln_bn", "sn_ln_gn"),
    "hn": ("hn_g8", "hn_g32", "hn_sn", "hn_sn_in_ln"),
}
NORM_COLOURS = _FAMILIES | {
    norm: _paler(_FAMILIES[family], step) for family, norms in _VARIANTS.items() for step, norm in enumerate(norms, 1)
}
SPARE_COLOURS = ("#000000", "#56B4E9", "#999999", "#F0E442")
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")  # tell apart lines that coincide
MOMENT_NAMES = {"mean": "mean µ", "var": "variance σ²"}

PAGE = 7.2  # inches: both columns of a paper
FORMATS = ("png", "pdf", "svg")
_PRINT: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "hatch.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "normlab",
}
P = ParamSpec("P")


def at_print_size(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A figure whose letters are as large as print asks at the figure's own size; other figures keep their settings."""

    @wraps(draw)
    def drawn(*args: P.args, **settings: P.kwargs) -> Figure:
        with matplotlib.rc_context(_PRINT):
            return draw(*args, **settings)

    return drawn


def name_of_file(path: Path) -> Path:
    """A file that a figure can be written to. Raises UserError."""
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"out={path}: expected a file that ends in {', '.join('.' + f for f in FORMATS)}")
    if path.is_dir():
        raise UserError(f"out={path}: expected a file, and this is a folder")
    return path


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, PDF or SVG, as the name ends; the same figure gives the same bytes.

    Texts in it are names and settings of runs, which may be anyone's: dollars make no formula of them.
    """
    for text in figure.findobj(Text):
        text.set_parse_math("$" not in text.get_text())  # type: ignore[attr-defined]
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:]
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    drawn = io.BytesIO()
    with matplotlib.rc_context(_PRINT):
        figure.savefig(drawn, format=kind, dpi=200, metadata=undated[kind])
    write_bytes(path, drawn.getbuffer())


def scope_colours(scopes: Iterable[str]) -> dict[str, str]:
    """A colour for each scope: its family's ("en" of "en32") if free, else a spare one."""
    chosen: dict[str, str] = {}
    spare = itertools.cycle(SPARE_COLOURS)
    for scope in dict.fromkeys(scopes):
        family = COLOURS.get(scope.rstrip("0123456789"))
        chosen[scope] = family if family and family not in chosen.values() else next(spare)
    return chosen


def norm_colours(norms: Sequence[str]) -> list[str]:
    """The colour of each normalizer, the same in every figure: its family's, variants paler. What comes again, as a
    normalizer at another batch, is paler still; what is none of conf/norm has the rest of the palette, in order.
    """
    spare = itertools.cycle([colour for colour in PALETTE if colour not in _of_norms(norms)] or PALETTE)
    of_others = {norm: next(spare) for norm in dict.fromkeys(norms) if norm not in NORM_COLOURS}
    found = []
    for place, norm in enumerate(norms):
        colour = NORM_COLOURS.get(norm) or of_others[norm]
        found.append(_paler(colour, 2 * norms[:place].count(norm)))
    return found


def _of_norms(norms: Iterable[str]) -> set[str]:
    return {NORM_COLOURS[norm] for norm in norms if norm in NORM_COLOURS}


def draw_line(axis: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """A line over epochs; few points are marked."""
    axis.plot(x, y, **{"marker": "o" if len(x) <= 8 else None, "markersize": 2.5} | style)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axis.grid(alpha=0.3, linewidth=0.5)


def draw_mean(axis: Axes, x: Sequence[float], curves: Sequence[Sequence[float]], **style: Any) -> None:
    """The mean of curves over seeds as a line, with a band of a standard deviation on either side of several."""
    means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
    draw_line(axis, x, means, **style)
    if len(curves) > 1 and len(x) > 0:
        spreads = [statistics.stdev(values) for values in zip(*curves, strict=True)]
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axis.fill_between(x, low, high, color=style.get("color"), alpha=0.15, linewidth=0)


def show_end(axis: Axes, share: float = 1 / 3) -> None:
    """The last part of the curves alone, at a scale of its own: where they end close to each other, that is seen."""
    drawn = [np.column_stack(line.get_data()).astype(float) for line in axis.lines]
    points = np.concatenate([np.empty((0, 2)), *drawn])
    points = points[np.isfinite(points).all(1)]
    if len(np.unique(points[:, 0])) < 2:
        return
    last, first = points[:, 0].max(), points[:, 0].min()
    start = last - share * (last - first)
    inside = points[points[:, 0] >= start, 1]
    room = 0.08 * (np.ptp(inside) or abs(inside[0]) or 1.0)
    axis.set(xlim=(start, last + 0.02 * (last - start)), ylim=(inside.min() - room, inside.max() + room))
    axis.set_title("the last third", loc="left", fontsize=7)


def key_line(**look: Any) -> Line2D:
    """A line for a legend."""
    return Line2D([], [], **look)


def text_width(text: str, size: float) -> float:
    """About how many inches a line of text takes."""
    return 0.62 * size / 72 * len(text)


def fitting_size(text: str, inches: float, size: float) -> float:
    """The size of letters at which a line of text fits, at most `size`; what is too long all the same sticks out."""
    return min(size, max(4.5, size * inches / text_width(text, size)))


def legend_above(figure: Figure, handles: Sequence[Any], columns: int = 6) -> None:
    """The key of all panels, above them, in rows as even as can be."""
    rows = math.ceil(len(handles) / columns)
    columns = math.ceil(len(handles) / max(rows, 1))
    figure.legend(handles=list(handles), loc="outside upper center", ncols=max(columns, 1), frameon=False)
