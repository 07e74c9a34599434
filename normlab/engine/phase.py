"""A phase of training: its parameters, optimizer, schedule and data, and how one update of it is made.

An update averages gradients over all replicas: `_backward` has the line.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normlab.engine.build import Experiment
from normlab.engine.check import trained_by
from normlab.engine.length import Length
from normlab.engine.loader import batches
from normlab.engine.session import Session
from normlab.errors import UserError
from normlab.processes import devices
from normlab.replicas import Pass, RunningStatistics, passes, replicated, tell
from normlab.schema import bind
from normlab.seeding import mix_seed
from normlab.tasks.task import Batch, Phase

Sums = dict[str, Tensor]  # losses and measures of an update, summed over this rank's replicas and iterations


class PhaseTraining:
    """A phase of the session's task. `updates` makes one update after another.

    Attributes:
        name: of the phase.
        lr: the learning rate of the last update, without the factors of parts.
    """

    def __init__(
        self, session: Session, number: int, length: Length, forward_model: nn.Module, statistics: RunningStatistics
    ) -> None:
        self.session, self.number, self.length, self.statistics = session, number, length, statistics
        self._phase: Phase = session.experiment.task.phases[number]
        self.name = self._phase.name
        config, model = session.config, session.experiment.model
        settings = config.phases.get(self.name, {})
        # The first phase keeps the run's own seed: a run of one phase is what it was before there were several.
        self._seed = mix_seed(config.seed, *self.name.encode()) if number else config.seed
        self.trained = _trained(session.experiment, self._phase)
        self.enter()
        self.optimizer = bind(settings.get("optim", config.optim))(model, config.update_samples)
        self.lr = self._base_lr = self.optimizer.param_groups[0]["lr"]
        _scale_learning_rates(self.optimizer, session.experiment)
        self._base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._schedule = bind(settings.get("schedule", config.schedule))
        self.scaler = torch.amp.GradScaler(session.device.type, enabled=config.precision == "fp16")
        self._model = forward_model
        if dist.is_initialized():
            # Buffers are no replica's own: RunningStatistics averages them over all.
            self._model = DistributedDataParallel(
                forward_model, forward_sync_buffers=False, find_unused_parameters=self._phase.skips
            )  # type: ignore[arg-type]
            if session.device.type == "cpu":
                devices.average_gradients(self._model)
        self._replicated = replicated(model)
        self._sums: Sums = {}
        self._measures: list[str] = []

    def enter(self) -> None:
        """Its turn begins: its parameters are trained, the others are constants."""
        for parameter, trains in self.trained.items():
            parameter.requires_grad_(trains)
        self.session.experiment.model.train()

    def updates(self, done: int) -> Iterator[Sums]:
        """Run this rank's passes of all updates behind the first `done` ones; yields after each update."""
        share, task, A = self.session.share, self.session.experiment.task, self.session.config.accumulate
        num_samples = len(task.dataset(self._phase.split))  # type: ignore[arg-type]
        of_data = self.length.spans[self.number].of_data
        total = self.length.done(self.number, self.length.total)

        groups = task.groups(self._phase.split)

        def trips() -> Iterator[Pass]:
            return passes(share, self._seed, num_samples, of_data * A, done * A, total * A, groups=groups)

        for trip, batch in batches(self.session, self._phase.split, trips, share.per_replica):
            completes_update = trip.last and (trip.iteration + 1) % A == 0
            self._backward(trip, batch, completes_update)
            if completes_update:
                self._step(done)
                done += 1
                sums, self._sums = self._sums, {}
                yield sums

    def _backward(self, trip: Pass, batch: Batch, completes_update: bool) -> None:
        """Forward and backward of some replicas; gradients meet over ranks in the last pass of an update."""
        config, replicas = self.session.config, len(trip.replicas)
        seeds = trip.seeds(self._seed)
        devices.seed(self.session.device, seeds[0])  # for what draws from the global generator inside a model
        tell(self._replicated, replicas, seeds)
        alone = not completes_update and isinstance(self._model, DistributedDataParallel)
        with self._model.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with devices.autocast(config, self.session.device):
                outcome = self._phase.objective(self._model, batch, replicas)
            objective_R = torch.stack(list(outcome.losses.values())).sum(0)
            # The mean over all replicas and iterations: ranks' gradients are averaged, not added.
            share = self.session.share.ranks / (config.replicas * config.accumulate)
            self.scaler.scale(objective_R.sum() * share).backward()
        parts = outcome.losses if len(outcome.losses) > 1 else {}
        measured = {"loss": objective_R} | parts | outcome.measures
        self._check_measures(measured)
        for name, values_R in measured.items():
            total = values_R.detach().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self.statistics.collect()
        if trip.last:
            self.statistics.advance()

    def _check_measures(self, measured: Mapping[str, Tensor]) -> None:
        """Raise UserError where passes measure different things: their sums over replicas would mean nothing."""
        self._measures = self._measures or list(measured)
        if list(measured) != self._measures:
            raise UserError(
                f"phase {self.name}: one pass measured {', '.join(self._measures)}, and another "
                f"{', '.join(measured)}; a task measures the same in each"
            )

    def _step(self, done: int) -> None:
        """Move the parameters; `done` updates of the phase came before."""
        total, per_epoch = self.length.done(self.number, self.length.total), self.length.spans[self.number].updates
        factor = self._schedule(done, total, per_epoch)
        self.lr = self._base_lr * factor
        for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, object]:
        """What a later process needs to go on with the phase as this one would."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _trained(experiment: Experiment, phase: Phase) -> dict[nn.Parameter, bool]:
    """Whether the phase trains each of the parameters that any phase may train."""
    own = trained_by(phase, experiment.parts, experiment.trainable)
    named = experiment.model.named_parameters()
    return {parameter: name in own for name, parameter in named if name in experiment.trainable}


def _scale_learning_rates(optimizer: torch.optim.Optimizer, experiment: Experiment) -> None:
    """Give the parameters of parts with a factor (parts.NAME.lr) groups of their own."""
    factors = {
        parameter: experiment.parts.settings_of(name).get("lr", 1.0)
        for name, parameter in experiment.model.named_parameters()
    }
    groups = []
    for group in optimizer.param_groups:
        for factor in dict.fromkeys(factors[p] for p in group["params"]):
            members = [p for p in group["params"] if factors[p] == factor]
            groups.append(group | {"params": members, "lr": group["lr"] * factor})
    optimizer.param_groups[:] = groups
