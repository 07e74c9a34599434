"""Pictures of characters, drawn with the DejaVu fonts that matplotlib ships.

templates(characters()[:5]) -> (5, 12, 24, 24)        each in twelve faces, ink in [0, 1]
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.errors import UserError

SIDE = 24  # pixels of a picture; the longer side of the ink has all of them
FACES = tuple(
    f"DejaVu{family}{style}"
    for family, styles in {
        "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "Serif": ("", "-Bold", "-Italic", "-BoldItalic"),
    }.items()
    for style in styles
)
_POINTS = 48  # of the font that is drawn and then reduced
_ALIKE = 0.03  # mean square difference of two pictures in the first face, up to which they are one character
_SEEN = ("L", "N", "S", "P")  # categories of Unicode that leave ink: letters, numbers, symbols, punctuation
Floats = NDArray[np.floating[Any]]


@cache
def characters() -> tuple[str, ...]:
    """Those that all faces have, in the order of Unicode, but for those that look like one before them.

    So do Latin, Greek and Cyrillic A, and o and O, since pictures have one size.
    """
    from fontTools.ttLib import TTFont  # reads which characters a font has; matplotlib depends on it

    codes = [set(TTFont(_file(face), lazy=True).getBestCmap()) for face in FACES]
    every = [chr(code) for code in sorted(set.intersection(*codes)) if unicodedata.category(chr(code))[0] in _SEEN]
    drawn = np.array([_picture(character, FACES[0]) for character in every]).reshape(len(every), -1)
    square_N = (drawn**2).sum(1)
    kept: list[int] = []
    for k, picture in enumerate(drawn):
        distance = square_N[kept] + square_N[k] - 2 * drawn[kept] @ picture
        if square_N[k] and not (distance <= _ALIKE * SIDE**2).any():
            kept.append(k)
    return tuple(every[k] for k in kept)


def templates(chosen: Sequence[str]) -> NDArray[np.float32]:
    """(characters, faces, SIDE, SIDE): the share of each pixel that is ink."""
    return np.array([[_picture(character, face) for face in FACES] for character in chosen], np.float32)


def _picture(character: str, face: str) -> Floats:
    """Its ink in the middle of a square, the longer side from edge to edge; zeros where it has none."""
    from PIL import Image

    mask = _font(face).getmask(character, mode="L")
    ink = Image.frombytes("L", mask.size, bytes(mask)) if min(mask.size) else None
    box = ink.getbbox() if ink is not None else None
    if ink is None or box is None:
        return np.zeros((SIDE, SIDE))
    ink = ink.crop(box)
    longer = max(ink.size)
    width, height = (max(1, round(SIDE * side / longer)) for side in ink.size)
    square = Image.new("L", (SIDE, SIDE))
    square.paste(ink.resize((width, height), Image.Resampling.BOX), ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(square) / 255


@cache
def _font(face: str) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(_file(face)), _POINTS, layout_engine=ImageFont.Layout.BASIC)


def _file(face: str) -> Path:
    """Where matplotlib keeps it, which need not be imported for that. Raises UserError."""
    package = find_spec("matplotlib")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / f"{face}.ttf"
        if file.is_file():
            return file
    raise UserError(f"data=glyphs: matplotlib has no font {face}.ttf; install matplotlib from its own wheel")
