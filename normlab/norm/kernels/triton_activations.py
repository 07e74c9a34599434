"""moments, affine, sums and input_gradient as launches of Triton kernels (triton_planes.py).

Block sizes follow from the shape alone: nothing is tuned at run time, so a CUDA graph may be captured at once.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlab.norm.kernels import triton_planes as planes

KERNELS = ("moments", "affine", "sums", "input_gradient")
MIN_PROGRAMS = 1024  # fewer leave parts of a large GPU idle
MAX_CHUNKS = 1024  # which the second launch joins in one tile
LARGE = 2**22  # elements from which the larger tile serves
ACCUMULATION = {
    torch.float64: (torch.float64, tl.float64),
    torch.float32: (torch.float32, tl.float32),
    torch.bfloat16: (torch.float32, tl.float32),
    torch.float16: (torch.float32, tl.float32),
}


class Plan(NamedTuple):
    """How an activation is cut into tiles.

    Attributes:
        last: whether channels lie side by side in memory.
        samples, planes, positions: as the kernels see x.
        block_planes, block: a tile.
        align: the largest power of two, up to 16, that divides the distance between neighbouring rows of a tile; the
            compiler cannot see it in a number that is given at run time, and needs it for wide loads.
        warps: per program.
    """

    last: bool
    samples: int
    planes: int
    positions: int
    block_planes: int
    block: int
    align: int
    warps: int

    @classmethod
    def of(cls, x: Tensor) -> "Plan":
        N, C = x.shape[:2]
        L = x.numel() // (N * C)
        return cls.cut(N, C, L, not x.is_contiguous() or (L == 1 and C > 1))

    @classmethod
    @functools.cache
    def cut(cls, N: int, C: int, L: int, last: bool) -> "Plan":
        samples, planes = (N, C) if last else (1, N * C)
        tile = 4096 if N * C * L >= LARGE else 1024
        if last:
            block_planes = _block(C, 16, tile // 32)
            block = min(tile // block_planes, triton.next_power_of_2(L))
        else:
            least, most = (1024, tile) if L >= 8192 else (128, 1024)
            least = max(least, tile // triton.next_power_of_2(planes))
            block = _block(L, least, max(least, most))
            block_planes = min(tile // block, triton.next_power_of_2(planes))
        side_by_side = C if last else L
        align = min(16, side_by_side & -side_by_side)
        return cls(last, samples, planes, L, block_planes, block, align, min(8, max(1, block_planes * block // 256)))

    @property
    def num_tiles(self) -> int:
        """Tiles that one chunk of all planes takes."""
        return self.samples * triton.cdiv(self.planes, self.block_planes)

    @property
    def num_blocks(self) -> int:
        """Tiles along the positions."""
        return triton.cdiv(self.positions, self.block)

    @property
    def shape(self) -> tuple[int, int]:
        """planes and positions as the kernels take them: the side that is aligned comes in units of the alignment."""
        if self.last:
            return self.planes // self.align, self.positions
        return self.planes, self.positions // self.align

    def chunks(self) -> tuple[int, int]:
        """For a reduction over the positions: the chunks that they are cut into, and the iterations of each."""
        wanted = min(triton.cdiv(MIN_PROGRAMS, self.num_tiles), max(1, self.num_blocks // 4), MAX_CHUNKS)
        iterations = triton.cdiv(self.num_blocks, wanted)
        return triton.cdiv(self.num_blocks, iterations), iterations

    def settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {
            "ALIGN": self.align,
            "LAST": self.last,
            "PLANES": self.block_planes,
            "BLOCK": self.block,
            "ACC": ACCUMULATION[dtype][1],
            "num_warps": self.warps,
        }

    def like(self, t: Tensor) -> Tensor:
        """The same values in this layout, copied if need be."""
        return t.movedim(1, -1).contiguous().movedim(-1, 1) if self.last else t.contiguous()


def _block(size: int, least: int, most: int) -> int:
    """The power of two in the range that covers the size with the fewest idle lanes; the larger of equals."""
    if size <= least:
        return triton.next_power_of_2(size)
    blocks = [2**k for k in range(least.bit_length() - 1, most.bit_length())]
    return min(reversed(blocks), key=lambda block: triton.cdiv(size, block) * block)


def is_served(x: Tensor) -> bool:
    """Whether the kernels take this activation: floating point, not empty, dense in one of the two layouts."""
    return (
        x.dtype in ACCUMULATION
        and x.numel() > 0
        and x[0].numel() < 2**29  # offsets in a tile fit 32 bits
        and x.shape[0] * x.shape[1] < 2**31
        and (x.is_contiguous() or x.movedim(1, -1).is_contiguous())
    )


def moments(x: Tensor) -> Any:
    if not is_served(x):
        return NotImplemented
    plan = Plan.of(x)
    chunks, iterations = plan.chunks()
    acc = ACCUMULATION[x.dtype][0]
    mean_NC, var_NC = (x.new_empty(x.shape[:2], dtype=acc) for _ in range(2))
    means, variances = (mean_NC, var_NC) if chunks == 1 else mean_NC.new_empty((2, chunks, mean_NC.numel()))
    with torch.cuda.device_of(x):
        planes.moments[(plan.num_tiles * chunks,)](
            *(x, means, variances, plan.samples, *plan.shape, chunks, iterations), **plan.settings(x.dtype)
        )
        if chunks > 1:
            grid, blocks = _join(mean_NC.numel(), chunks)
            sizes = (mean_NC.numel(), plan.positions, chunks, iterations * plan.block)
            planes.join_moments[grid](means, variances, mean_NC, var_NC, *sizes, **blocks)
    return mean_NC, var_NC


def affine(x: Tensor, anchor: Tensor, scale: Tensor, shift: Tensor) -> Any:
    if not is_served(x):
        return NotImplemented
    plan, y = Plan.of(x), torch.empty_like(x)
    rows = (t.contiguous() for t in (anchor, scale, shift))
    with torch.cuda.device_of(x):
        planes.affine[(plan.num_tiles * plan.num_blocks,)](
            *(x, *rows, y, *plan.shape, plan.num_blocks), **plan.settings(x.dtype)
        )
    return y


def sums(dy: Tensor, x: Tensor, anchor: Tensor) -> Any:
    if not is_served(x):
        return NotImplemented
    plan = Plan.of(x)
    chunks, iterations = plan.chunks()
    plain, weighted = (anchor.new_empty(anchor.shape) for _ in range(2))
    plains, weighteds = (plain, weighted) if chunks == 1 else plain.new_empty((2, chunks, plain.numel()))
    with torch.cuda.device_of(x):
        planes.sums[(plan.num_tiles * chunks,)](
            *(plan.like(dy), x, anchor.contiguous(), plains, weighteds),
            *(plan.samples, *plan.shape, chunks, iterations),
            **plan.settings(x.dtype),
        )
        if chunks > 1:
            grid, blocks = _join(plain.numel(), chunks)
            planes.join_sums[grid](plains, weighteds, plain, weighted, plain.numel(), chunks, **blocks)
    return plain, weighted


def input_gradient(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor) -> Any:
    if not is_served(x):
        return NotImplemented
    plan, dx = Plan.of(x), torch.empty_like(x)
    rows = (t.contiguous() for t in (mean, scale, dmean, dvar))
    with torch.cuda.device_of(x):
        planes.input_gradient[(plan.num_tiles * plan.num_blocks,)](
            *(plan.like(dy), x, *rows, dx, *plan.shape, plan.num_blocks), **plan.settings(x.dtype)
        )
    return dx


def _join(num_stats: int, chunks: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and blocks of the launch that joins the chunks."""
    chunks = triton.next_power_of_2(chunks)
    block = min(max(1, 1024 // chunks), triton.next_power_of_2(num_stats))
    return (triton.cdiv(num_stats, block),), {"CHUNKS": chunks, "BLOCK": block}
