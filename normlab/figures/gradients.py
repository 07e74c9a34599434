"""What Weight Standardization takes from the gradients of its weights (WS, Fig. 4, right)."""

import math
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from normlab.figures.style import MARKERS, PAGE, at_print_size, draw_line, key_line, legend_above
from normlab.runs.records import Run, expect, labels

# share of ||g||^2, g the gradient of the standardized weight W -> its name and colour
_TERMS = {
    "remaining": ("left over: σ²‖∂L/∂W‖²", "#009E73"),
    "centring": ("Eq. 5: ⟨1, g⟩² / I", "#0072B2"),
    "division": ("Eq. 6: ⟨Ŵ, g⟩² / I", "#D55E00"),
}


@at_print_size
def reduction(runs: Sequence[Run]) -> Figure:
    """How much of the squared gradient of standardized weights centring (Eq. 5) and division (Eq. 6) remove.

    Shares in per cent, averaged over the layers, on a logarithmic axis; the band spans the layers' quartiles.

    Args:
        runs: one or more, a panel each.
    """
    expect(runs, 1)
    figure = Figure(figsize=(PAGE if len(runs) > 1 else PAGE / 2, 2.9), layout="constrained")
    axes = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axis, run, name in zip(axes, runs, labels(runs), strict=True):
        epochs = [record["epoch"] for record in run.gradients]
        for (term, (_, colour)), marker in zip(_TERMS.items(), MARKERS, strict=False):
            shares = [[100 * row[term] for row in record["layers"]] for record in run.gradients]
            draw_line(axis, epochs, [statistics.fmean(s) for s in shares], color=colour, marker=marker)
            quartiles = [statistics.quantiles(s, n=4) if len(s) > 1 else s * 3 for s in shares]
            low, _, high = ([q[i] if q[i] > 0 else math.nan for q in quartiles] for i in range(3))
            axis.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(yscale="log", xlabel="epoch")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(name, loc="left")
    axes[0].set_ylabel("share of ‖g‖² (%)")
    keys = [
        key_line(color=colour, marker=marker, markersize=3, label=label)
        for (label, colour), marker in zip(_TERMS.values(), MARKERS, strict=False)
    ]
    legend_above(figure, keys, columns=3 if len(runs) > 1 else 1)
    return figure
