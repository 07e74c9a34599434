"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normlab.data.splits import Integers


@cache
def load_handwriting() -> tuple[NDArray[np.float64], Integers]:
    """Pixels (N, 64) from 0 to 16, and labels (N,), as sklearn.datasets.load_digits gives them.

    Its file is read where it lies: importing sklearn takes as long as everything else up to a run's first update.
    """
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # a version that keeps it elsewhere

    return load_digits(return_X_y=True)
