"""Replicas: `batch=GxN` on any number of devices.

G replicas of N samples each take part in every iteration. D processes (ranks) host G/D replicas each, which pass
through the model together, as rows (R*N, ...), replica by replica, or in several passes when memory is short. A replica
is never split. What a rank does then depends on G and N alone, never on D:

    samples      iteration i of epoch e takes permutation(seed, e)[i*G*N : (i+1)*G*N]; replica g its g-th block of N
    statistics   per replica, in the norm layers (Normalizer.replicas)
    gradients    of the mean over all replicas of the loss of each
    averages     running statistics advance once an iteration, with the mean over all replicas
    randomness   dropout draws from (seed, iteration, replica, layer)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Its functions keep the process group that exists when it is imported, as a default. Later, and gloo's threads would
# outlive destroy_process_group, and now and then abort the process as it ends.
import torch.distributed.nn.functional
from torch import Tensor, nn

from normlab.norm.layer import BatchStatistics, Normalizer
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


def passes(
    share: Share, seed: int, length: int, per_epoch: int, start: int, stop: int, augment: bool = True
) -> Iterator[Pass]:
    """The passes of one rank for iterations start..stop-1 over `length` samples.

    An epoch has `per_epoch` iterations, each of G*N samples; what is left over of it is left out.
    """
    G, N = share.replicas, share.per_replica
    order: list[int] = []
    for iteration in range(start, stop):
        epoch, i = divmod(iteration, per_epoch)
        if i == 0 or not order:
            order = permutation(seed, epoch, length)
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


class RunningStatistics:
    """Advances the moving averages of all layers once an iteration, however many passes and ranks it took."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [layer for layer in normalizers(model) if layer.tracks_statistics]
        for layer in self.layers:
            layer.update_in_forward = False
        self._sums: list[Tensor] = []
        self._sizes: list[int] = []
        self._rows = 0

    def collect(self) -> None:
        """Add what the layers measured in the pass just made."""
        measured = [s for layer in self.layers for s in layer.batch_statistics.values()]
        if not measured:
            return
        rows = max(s.mean_RW.shape[0] for s in measured)
        # A synchronized scope gives one row for all replicas: it counts as often as the others.
        sums = [t.mean(0) * rows for s in measured for t in (s.mean_RW, s.var_RW)]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._rows else sums
        self._sizes = [s.size for s in measured]
        self._rows += rows

    def advance(self) -> None:
        """Average over the rows of all passes and ranks, and move the running statistics by one step."""
        if not self._rows:
            return
        flat = torch.cat(self._sums) / self._rows
        if num_ranks() > 1:
            dist.all_reduce(flat)
            flat /= num_ranks()
        averages = iter(flat[None].split([t.numel() for t in self._sums], 1))
        sizes = iter(self._sizes)
        for layer in self.layers:
            layer.update_running(
                {name: BatchStatistics(next(averages), next(averages), next(sizes)) for name in layer.batch_statistics}
            )
        self._sums, self._rows = [], 0


class ReplicaDropout(nn.Module):
    """Elementwise dropout whose masks depend on the replica and the iteration, not on how replicas are stacked.

    Input (R*N, ...); `seeds` (set by set_replicas) gives one seed a replica. Without seeds it draws from torch's
    global generator, as nn.Dropout does.
    """

    def __init__(self, p: float, salt: int = 0) -> None:
        super().__init__()
        self.p, self.salt = p, salt
        self.seeds: list[int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.numel() == 0:
            return x
        if self.seeds is None:
            return nn.functional.dropout(x, self.p)
        generator = torch.Generator(x.device)
        blocks = x.chunk(len(self.seeds))
        keep = [
            torch.rand(block.shape, generator=generator.manual_seed(mix_seed(seed, self.salt)), device=x.device)
            for seed, block in zip(self.seeds, blocks, strict=True)
        ]
        return x * (torch.cat(keep) >= self.p) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def seed_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout by a ReplicaDropout."""
    for salt, (name, module) in enumerate(list(model.named_modules())):
        if type(module) is nn.Dropout:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, ReplicaDropout(module.p, salt))
