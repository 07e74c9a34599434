"""mix and mix_backward as launches of Triton kernels: how an algebra is declared to them, block sizes, scratch."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from normlab.norm.algebra import Algebra, Gradients, Mixed
from normlab.norm.kernels.triton_activations import ACCUMULATION
from normlab.norm.kernels.triton_mix import mix_columns, mix_rows
from normlab.norm.kernels.triton_mix_backward import gradient_columns, gradient_rows

KERNELS = ("mix", "mix_backward")
COLUMNS = 16  # channels of a program: few, as N * C is small and must fill a GPU, yet whole sectors of memory
TILE = 2048  # elements


def is_served(mean_NC: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take moments (N, C) and what comes with them: of one type, within 32-bit offsets."""
    same = all(t.dtype == mean_NC.dtype for t in others if t is not None)
    return same and mean_NC.dtype in (torch.float32, torch.float64) and 0 < mean_NC.numel() < 2**28


def mix(mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored, *settings) -> Any:
    if not is_served(mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored):
        return NotImplemented
    launch = _Launch.of(mean_NC, weight, bias, mean_logits, var_logits, stored is not None, *settings)
    pooled = mean_NC.new_empty(launch.num_pooled)
    mean_NC, var_NC, weight, bias, mean_logits, var_logits = (
        None if t is None else t.contiguous() for t in (mean_NC, var_NC, weight, bias, mean_logits, var_logits)
    )
    full = [torch.empty_like(mean_NC) for _ in range(4)]
    statistics = mean_NC.new_empty(launch.num_statistics)
    with torch.cuda.device_of(mean_NC):
        if launch.pools_in_rows:
            mix_rows[launch.rows, launch.num_scopes](
                *(mean_NC, var_NC, pooled, statistics, *launch.sizes),
                **(launch.scopes | launch.in_rows),
            )
        mix_columns[launch.column_tiles, launch.replicas](
            *(mean_NC, var_NC, weight, bias, launch.weight_stride, mean_logits, var_logits, launch.ratio_groups),
            *(stored, pooled, *full, statistics, *launch.sizes),
            **(launch.scopes | launch.mixing | launch.in_columns),
        )
    return Mixed._make((*full, statistics))


def mix_backward(
    dscale, dshift, mean_NC, var_NC, scale, mu, rstd, statistics, weight, bias, mean_logits, var_logits, *settings
) -> Any:
    if not is_served(mean_NC, dscale, dshift, weight, bias, mean_logits, var_logits):
        return NotImplemented
    launch = _Launch.of(mean_NC, weight, bias, mean_logits, var_logits, *settings)
    pooled = mean_NC.new_empty(launch.num_pooled)
    rows = [t.contiguous() for t in (dscale, dshift, mean_NC, var_NC, scale, mu, rstd)]
    dmean_NC, dvar_NC = (torch.empty_like(rows[2]) for _ in range(2))
    weight, bias, mean_logits, var_logits = parameters = [
        None if t is None else t.contiguous() for t in (weight, bias, mean_logits, var_logits)
    ]
    gradients = [None if t is None else torch.empty_like(t) for t in parameters]
    if launch.hard:
        gradients[2:] = [None if t is None else torch.zeros_like(t) for t in parameters[2:]]
    sums = mean_NC.new_empty(launch.rows * launch.ratio_groups * sum(launch.num_mixed))
    given = (*rows, statistics, weight, launch.weight_stride, mean_logits, var_logits, launch.ratio_groups)
    constants = launch.scopes | launch.mixing
    with torch.cuda.device_of(mean_NC):
        if launch.pools_in_rows or launch.learns_ratios:
            gradient_rows[launch.rows, launch.num_scopes * (2 if launch.learns_ratios else 1)](
                *(*given, pooled, sums, *launch.sizes),
                **(constants | launch.in_rows),
                RATIO_MEMBERS=min(TILE, triton.next_power_of_2(launch.num_channels // launch.ratio_groups)),
            )
        gradient_columns[launch.column_tiles, launch.replicas + launch.parameter_rows + 1](
            *(*given, pooled, sums, dmean_NC, dvar_NC, *gradients, *launch.sizes),
            **(constants | launch.in_columns),
            STORED=launch.stored,
            PLACES=triton.next_power_of_2(max(launch.num_mixed)),
        )
    return Gradients(dmean_NC, dvar_NC, *(mean_NC.new_empty(0) if t is None else t for t in gradients))


class _Launch:
    """What the launches share for some shapes and an algebra.

    Attributes:
        sizes: replicas, samples, channels.
        weight_stride: from the weights of a replica to those of the next; 0 where they are shared.
        parameter_rows: rows of weight and bias, 1 if shared.
        num_mixed: scopes of the mean and of the variance.
        num_pooled: scratch for what is pooled in rows: (rows, groups) twice, for each scope of channel groups.
        scopes, mixing, in_rows, in_columns: constants of the kernels.
    """

    def __init__(
        self,
        rows: int,
        num_channels: int,
        dtype: torch.dtype,
        weight_rows: int,
        ratio_groups: int,
        stored: bool,
        algebra: Algebra,
        replicas: int,
    ) -> None:
        self.rows, self.num_channels, self.replicas = rows, num_channels, replicas
        self.sizes = (replicas, rows // replicas, num_channels)
        self.weight_stride = num_channels if weight_rows > 1 else 0
        self.parameter_rows, self.ratio_groups = weight_rows, ratio_groups
        self.stored, self.hard = stored, algebra.hard
        self.num_scopes = len(algebra.across)
        self.num_mixed = (len(algebra.mean), len(algebra.var))
        self.learns_ratios = max(self.num_mixed) > 1 and not algebra.hard
        groups = tuple(0 if width == num_channels else width for width in algebra.widths)
        self.pools_in_rows = any(g and not (a and stored) for g, a in zip(groups, algebra.across, strict=True))
        self.num_pooled = 2 * rows * sum(groups)
        self.num_statistics = max(var.stop for _, var, _ in algebra.layout(replicas, rows, num_channels))
        self.column_tiles = triton.cdiv(num_channels, COLUMNS)
        acc = ACCUMULATION[dtype][1]
        self.scopes = {"ACROSS": algebra.across, "GROUPS": groups}
        self.mixing = {
            "MEAN_AT": _places(algebra.mean, self.num_scopes),
            "VAR_AT": _places(algebra.var, self.num_scopes),
            "NUM_MEAN": len(algebra.mean),
            "NUM_VAR": len(algebra.var),
            "STD": algebra.std,
            "HARD": algebra.hard,
            "EPS": algebra.eps,
        }
        members = tuple(min(TILE, triton.next_power_of_2(num_channels // max(1, g))) for g in groups)
        sets = tuple(min(triton.next_power_of_2(max(1, g)), TILE // m) for g, m in zip(groups, members, strict=True))
        self.in_rows = {"STORED": stored, "SETS": sets, "MEMBERS": members, "ACC": acc}
        tile_rows = min(TILE // COLUMNS, triton.next_power_of_2(rows // replicas))
        warps = max(1, tile_rows * COLUMNS // 256)
        self.in_columns = {"ROWS": tile_rows, "COLS": COLUMNS, "ACC": acc, "num_warps": warps}

    @classmethod
    def of(cls, mean_NC, weight, bias, mean_logits, var_logits, stored: bool, *settings) -> "_Launch":
        *described, replicas = settings
        algebra = Algebra._make(tuple(s) if isinstance(s, list) else s for s in described)
        parameter = weight if weight is not None else bias
        weight_rows = 0 if parameter is None else parameter.numel() // mean_NC.shape[1]
        logits = mean_logits if mean_logits is not None else var_logits
        ratio_groups = 1 if logits is None else logits.numel() // logits.shape[-1]
        return _launch(*mean_NC.shape, mean_NC.dtype, weight_rows, ratio_groups, stored, algebra, replicas)


_launch = functools.cache(_Launch)


def _places(mixed: tuple[int, ...], num_scopes: int) -> tuple[int, ...]:
    """Where each scope lies among those that are mixed; -1 if it is not."""
    return tuple(mixed.index(k) if k in mixed else -1 for k in range(num_scopes))
