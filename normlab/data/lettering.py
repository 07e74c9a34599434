"""Pictures of characters, drawn with the DejaVu fonts that matplotlib ships.

picture(characters()[5], 0) -> (24, 24)        in the first of twelve faces, ink in [0, 1]
"""

import unicodedata
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
_ALIKE = 0.05  # mean square difference of two pictures in the first face, up to which they are one character
_SEEN = ("L", "N", "S", "P")  # categories of Unicode that leave ink: letters, numbers, symbols, punctuation


@cache
def characters() -> tuple[str, ...]:
    """Those that all faces have, in the order of Unicode, but for those that look like one before them.

    So do Latin, Greek and Cyrillic A, and o and O, since pictures have one size.
    """
    from fontTools.ttLib import TTFont  # reads which characters a font has; matplotlib depends on it

    codes = [set(TTFont(_file(face), lazy=True).getBestCmap()) for face in FACES]
    every = [chr(code) for code in sorted(set.intersection(*codes)) if unicodedata.category(chr(code))[0] in _SEEN]
    drawn_NP = np.array([picture(character, 0) for character in every], np.float64).reshape(len(every), -1)
    bytes_NP = (255 * drawn_NP).round()
    square_N = (bytes_NP**2).sum(1)
    distance_NN = square_N[:, None] + square_N - 2 * bytes_NP @ bytes_NP.T  # of whole numbers: the same everywhere
    alike_NN = distance_NN <= _ALIKE * (255 * SIDE) ** 2
    kept_N = np.zeros(len(every), bool)
    for k in range(len(every)):
        kept_N[k] = square_N[k] > 0 and not (alike_NN[k, :k] & kept_N[:k]).any()
    return tuple(every[k] for k in np.flatnonzero(kept_N))


@cache
def picture(character: str, face: int) -> NDArray[np.float32]:
    """The share of each pixel (SIDE, SIDE) that is ink, the longer side from edge to edge; zeros where none is."""
    from PIL import Image

    mask = _font(FACES[face]).getmask(character, mode="L")
    ink = Image.frombytes("L", mask.size, bytes(mask)) if min(mask.size) else None
    box = ink.getbbox() if ink is not None else None
    if ink is None or box is None:
        return np.zeros((SIDE, SIDE), np.float32)
    ink = ink.crop(box)
    longer = max(ink.size)
    width, height = (max(1, round(SIDE * side / longer)) for side in ink.size)
    square = Image.new("L", (SIDE, SIDE))
    square.paste(ink.resize((width, height), Image.Resampling.BOX), ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(square, np.float32) / np.float32(255)


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
