"""Compile the Triton kernels that a layer launches, for an NVIDIA GPU that need not be there: no launch, no device.

    python tests/triton_compile.py ARCHITECTURE SHAPE LAYOUT DTYPE NORM     80 8,64,7,7 last bfloat16 sn

Prints a line for each kernel: its name, launch grid, and the widest load of its code in bits.
"""

import os
import re
import sys
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from norm_files import build
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from normlab.norm.kernels import triton_backend
from normlab.norm.ops import accumulation_dtype

BITS = {"b8": 8, "b16": 16, "b32": 32, "b64": 64}


class Driver:
    """Stands for a GPU of the given architecture."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def print_instead_of_launching() -> None:
    compile_or_run = JITFunction.run

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = compile_or_run(self, *args, grid=grid, warmup=True, **kwargs)
        loads = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.(b\d+)", compiled.asm["ptx"])
        widest = max(int(vector or 1) * BITS[size] for vector, size in loads)
        print(self.__name__, "x".join(map(str, grid)), widest)

    JITFunction.run = run


def main(architecture: str, shape: str, layout: str, dtype: str, norm: str) -> None:
    triton.runtime.driver.set_active(Driver(int(architecture)))
    print_instead_of_launching()
    x = torch.empty([int(n) for n in shape.split(",")], dtype=getattr(torch, dtype), device="meta")
    if layout == "last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    layer = build(norm, x.shape[1])
    acc = accumulation_dtype(x)
    weight, bias, mean_logits, var_logits = (
        None if t is None else t.detach().to("meta", acc)
        for t in (layer.weight, layer.bias, layer.mean_logits, layer.var_logits)
    )
    parameters = (weight, bias, mean_logits, mean_logits if layer.tied else var_logits)
    settings = (*layer.algebra, 2)
    run = triton_backend.kernels()
    mean_NC, var_NC = run["moments"](x)
    mixed = run["mix"](mean_NC, var_NC, *parameters, None, *settings)
    run["affine"](x, mean_NC, mixed.scale_NC, mixed.shift_NC)
    dshift_NC, dscale_NC = run["sums"](x, x, mean_NC)
    kept = (mixed.scale_NC, mixed.mu_NC, mixed.rstd_NC, mixed.statistics)
    gradients = run["mix_backward"](dscale_NC, dshift_NC, mean_NC, var_NC, *kept, *parameters, False, *settings)
    run["input_gradient"](x, x, mean_NC, mixed.scale_NC, gradients.mean_NC, gradients.var_NC)


if __name__ == "__main__":
    main(*sys.argv[1:])
