"""Batch average: the statistics that batch scopes use in evaluation, measured after training (SN, Sec. 2.1).

All parameters frozen, training minibatches of the per-replica size pass through the network in training mode; the
batch means and variances of all calls of a layer are averaged. G replicas at a time, as in training, so that
synchronized scopes see what they saw there.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normlab.engine.loader import batches
from normlab.engine.session import Session
from normlab.errors import UserError
from normlab.norm.layer import Normalizer
from normlab.processes import devices
from normlab.replicas import Pass, passes, set_replicas
from normlab.seeding import mix_seed
from normlab.tasks.task import Batch

State = dict[str, Tensor]  # buffer name in the model -> statistic


class _Average:
    """Mean of the batch means (W,) and of the batch variances of one scope, and the scatter of the means, in float64.

    Batches join by Chan's rule: nothing is subtracted from a sum of squares.
    """

    def __init__(self, like_W: Tensor) -> None:
        zeros_W = torch.zeros_like(like_W, dtype=torch.float64)
        self.count: float = 0
        self.mean_W = self.var_W = zeros_W
        self.scatter_W = zeros_W  # mean over batches of (batch mean - mean)^2

    def add(self, count: float, mean_W: Tensor, var_W: Tensor, scatter_W: Tensor) -> None:
        share = count / (self.count + count)
        delta_W = mean_W - self.mean_W
        self.scatter_W = (1 - share) * self.scatter_W + share * scatter_W + share * (1 - share) * delta_W**2
        self.mean_W = self.mean_W + share * delta_W
        self.var_W = self.var_W + share * (var_W - self.var_W)
        self.count += count

    def add_rows(self, mean_RW: Tensor, var_RW: Tensor) -> None:
        mean_RW, var_RW = mean_RW.double(), var_RW.double()
        self.add(len(mean_RW), mean_RW.mean(0), var_RW.mean(0), mean_RW.var(0, correction=0))

    def over_ranks(self) -> "_Average":
        """Of all ranks, joined in their order; they may have measured different numbers of batches, or none."""
        _, size = devices.rank_and_size()
        if size == 1:
            return self
        count_W = torch.full_like(self.mean_W, self.count)
        own = torch.stack([count_W, self.mean_W, self.var_W, self.scatter_W])
        everyone = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(everyone, own)
        joined = _Average(self.mean_W)
        for count_W, *measured in everyone:
            if count := count_W[0].item():
                joined.add(count, *measured)
        return joined


@torch.no_grad()
def estimate(
    model: nn.Module, passes: Iterable[Any], forward: Callable[[Any], object], variance: str = "mean"
) -> State:
    """Batch-average statistics of all layers that ran, by the names of their buffers; the model is left as it was.

    Each call of a layer counts, by its rows. A layer that did not run keeps its own statistics: none are returned.

    Args:
        model: holds the layers.
        passes: what there is to run.
        forward: runs one of them through the model.
        variance: "mean" of the batch variances (the paper), or "population": that of all samples together, which
            adds the scatter of the batch means.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Normalizer) and m.tracks_statistics}
    averages = {
        (name, scope): _Average(layer.get_buffer(buffer))
        for name, layer in layers.items()
        for buffer, (scope, _) in layer.stored_names().items()
    }
    was_training = {module: module.training for module in model.modules()}
    collected_elsewhere = {name: layer.calls for name, layer in layers.items()}
    model.train()
    try:
        for one in passes:
            for layer in layers.values():
                layer.calls = []
            forward(one)
            for name, layer in layers.items():
                for call in layer.calls or ():
                    for scope, statistics in call.items():
                        averages[name, scope].add_rows(statistics.mean_RW, statistics.var_RW)
    finally:
        for module, training in was_training.items():
            module.training = training
        for name, layer in layers.items():
            layer.calls = collected_elsewhere[name]
    averages = {key: average.over_ranks() for key, average in averages.items()}
    state = {}
    for name, layer in layers.items():
        for buffer, (scope, what) in layer.stored_names().items():
            average = averages[name, scope]
            if not average.count:
                continue
            value = average.mean_W if what == "mean" else average.var_W
            if what == "var" and variance == "population":
                value = average.var_W + average.scatter_W
            own = layer.get_buffer(buffer)
            state[f"{name}.{buffer}".lstrip(".")] = value.to(own.device, own.dtype)
    return state


def batch_average(
    model: nn.Module,
    loader: Iterable[Any],
    forward: Callable[[Any], object] | None = None,
    *,
    variance: Literal["mean", "population"] = "mean",
) -> None:
    """Measure the statistics of normlab's layers over the batches of a loader, and put them into the layers.

    For weights that no training pass has run with: averaged ones (SWA, EMA), edited or merged ones. It is to these
    layers what torch.optim.swa_utils.update_bn is to torch's own, which knows no others and says nothing of them; a
    model that has both needs both. Every batch counts alike. A model without layers that keep statistics is not run.
    Where there are several ranks, all call it, each with batches of its own.

    Args:
        model: holds the layers; all else in it is left as it was, except what others count in training mode.
        loader: gives batches: tensors, or lists and tuples whose first item is the input.
        forward: runs a batch through the model, where `model(input)` on the device of its layers does not.
        variance: as in `estimate`.

    Raises:
        UserError: no layer saw a batch.
    """
    layers = [m for m in model.modules() if isinstance(m, Normalizer) and m.tracks_statistics]
    if not layers:
        return
    device = next(layers[0].buffers()).device

    def run(batch: Any) -> object:
        first = batch[0] if isinstance(batch, (list, tuple)) else batch
        return model(first.to(device) if isinstance(first, Tensor) else first)

    state = estimate(model, loader, forward or run, variance)
    if not state:
        raise UserError("batch_average: no layer that keeps statistics saw a batch; the loader may be empty")
    model.load_state_dict(state, strict=False)


def measure(session: Session) -> State:
    """`estimate` by the config's settings on the task's training data, shared by all ranks.

    Whole iterations of G x N samples are measured, at least one, in an order of their own.
    """
    task, model, config, share = session.experiment.task, session.experiment.model, session.config, session.share
    phase = task.phases[0]  # that of the network which is evaluated
    length = len(task.dataset(phase.split))  # type: ignore[arg-type]
    wanted = min(config.batch_average.num_samples or length, length)
    iterations = max(1, wanted // (share.replicas * share.per_replica))
    seed = mix_seed(config.seed, *b"batch average")

    groups = task.groups(phase.split)

    def trips() -> Iterator[Pass]:
        return passes(share, seed, length, iterations, 0, iterations, config.batch_average.augment, groups)

    def forward(trip: tuple[Pass, Batch]) -> None:
        current, batch = trip
        seeds = current.seeds(seed)
        devices.seed(session.device, seeds[0])  # for what draws from the global generator inside a model
        set_replicas(model, len(current.replicas), seeds)
        with devices.autocast(config, session.device):
            phase.objective(model, batch, len(current.replicas))
        session.progress("measuring statistics", current.iteration + current.last, iterations)

    loaded = batches(session, phase.split, trips, share.per_replica)
    return estimate(model, loaded, forward, config.batch_average.variance)
