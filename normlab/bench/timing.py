"""How long a call takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer


def seconds_a_call(function: Callable[[], Any], at_least: float) -> float:
    """Median over blocks of calls that take `at_least` seconds together, after a warm-up; GPUs are waited for."""
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).median
