"""Feature files as MegaFace's code takes them: an OpenCV matrix of one column.

Four whole numbers of 32 bits, rows, columns, bytes of a row and 5 (float32), then the rows, all little-endian.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normlab.writing import write_bytes

_FLOAT32 = 5  # CV_32F


def write_feature(path: Path, feature_E: NDArray[np.float32]) -> None:
    """Write a feature; its folder is made. Raises DiskFullError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = feature_E.astype("<f4")
    write_bytes(path, struct.pack("<4i", len(content), 1, content.itemsize, _FLOAT32), content.tobytes())
