"""The training loop: updates from where the last checkpoint left off to the run's end."""

import itertools
import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normlab.config import Config
from normlab.dynamics import ratios
from normlab.engine.batch_average import measure
from normlab.engine.evaluate import evaluate, statistics
from normlab.engine.loader import batches
from normlab.engine.observe import Observer
from normlab.engine.session import Session
from normlab.errors import UserError
from normlab.processes import devices
from normlab.processes.signals import Interrupted
from normlab.replicas import Pass, RunningStatistics, normalizers, passes, set_replicas
from normlab.runs import checkpoint
from normlab.runs.folder import checkpoint_file, checkpoint_files
from normlab.schema import bind
from normlab.tasks.task import Batch
from normlab.tracker import Tracker
from normlab.writing import append_jsonl, cut, size_on_disk

_log = logging.getLogger(__name__)


class Length:
    """How long a run is, counted in updates; an update is `accumulate` iterations of G x N samples."""

    def __init__(self, config: Config, num_samples: int) -> None:
        """Raises UserError if the training set is smaller than one update."""
        self.accumulate = config.accumulate
        self.per_epoch = num_samples // config.update_samples
        if self.per_epoch == 0:
            raise UserError(
                f"batch={config.batch} accumulate={config.accumulate} needs {config.update_samples} samples an update, "
                f"and the training set has {num_samples}"
            )
        self.total = config.iterations or max(1, round(config.epochs * self.per_epoch))

    def epoch(self, updates: int) -> float:
        """Epochs done after so many updates."""
        return updates / self.per_epoch

    def updates(self, share: float) -> int:
        """Done after this share of the run, at least one."""
        return max(1, round(share * self.total))


class Fit:
    """Trains the session's model. `run` returns "finished", "diverged" or "interrupted"."""

    def __init__(self, session: Session, tracker: Tracker) -> None:
        self.session, self.tracker, self.config = session, tracker, session.config
        task, model = session.experiment.task, session.experiment.model
        self.length = Length(self.config, len(task.dataset("train")))  # type: ignore[arg-type]
        if len(task.dataset("val")) == 0:  # type: ignore[arg-type]
            raise UserError(f"data={self.config.choices['data']}: its validation split is empty")
        self.optimizer = bind(self.config.optim)(model, self.config.update_samples)
        self.base_lr = self.optimizer.param_groups[0]["lr"]
        self.schedule = bind(self.config.schedule)
        self.scaler = torch.amp.GradScaler(session.device.type, enabled=self.config.precision == "fp16")
        self.statistics = RunningStatistics(model)
        self.observer = Observer(session, self.length.per_epoch, self.length.total)
        self.forward_model = self._wrapped(model)
        self.updates = 0
        self.seconds = 0.0
        self.signal = 0
        self.diverged_at: int | None = None  # the first update whose loss was not finite
        self._sums: dict[str, Tensor] = {}  # losses and measures of the update under way, summed over replicas
        self._pending: list[tuple[dict[str, Tensor], float]] = []  # and learning rates of updates not looked at yet
        self._epoch_sums: dict[str, float] = {}

    def _wrapped(self, model: nn.Module) -> nn.Module:
        wrapped = torch.compile(model) if self.config.compile else model
        if not dist.is_initialized():
            return wrapped  # type: ignore[return-value]
        # Buffers are no replica's own: RunningStatistics averages them over all.
        return DistributedDataParallel(wrapped, forward_sync_buffers=False)  # type: ignore[arg-type]

    def run(self) -> str:
        """Raises Interrupted where nothing needs to be finished; what was done before is saved."""
        self._resume()
        start = time.monotonic() - self.seconds
        if self.updates == 0:
            self._record_ratios()
        elif self._epoch_ends():  # checkpoints are written ahead of an epoch's evaluation
            self._end_epoch()
        with self.session.stop.patience():
            for _ in self._train():
                self.seconds = time.monotonic() - start
                self.session.progress("training", self.updates, self.length.total)
                self.signal = self.session.stop.requested(self.session.device)
                saves = self._checkpoint_is_due() or self.updates == self.length.total or self.signal != 0
                snapshots = [s for s in self.config.snapshots if self.length.updates(s) == self.updates]
                if saves or snapshots or self._epoch_ends() or self.updates % self.config.log_every == 0:
                    self._look_at_losses()
                    if self.diverged_at is not None:
                        return "diverged"
                if self.config.ratios_every != "epoch" and self.updates % self.config.ratios_every == 0:
                    self._record_ratios()
                self._keep(snapshots)
                if saves:
                    self._save()
                if self.signal:
                    return "interrupted"
                if self._epoch_ends():
                    try:
                        self._end_epoch()
                    except Interrupted:
                        if not saves:
                            self._save()
                        raise
        return "finished"

    # ---- updates ---------------------------------------------------------------------------------------------------

    def _train(self) -> Iterator[None]:
        """Run this rank's passes over all epochs to come; yields after each update."""
        share, task, A = self.session.share, self.session.experiment.task, self.config.accumulate
        num_samples = len(task.dataset("train"))  # type: ignore[arg-type]
        first = self.updates * A

        def trips() -> Iterator[Pass]:
            return passes(share, self.config.seed, num_samples, self.length.per_epoch * A, first, self.length.total * A)

        self.session.experiment.model.train()
        self._set_learning_rate()
        for trip, batch in batches(self.session, "train", trips, share.per_replica):
            completes_update = trip.last and (trip.iteration + 1) % A == 0
            self._pass(trip, batch, completes_update)
            if completes_update:
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()
                self._pending.append((self._sums, self.optimizer.param_groups[0]["lr"]))
                self._sums = {}
                self.updates += 1
                self.observer.end(self.updates)
                yield
                self._set_learning_rate()

    def _set_learning_rate(self) -> None:
        factor = self.schedule(self.updates, self.length.total, self.length.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lr * factor

    def _pass(self, trip: Pass, batch: Batch, completes_update: bool) -> None:
        """Forward and backward of some replicas; gradients meet over ranks in the last pass of an update."""
        if not self._sums:  # the first pass of an update
            self.observer.begin(self.updates + 1)
        seeds = trip.seeds(self.config.seed)
        torch.manual_seed(seeds[0])  # for what draws from the global generator inside a model
        set_replicas(self.session.experiment.model, len(trip.replicas), seeds)
        alone = not completes_update and isinstance(self.forward_model, DistributedDataParallel)
        with self.forward_model.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with devices.autocast(self.config, self.session.device):
                outcome = self.session.experiment.task.losses(self.forward_model, batch, len(trip.replicas))
            objective_R = torch.stack(list(outcome.losses.values())).sum(0)
            # The mean over all replicas and iterations: ranks' gradients are averaged, not added.
            share = self.session.share.ranks / (self.config.replicas * self.config.accumulate)
            self.scaler.scale(objective_R.sum() * share).backward()
        parts = outcome.losses if len(outcome.losses) > 1 else {}
        for name, values_R in ({"loss": objective_R} | parts | outcome.measures).items():
            total = values_R.detach().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self.statistics.collect()
        if trip.last:
            self.statistics.advance()

    # ---- records ---------------------------------------------------------------------------------------------------

    def _look_at_losses(self) -> None:
        """Join what was measured since the last look over the ranks, write a row an update, find divergence."""
        names = list(self._pending[0][0])
        sums = torch.stack([torch.stack([row[name].double() for name in names]) for row, _ in self._pending])
        sums = devices.sum_over_ranks(sums)
        means = (sums / (self.config.replicas * self.config.accumulate)).tolist()
        rows: list[dict[str, Any]] = []
        first = self.updates - len(means) + 1
        for step, values, (_, lr) in zip(itertools.count(first), means, self._pending, strict=False):
            measured = dict(zip(names, values, strict=True)) | {"lr": lr}
            rows.append({"step": step, "epoch": self.length.epoch(step)} | _prefixed("batch", measured))
            if not math.isfinite(measured["loss"]):
                self.diverged_at = step
                break
            for name, value in measured.items():
                self._epoch_sums[name] = self._epoch_sums.get(name, 0.0) + value
        self._pending = []
        self._write(rows)

    def _epoch_ends(self) -> bool:
        return self.updates == self.length.total or self.updates % self.length.per_epoch == 0

    def _end_epoch(self) -> None:
        with self.session.stop.patience(False):
            values = _prefixed("val", evaluate(self.session))
            if self.config.record.estimators:
                values |= _prefixed("val_batch_average", self._evaluate_batch_average())
        in_epoch = self.updates % self.length.per_epoch or self.length.per_epoch
        means = {name: total / in_epoch for name, total in self._epoch_sums.items()}
        self._epoch_sums = {}
        measured = _prefixed("train", means) | values
        self._write([{"step": self.updates, "epoch": self.length.epoch(self.updates)} | measured])
        if self.config.ratios_every == "epoch":
            self._record_ratios()

    def _evaluate_batch_average(self) -> dict[str, float]:
        """Nothing where no layer stores statistics: there is one estimator then."""
        model = self.session.experiment.model
        if not any(layer.tracks_statistics for layer in normalizers(model)):
            return {}
        gpus = [self.session.device] if self.session.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):  # training goes on as if nothing had been measured
            state = measure(self.session)
        with statistics(model, state):
            return evaluate(self.session)

    def _record_ratios(self) -> None:
        experiment = self.session.experiment
        rows = ratios.snapshot(experiment.model, experiment.sites)
        if self.session.is_first and ratios.switchable(rows):
            moment = {"epoch": self.length.epoch(self.updates), "step": self.updates}
            append_jsonl(self.session.folder.ratios, [moment | {"layers": rows}])
            self.tracker.log(ratios.flatten(rows), self.updates)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if self.session.is_first:
            append_jsonl(self.session.folder.metrics, rows)
            for row in rows:
                self.tracker.log({k: v for k, v in row.items() if k != "step"}, row["step"])

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _checkpoint_is_due(self) -> bool:
        return self.updates % max(1, round(self.length.per_epoch * self.config.checkpoint.every)) == 0

    def _keep(self, snapshots: list[float]) -> None:
        """Weights that another run may start from. They are there before a checkpoint that is past them."""
        for share in snapshots if self.session.is_first else ():
            self.session.folder.snapshots.mkdir(exist_ok=True)
            checkpoint.save_tensors(self.session.folder.weights_at(share), self.session.experiment.model.state_dict())

    def _save(self) -> None:
        """What a later process needs to go on as this one would; the records up to here are on the disk before it."""
        folder = self.session.folder
        if self.session.is_first:
            state = {
                "id": folder.run()["id"],
                "updates": self.updates,
                "seconds": self.seconds,
                "records": {file.name: size_on_disk(file) for file in folder.rows},
                "epoch_sums": self._epoch_sums,
                "model": self.session.experiment.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rng": torch.get_rng_state(),
            }
            checkpoint.save(folder.checkpoints, state, self.config.checkpoint.keep)

    def _resume(self) -> None:
        """Go on from the last good checkpoint, if there is one; records after it are written again."""
        folder = self.session.folder
        state = self._last_good() if self.session.is_first else None
        if dist.is_initialized():  # all ranks from the one that the first has chosen
            chosen: list[int | None] = [state["updates"] if state else None]
            dist.broadcast_object_list(chosen)
            if chosen[0] is not None and not self.session.is_first:
                state = checkpoint.load(checkpoint_file(folder.checkpoints, chosen[0]), folder.run()["id"])
        if state is not None:
            self.session.experiment.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.updates, self.seconds = state["updates"], state["seconds"]
            self._epoch_sums = state["epoch_sums"]
            torch.set_rng_state(state["rng"])
        if self.session.is_first:
            checkpoint.prune(folder.checkpoints, self.config.checkpoint.keep)  # a kill may come ahead of it
            for file in folder.rows:
                cut(file, state["records"].get(file.name, 0) if state is not None else 0)
            for share in self.config.snapshots:
                if self.length.updates(share) <= self.updates and not folder.weights_at(share).is_file():
                    _log.warning("snapshots=%g: the run is past that; rerun=true starts over and keeps it", share)

    def _last_good(self) -> checkpoint.State | None:
        """The newest checkpoint that is whole, and whose records are."""
        folder = self.session.folder
        had_some = bool(checkpoint_files(folder.checkpoints))
        for state in checkpoint.good_ones(folder.checkpoints, folder.run()["id"]):
            short = [name for name, size in state["records"].items() if size_on_disk(folder.path / name) < size]
            if not short:
                return state
            _log.warning("%s: rows up to update %d are missing; going back", folder.path / short[0], state["updates"])
        if had_some:
            _log.warning("%s: no checkpoint is left to go on from; starting from the beginning", folder.path)
        return None


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
