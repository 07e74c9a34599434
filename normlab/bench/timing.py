"""How long a call takes."""

import logging
from collections.abc import Callable
from typing import Any

import torch


def seconds_a_call(function: Callable[[], Any], at_least: float) -> float:
    """Median over blocks of calls that take `at_least` seconds together, after a warm-up; GPUs are waited for."""
    # Imported with it, torch's builder of extensions complains about a CUDA toolkit on a machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).median
