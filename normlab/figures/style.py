"""What all figures share: colours, sizes in print, lines and files. No torch here."""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from normlab.errors import UserError
from normlab.writing import write_bytes

# Okabe and Ito's palette, told apart by colour-blind readers; BN green, IN blue, LN red as in Distinct, Fig. 2.
COLOURS = {"bn": "#009E73", "in": "#0072B2", "ln": "#D55E00", "gn": "#CC79A7", "en": "#E69F00"}
NORM_COLOURS = COLOURS | {"sn": "#000000", "hn": "#56B4E9"}
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
    """A colour for each normalizer, its own; if several share one, or one has none, the palette in order."""
    own = [NORM_COLOURS.get(norm) for norm in norms]
    if len(set(own)) == len(norms):
        spare = (colour for colour in PALETTE if colour not in own)
        return [colour or next(spare) for colour in own]
    return [colour for colour, _ in zip(itertools.cycle(PALETTE), norms, strict=False)]


def draw_line(axis: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """A line over epochs; few points are marked."""
    axis.plot(x, y, **{"marker": "o" if len(x) <= 8 else None, "markersize": 2.5} | style)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axis.grid(alpha=0.3, linewidth=0.5)


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
