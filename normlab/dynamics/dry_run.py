"""Running a network for what can be known without its values: the shapes it goes through, the work it does."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def dry_device(shape: Sequence[int]) -> str:
    """Where a network runs on a sample of this shape for its shapes alone: on the meta device, without values.

    Small samples run on the CPU, which takes milliseconds: for meta tensors torch imports its compiler, a second.
    """
    return "cpu" if math.prod(shape) <= 3 * 64 * 64 else "meta"


class DispatchMode(TorchDispatchMode):
    """One that looks on, and that torch.compile need not skip: to be able to, torch would import its compiler."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Counter(DispatchMode):
    """Counts floating-point operations as torch's FlopCounterMode does."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.operations += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=outputs)
        return outputs


def dry_copy(model: nn.Module, shape: Sequence[int], samples: int, device: str) -> tuple[nn.Module, Tensor]:
    """A copy of a model in evaluation mode on a device, and what it can be run with: samples of zeros."""
    copied = copy.deepcopy(model).to(device).eval()
    floating = (p.dtype for p in copied.parameters() if p.is_floating_point())
    return copied, torch.zeros(samples, *shape, device=device, dtype=next(floating, None))


@torch.no_grad()
def multiply_adds(model: nn.Module, shape: Sequence[int]) -> int:
    """Of one sample's forward pass in evaluation mode; a copy of the model runs."""
    copied, sample = dry_copy(model, shape, 1, dry_device(shape))
    with _Counter() as counter:
        copied(sample)
    return counter.operations // 2
