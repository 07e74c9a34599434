"""How much the statistics of BN and of EN vary from step to step, and how far apart they lie (HN, Sec. 4.6).

Rows are those of one layer in statistics.jsonl, a row a step (normlab.dynamics.statistics); no torch here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
STATISTICS = ("bn_mean", "bn_std", "en_mean", "en_std")


def spread(rows: Sequence[Row], statistic: str) -> float:
    """Standard deviation over the steps, of the sample (n - 1), averaged over the channels; two rows or more."""
    return float(_by_step(rows, statistic).std(axis=0, ddof=1).mean())


def apart(rows: Sequence[Row], what: Literal["mean", "std"]) -> float:
    """Mean distance of BN's statistics from EN's, over steps and channels."""
    return float(np.abs(_by_step(rows, f"bn_{what}") - _by_step(rows, f"en_{what}")).mean())


def _by_step(rows: Sequence[Row], statistic: str) -> NDArray[np.float64]:
    """(steps, channels) of BN, (steps, 1) of EN."""
    return np.array([np.atleast_1d(row[statistic]) for row in rows], dtype=np.float64)
