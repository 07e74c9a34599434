"""What all figures share. No torch here."""

from pathlib import Path

from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; BN green, IN blue, LN red as in seed 000, Fig. 2.
COLOURS = {"bn": "#009E73", "in": "#0072B2", "ln": "#D55E00", "gn": "#CC79A7", "en": "#E69F00"}
SPARE_COLOURS = ("#000000", "#56B4E9", "#999999", "#F0E442")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
