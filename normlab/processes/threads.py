"""How many threads of the CPU a process computes with.

A thread more helps where each has enough to do between two meetings, and costs where it has not, above all beside other
programs: each meeting waits for the slowest. What a pass has to do is counted, not timed: the same command takes the
same number of threads each time, so that a resumed run has the same bits.

Nothing imports torch here before it is needed: OpenMP reads its own number of threads as torch loads it.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Multiply-adds of a forward pass for each thread: `normlab bench threads`, docs/performance.md.
WORTH_A_THREAD = 250_000_000


def cores() -> int:
    """Cores that this process may use: by its affinity, its container (cgroup) and OMP_NUM_THREADS."""
    from joblib import cpu_count  # knows cgroups of both versions; takes a while to import

    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    available = int(cpu_count())
    return min(available, int(given)) if given.isdecimal() and int(given) > 0 else available


def fitting(model: "nn.Module", shape: Sequence[int] | None, rows: int) -> int:
    """Threads for passes of `rows` samples of a shape through a model: up to all cores.

    All of them where the network cannot be counted: those that are no plain networks are large.
    """
    available = cores()
    if available == 1 or shape is None:
        return available
    from normlab.dynamics.dry_run import multiply_adds

    try:
        work = rows * multiply_adds(model, shape)
    except Exception:  # whatever an unusual network provokes
        return available
    return max(1, min(available, round(work / WORTH_A_THREAD)))
