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
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

# Its functions keep the process group that exists when it is imported, as a default. Later, and gloo's threads would
# outlive destroy_process_group, and now and then abort the process as it ends.
import torch.distributed.nn.functional
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.norm.average import MovingAverage
from normlab.norm.layer import Normalizer
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
    tell(replicated(model), replicas, seeds)


def replicated(model: nn.Module) -> list["Normalizer | ReplicaDropout"]:
    """The layers whose result depends on which rows are one replica's."""
    return [m for m in model.modules() if isinstance(m, Normalizer | ReplicaDropout)]


def tell(layers: Sequence["Normalizer | ReplicaDropout"], replicas: int, seeds: list[int] | None) -> None:
    """`set_replicas` for layers that are known: looking for them in each pass takes longer than telling them."""
    for layer in layers:
        if isinstance(layer, Normalizer):
            layer.replicas = replicas
        else:
            layer.seeds = seeds


@contextmanager
def own_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, the model evaluates, but that its norm layers use the statistics of what they see, and keep none.

    For weights that no stored statistics fit, as those of a network that many architectures share. Rows are those of
    one replica.
    """
    modules = [(module, module.training) for module in model.modules()]
    layers = [(m, m.calls, m.replicas) for m, _ in modules if isinstance(m, Normalizer)]
    for module, was_training in modules:
        if was_training != isinstance(module, Normalizer):
            module.training = not was_training
    for layer, _, _ in layers:
        layer.calls, layer.replicas = [], 1
    try:
        yield
    finally:
        for module, was_training in modules:
            if was_training != isinstance(module, Normalizer):
                module.training = was_training
        for layer, calls, replicas in layers:
            layer.calls, layer.replicas = calls, replicas


class _Call(NamedTuple):
    """What one call of a layer measured, in the order of its buffers."""

    layer: int
    k: int  # of its calls in the pass
    parts: list[Tensor]  # (R, W) each
    factors: list[float]  # of each: what the moving average takes of it


class _Measured(NamedTuple):
    """What all k-th calls of a layer measured in an iteration, in the order of its buffers."""

    sums: list[Tensor]  # (W,) each, over the rows
    rows: float


_Key = tuple[int, int]  # k, and the layer's place


class RunningStatistics:
    """Advances the moving averages of all layers once an iteration, however many passes and ranks it took.

    As in torch, a layer that a pass calls twice advances by two steps: the k-th takes the mean over all replicas that
    called it a k-th time, in any pass and on any rank. Passes and ranks need not call a layer equally often, nor on
    images of one size: each variance is corrected by the size of its own pixel sets. A layer that none called does not
    advance. All layers move at once: in a small network the number of operations is what counts.
    """

    def __init__(self, model: nn.Module) -> None:
        averaged = [m for m in model.modules() if isinstance(m, Normalizer | MovingAverage)]
        self.layers = [layer for layer in averaged if layer.tracks_statistics]
        for layer in self.layers:
            layer.calls = []
        self._stored = [layer.stored_names() for layer in self.layers]  # of each layer: buffer -> (scope, mean or var)
        self._measured: dict[_Key, _Measured] = {}

    @torch.no_grad()
    def collect(self) -> None:
        """Take from the layers what they measured in the pass just made."""
        by_rows: dict[int, list[_Call]] = {}  # synchronized layers measure one row, others one a replica
        for number, (layer, stored) in enumerate(zip(self.layers, self._stored, strict=True)):
            assert layer.calls is not None
            for k, call in enumerate(layer.calls):
                parts = [
                    call[scope].mean_RW if what == "mean" else call[scope].var_RW for scope, what in stored.values()
                ]
                factors = [
                    1.0 if what == "mean" else layer.correction(call[scope].size) for scope, what in stored.values()
                ]
                by_rows.setdefault(len(parts[0]), []).append(_Call(number, k, parts, factors))
            layer.calls.clear()
        for rows, calls in by_rows.items():
            parts = [part_RW for of in calls for part_RW in of.parts]
            sums = torch.cat(parts, 1).sum(0).split([part_RW.shape[1] for part_RW in parts])
            scaled = iter(torch._foreach_mul(sums, [factor for of in calls for factor in of.factors]))
            for of in calls:
                self._add((of.k, of.layer), _Measured(list(islice(scaled, len(of.parts))), rows))

    def _add(self, key: _Key, found: _Measured) -> None:
        if key in self._measured:
            earlier = self._measured[key]
            found = _Measured(list(torch._foreach_add(earlier.sums, found.sums)), earlier.rows + found.rows)
        self._measured[key] = found

    @torch.no_grad()
    def advance(self) -> None:
        """Average over the rows of all passes and ranks, and move the running statistics by a step for each k."""
        measured, self._measured = self._over_ranks(), {}
        for _, step in groupby(sorted(measured), key=lambda key: key[0]):
            keys = list(step)
            for momentum in dict.fromkeys(self.layers[number].steady_momentum for _, number in keys):
                alike = {key: measured[key] for key in keys if self.layers[key[1]].steady_momentum == momentum}
                self._move(alike, momentum)
            torch._foreach_add_([self.layers[number].get_buffer("num_batches_tracked") for _, number in keys], 1)

    def _move(self, measured: Mapping[_Key, _Measured], momentum: float | None) -> None:
        """Layers of one momentum by one step; None: each by what its count of steps says."""
        buffers = {key: self._buffers(key[1]) for key in measured}
        means = torch._foreach_div(
            [sum_W for found in measured.values() for sum_W in found.sums],
            [found.rows for found in measured.values() for _ in found.sums],
        )
        flat = [buffer_W for of in buffers.values() for buffer_W in of]
        values = [mean_W.to(buffer_W.dtype) for mean_W, buffer_W in zip(means, flat, strict=True)]
        weight: Any = momentum
        if momentum is None:
            weight = [self.layers[key[1]].weight_of_step(t_W.dtype) for key, of in buffers.items() for t_W in of]
        torch._foreach_lerp_(flat, values, weight)

    def _buffers(self, number: int) -> list[Tensor]:
        return [self.layers[number].get_buffer(name) for name in self._stored[number]]

    def _over_ranks(self) -> dict[_Key, _Measured]:
        """What was measured, added up over the ranks; of a call that a rank did not make it adds nothing."""
        if num_ranks() == 1 or not self.layers:
            return self._measured
        keys = [(k, number) for number, count in enumerate(self._agreed_counts()) for k in range(count)]
        if not keys:
            return {}
        found = [self._measured.get(key) or self._nothing(key[1]) for key in keys]
        sums = [sum_W for of in found for sum_W in of.sums]
        rows = torch.tensor([of.rows for of in found], dtype=sums[0].dtype, device=sums[0].device)
        flat = torch.cat([rows, *sums])
        dist.all_reduce(flat)
        totals, *joined = flat.split([len(keys), *map(len, sums)])
        rest = iter(joined)
        return {
            key: _Measured([sum_W / total for sum_W in islice(rest, len(of.sums))], 1)  # nothing is read of a GPU
            for key, of, total in zip(keys, found, totals, strict=True)
        }

    def _nothing(self, number: int) -> _Measured:
        return _Measured([torch.zeros_like(t_W, dtype=accumulation_dtype(t_W)) for t_W in self._buffers(number)], 0)

    def _agreed_counts(self) -> list[int]:
        """How often each layer was called at most, over all ranks."""
        counts = [0] * len(self.layers)
        for k, number in self._measured:
            counts[number] = max(counts[number], k + 1)
        own = [*counts, *(-count for count in counts)]  # of these the largest is the least count
        values = torch.tensor(own, device=self._buffers(0)[0].device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        most, least = values.view(2, -1).tolist()
        for layer, largest, smallest in zip(self.layers, most, least, strict=True):
            if largest != -smallest and layer.sync:
                raise UserError(
                    "norm.sync=true needs all devices to run the same layers in each pass, and here a layer ran on "
                    "some of them alone; use norm.sync=false"
                )
        return most


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
