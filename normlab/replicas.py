"""Replicas: `batch=GxN` on any number of devices.

G replicas of N samples each take part in every iteration. D processes (ranks) host G/D replicas each, which pass
through the model together, as rows (R*N, ...), replica by replica, or in several passes when memory is short. A replica
is never split. What a rank does then depends on G and N alone, never on D:

    samples      iteration i of epoch e takes permutation(seed, e)[i*G*N : (i+1)*G*N]; replica g its g-th block of N
    statistics   per replica, in the norm layers (Normalizer.replicas)
    gradients    of the mean over all replicas of the loss of each
    averages     running statistics advance once an iteration, with the mean over all replicas; a layer called k times
                 in it advances k times
    randomness   dropout draws from (seed, iteration, replica, layer)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Its functions keep the process group that exists when it is imported, as a default. Later, and gloo's threads would
# outlive destroy_process_group, and now and then abort the process as it ends.
import torch.distributed.nn.functional
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.norm.layer import BatchStatistics, Normalizer
from normlab.norm.ops import accumulation_dtype
from normlab.norm.pooling import num_ranks
from normlab.seeding import mix_seed


@dataclass(frozen=True)
class Share:
    """The replicas that one rank hosts, and how many of them pass through the model at once."""

    replicas: int  # G
    per_replica: int  # N
    rank: int = 0
    ranks: int = 1
    per_pass: int | None = None

    def __post_init__(self) -> None:
        if self.replicas % self.ranks:
            raise ValueError(f"{self.replicas} replicas cannot be shared equally by {self.ranks} ranks")

    def passes(self) -> list[range]:
        """Replicas of each pass of an iteration."""
        hosted = self.replicas // self.ranks
        start, stop = self.rank * hosted, (self.rank + 1) * hosted
        size = self.per_pass or hosted
        return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


@dataclass(frozen=True)
class Pass:
    """One trip through the model: which samples, of which replicas."""

    iteration: int  # counted over the whole run
    replicas: range
    keys: list[tuple[int | None, int]]  # (epoch, sample index), replica by replica
    last: bool  # of this rank's passes in the iteration

    def seeds(self, seed: int) -> list[int]:
        """A seed for the randomness of each replica."""
        return [mix_seed(seed, self.iteration, replica) for replica in self.replicas]

    def one_by_one(self) -> "list[Pass]":
        """The same replicas, a pass each."""
        N, final = len(self.keys) // len(self.replicas), self.replicas[-1]
        return [
            Pass(self.iteration, range(g, g + 1), self.keys[k * N : (k + 1) * N], self.last and g == final)
            for k, g in enumerate(self.replicas)
        ]


def permutation(seed: int, epoch: int, length: int) -> list[int]:
    """The order of the training samples in an epoch."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    return torch.randperm(length, generator=generator).tolist()


def together(order: Sequence[int], groups: Sequence[int], size: int) -> list[int]:
    """The order, but that each block of `size` is of one group; what does not come out even is behind them all."""
    waiting: dict[int, list[int]] = {}
    blocks: list[int] = []
    for index in order:
        block = waiting.setdefault(groups[index], [])
        block.append(index)
        if len(block) == size:
            blocks += block
            block.clear()
    return blocks + [index for block in waiting.values() for index in block]


def passes(
    share: Share,
    seed: int,
    length: int,
    per_epoch: int,
    start: int,
    stop: int,
    augment: bool = True,
    groups: Sequence[int] | None = None,
) -> Iterator[Pass]:
    """The passes of one rank for iterations start..stop-1 over `length` samples.

    An epoch has `per_epoch` iterations, each of G*N samples; what is left over of it is left out. With `groups`, a
    number for each sample, those of a replica are of one group.
    """
    G, N = share.replicas, share.per_replica
    order: list[int] = []
    for iteration in range(start, stop):
        epoch, i = divmod(iteration, per_epoch)
        if i == 0 or not order:
            order = permutation(seed, epoch, length)
            order = together(order, groups, N) if groups is not None else order
        chunks = share.passes()
        for chunk in chunks:
            block = i * G * N
            indices = order[block + chunk.start * N : block + chunk.stop * N]
            keys = [(epoch if augment else None, index) for index in indices]
            yield Pass(iteration, chunk, keys, last=chunk is chunks[-1])


def normalizers(model: nn.Module) -> list[Normalizer]:
    return [m for m in model.modules() if isinstance(m, Normalizer)]


def set_replicas(model: nn.Module, replicas: int, seeds: list[int] | None = None) -> None:
    """Tell the layers that the next training pass stacks so many replicas, and the seeds of their randomness."""
    for module in model.modules():
        if isinstance(module, Normalizer):
            module.replicas = replicas
        elif isinstance(module, ReplicaDropout):
            module.seeds = seeds


class _Calls:
    """What the k-th calls of a layer measured in several passes: sums over their rows, and the number of rows.

    Variances are kept apart by the size of their pixel sets, since the unbiased estimate of each takes its own.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.mean: dict[str, Tensor] = {}  # scope -> sum (W,)
        self.var: dict[str, dict[int, Tensor]] = {}  # scope -> size -> sum (W,), biased

    def add(self, call: Mapping[str, BatchStatistics]) -> None:
        rows = 0
        for scope, (mean_RW, var_RW, size) in call.items():
            rows = len(mean_RW)
            mean_W, var_W = mean_RW.mean(0) * rows, var_RW.mean(0) * rows
            self.mean[scope] = self.mean[scope] + mean_W if scope in self.mean else mean_W
            of_size = self.var.setdefault(scope, {})
            of_size[size] = of_size[size] + var_W if size in of_size else var_W
        self.rows += rows

    def flat(self, layer: Normalizer, sizes: Mapping[str, int]) -> Tensor:
        """Mean and variance of each scope, one after the other; variances as pixel sets of `sizes` would have them."""
        parts = []
        for scope, size in sizes.items():
            first, *others = (
                var_W if own == size else var_W * (layer.correction(own) / layer.correction(size))
                for own, var_W in self.var[scope].items()
            )
            parts += [self.mean[scope], sum(others, first)]
        return torch.cat(parts)


class RunningStatistics:
    """Advances the moving averages of all layers once an iteration, however many passes and ranks it took.

    As in torch, a layer that a pass calls twice advances by two steps: the k-th takes the mean over all replicas that
    called it a k-th time, in any pass and on any rank. Passes and ranks need not call a layer equally often, nor on
    images of one size. A layer that none called does not advance.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [layer for layer in normalizers(model) if layer.tracks_statistics]
        for layer in self.layers:
            layer.calls = []
        self._calls: list[list[_Calls]] = [[] for _ in self.layers]  # of each layer, by k
        # Of each layer: one of the buffers of each scope that it measures, in the order in which it measures them.
        self._buffers = [{scope: name for name, (scope, _) in layer.stored_names().items()} for layer in self.layers]

    def collect(self) -> None:
        """Take from the layers what they measured in the pass just made."""
        for layer, calls in zip(self.layers, self._calls, strict=True):
            assert layer.calls is not None
            for k, call in enumerate(layer.calls):
                if k == len(calls):
                    calls.append(_Calls())
                calls[k].add(call)
            layer.calls.clear()

    def advance(self) -> None:
        """Average over the rows of all passes and ranks, and move the running statistics by a step for each k."""
        if not self.layers:
            return
        counts, sizes = self._agree()
        sums, rows, widths = [], [], []
        for layer, buffers, calls, count, size in zip(
            self.layers, self._buffers, self._calls, counts, sizes, strict=True
        ):
            stored = [layer.get_buffer(name) for name in buffers.values()]
            widths.append([t_W.numel() for t_W in stored for _ in ("mean", "var")])
            zeros = stored[0].new_zeros(sum(widths[-1]), dtype=accumulation_dtype(stored[0]))
            missing = count - len(calls)
            sums += [of.flat(layer, size).to(zeros.dtype) for of in calls] + [zeros] * missing
            rows += [of.rows for of in calls] + [0] * missing
        averages = iter(_averages(sums, rows))
        for layer, count, size, width in zip(self.layers, counts, sizes, widths, strict=True):
            for _ in range(count):
                parts = iter(next(averages)[None].split(width, 1))
                layer.update_running({scope: BatchStatistics(next(parts), next(parts), size[scope]) for scope in size})
        self._calls = [[] for _ in self.layers]

    def _agree(self) -> tuple[list[int], list[dict[str, int]]]:
        """How often each layer was called at most, and the size of its largest pixel sets by scope, over all ranks."""
        counts = [len(calls) for calls in self._calls]
        sizes = [
            {scope: max((size for of in calls for size in of.var[scope]), default=0) for scope in buffers}
            for buffers, calls in zip(self._buffers, self._calls, strict=True)
        ]
        if num_ranks() > 1:
            least = [-count for count in counts]  # whose largest is the least count
            own = [*counts, *(size for of in sizes for size in of.values()), *least]
            device = self.layers[0].get_buffer(next(iter(self._buffers[0].values()))).device
            values = torch.tensor(own, device=device)
            dist.all_reduce(values, dist.ReduceOp.MAX)
            largest = iter(values.tolist())
            counts = [next(largest) for _ in counts]
            sizes = [{scope: next(largest) for scope in of} for of in sizes]
            for layer, count in zip(self.layers, counts, strict=True):
                if -next(largest) != count and layer.sync:
                    raise UserError(
                        "norm.sync=true needs all devices to run the same layers in each pass, and here a layer ran on "
                        "some of them alone; use norm.sync=false"
                    )
        return counts, sizes


def _averages(sums: list[Tensor], rows: list[int]) -> list[Tensor]:
    """Each sum by its number of rows, both added up over the ranks, which hold sums of the same lengths."""
    if num_ranks() == 1 or not sums:
        return [sum_ / of for sum_, of in zip(sums, rows, strict=True)]
    first = sums[0]
    flat = torch.cat([torch.tensor(rows, dtype=first.dtype, device=first.device), *sums])
    dist.all_reduce(flat)
    totals, *joined = flat.split([len(rows), *(t.numel() for t in sums)])
    return [sum_ / total for sum_, total in zip(joined, totals, strict=True)]


class ReplicaDropout(nn.Module):
    """Dropout whose masks depend on the replica and the iteration, not on how replicas are stacked.

    Input (R*N, ...) or, where whole channels are dropped, (R*N, C, ...); `seeds` (set by set_replicas) gives one seed a
    replica. Without seeds it draws from torch's global generator, as nn.Dropout does.
    """

    def __init__(self, p: float, salt: int = 0, channels: bool = False) -> None:
        super().__init__()
        self.p, self.salt, self.channels = p, salt, channels
        self.seeds: list[int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.numel() == 0:
            return x
        if self.seeds is None:
            return torch.feature_dropout(x, self.p, train=True) if self.channels else nn.functional.dropout(x, self.p)
        generator = torch.Generator(x.device)
        blocks = x.chunk(len(self.seeds))
        keep = [
            torch.rand(self._mask(block), generator=generator.manual_seed(mix_seed(seed, self.salt)), device=x.device)
            for seed, block in zip(self.seeds, blocks, strict=True)
        ]
        return x * (torch.cat(keep) >= self.p) / (1 - self.p)

    def _mask(self, block: Tensor) -> tuple[int, ...]:
        return (*block.shape[:2], *(1 for _ in block.shape[2:])) if self.channels else tuple(block.shape)

    def extra_repr(self) -> str:
        return f"p={self.p}"


_OF_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def seed_dropout(model: nn.Module) -> None:
    """Replace torch's dropout, of values and of channels, by ReplicaDropout."""
    for salt, (name, module) in enumerate(list(model.named_modules())):
        if type(module) in (nn.Dropout, *_OF_CHANNELS):
            parent, _, leaf = name.rpartition(".")
            dropout = ReplicaDropout(module.p, salt, type(module) in _OF_CHANNELS)  # type: ignore[attr-defined]
            setattr(model.get_submodule(parent), leaf, dropout)
