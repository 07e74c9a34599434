"""The training loop: updates from where the last checkpoint left off to the run's end."""

import logging
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from normlab.engine.batch_average import measure
from normlab.engine.build import build
from normlab.engine.evaluate import check_splits, evaluate, statistics
from normlab.engine.journal import Journal
from normlab.engine.length import Length
from normlab.engine.news import News
from normlab.engine.observe import Observer
from normlab.engine.phase import PhaseTraining
from normlab.engine.provenance import made_by
from normlab.engine.session import Session
from normlab.processes.signals import Interrupted
from normlab.replicas import RunningStatistics, normalizers
from normlab.runs import checkpoint, resumption
from normlab.runs.folder import checkpoint_file
from normlab.trackers.tracker import Tracker

_log = logging.getLogger(__name__)


class Loop:
    """Trains the session's model. `run` returns "finished", "diverged" or "interrupted"."""

    def __init__(self, session: Session, tracker: Tracker) -> None:
        self.session, self.config = session, session.config
        task, model = session.experiment.task, session.experiment.model
        self.length = Length(self.config, task)
        check_splits(task, self.config)
        statistics = RunningStatistics(model)
        forward_model = torch.compile(model) if self.config.compile else model
        self.phases = [
            PhaseTraining(session, number, self.length, forward_model, statistics)  # type: ignore[arg-type]
            for number in range(len(task.phases))
        ]
        self.journal = Journal(session, tracker, self.length)
        self.news = News(session, self.length, getattr(tracker, "place", type(tracker).__name__))
        self.observer = Observer(session, self.length.per_epoch, self.length.total)
        self.updates = 0
        self.seconds = 0.0
        self.signal = 0
        self.made_by: list[str] = []  # one, unless the run went on under another version

    @property
    def diverged_at(self) -> int | None:
        return self.journal.diverged_at

    def run(self) -> str:
        """Raises Interrupted where nothing needs to be finished; what was done before is saved."""
        self._resume()
        if self.session.is_first:
            self.news.begin(self.updates)
        start = time.monotonic() - self.seconds
        if self.updates == 0:
            self.journal.ratios(0)
        else:
            self._look_back()  # checkpoints are written ahead of it
        with self.session.stop.patience():
            for _ in self._train():
                self.seconds = time.monotonic() - start
                self.session.progress("training", self.updates, self.length.total)
                self.signal = self.session.stop.requested(self.session.device)
                looks_back = self.length.is_evaluated(self.updates) or self.length.ends_epoch(self.updates)
                saves = self._checkpoint_is_due() or self.updates == self.length.total or self.signal != 0
                snapshots = [s for s in self.config.snapshots if self.length.updates(s) == self.updates]
                if saves or snapshots or looks_back or self.updates % self.config.log_every == 0:
                    self.journal.look()
                    if self.journal.diverged_at is not None:
                        return "diverged"
                if self.config.ratios_every != "epoch" and self.updates % self.config.ratios_every == 0:
                    self.journal.ratios(self.updates)
                self._keep(snapshots)
                if saves:
                    self._save()
                if self.signal:
                    return "interrupted"
                if looks_back:
                    try:
                        self._look_back()
                    except Interrupted:
                        if not saves:
                            self._save()
                        raise
        return "finished"

    def _train(self) -> Iterator[None]:
        """One update after another, of whichever phase has its turn; yields after each."""
        streams = [phase.updates(self.length.done(k, self.updates)) for k, phase in enumerate(self.phases)]
        current: int | None = None
        while self.updates < self.length.total:
            number = self.length.phase_of(self.updates)
            phase = self.phases[number]
            if number != current:
                phase.enter()
                current = number
            self.observer.begin(self.updates + 1)
            sums = next(streams[number])
            self.updates += 1
            self.journal.note(number, self.updates, sums, phase.lr)
            self.observer.end(self.updates)
            yield

    def _look_back(self) -> None:
        """After an update: the evaluation that is due then, and the ratios at the end of an epoch."""
        if self.length.is_evaluated(self.updates):
            self._evaluate()
        if self.config.ratios_every == "epoch" and self.length.ends_epoch(self.updates):
            self.journal.ratios(self.updates)

    def _evaluate(self) -> None:
        split = self.session.experiment.task.tested[0]  # whatever its name: in records it is val
        self.news.pause(self.updates)
        with self.session.stop.patience(False):
            tested = evaluate(self.session, split, self.config.record.validation)
            values = _named("val", tested)
            if self.config.record.estimators:
                values |= _named("val_batch_average", self._evaluate_batch_average(split))
        trained = self.journal.evaluation(self.updates, values)
        if self.session.is_first:
            self.news.evaluated(self.updates, trained, tested)

    def _evaluate_batch_average(self, split: str) -> dict[str, float]:
        """Nothing where no layer stores statistics: there is one estimator then."""
        model = self.session.experiment.model
        if not any(layer.tracks_statistics for layer in normalizers(model)):
            return {}
        gpus = [self.session.device] if self.session.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):  # training goes on as if nothing had been measured
            state = measure(self.session)
        with statistics(model, state):
            return evaluate(self.session, split, self.config.record.validation)

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
                "made_by": self.made_by,
                "rows": resumption.rows(folder),
                "sums": self.journal.sums,
                "evaluated": self.journal.evaluated,
                "model": self.session.experiment.model.state_dict(),
                "phases": {phase.name: phase.state_dict() for phase in self.phases},
                "rng": torch.get_rng_state(),
            }
            checkpoint.save(folder.checkpoints, state, self.config.checkpoint.keep)

    def _resume(self) -> None:
        """Go on from the last good checkpoint, if there is one; records after it are written again."""
        folder = self.session.folder
        state = resumption.last_good(folder) if self.session.is_first else None
        if dist.is_initialized():  # all ranks from the one that the first has chosen
            chosen: list[int | None] = [state["updates"] if state else None]
            dist.broadcast_object_list(chosen)
            if chosen[0] is not None and not self.session.is_first:
                state = checkpoint.load(checkpoint_file(folder.checkpoints, chosen[0]), folder.run()["id"])
        if state is not None:
            self.session.experiment.model.load_state_dict(state["model"])
            for phase in self.phases:
                phase.load_state_dict(state["phases"][phase.name])
            self.updates, self.seconds = state["updates"], state["seconds"]
            self.journal.sums, self.journal.evaluated = state["sums"], state["evaluated"]
            self.made_by = state.get("made_by", [])
            torch.set_rng_state(state["rng"])
        elif self.session.experiment.weights_follow:  # but none did: all checkpoints were damaged
            self.session.experiment.model.load_state_dict(build(self.config).model.state_dict())
        here = made_by(self.config, self.session.device)
        if here not in self.made_by:
            if self.made_by:
                _log.warning("the run goes on with %s; until here it was made by %s", here, self.made_by[-1])
            self.made_by = [*self.made_by, here]
        if self.session.is_first:
            resumption.take_back(folder, state, self.config.checkpoint.keep)
            for share in self.config.snapshots:
                if self.length.updates(share) <= self.updates and not folder.weights_at(share).is_file():
                    _log.warning("snapshots=%g: the run is past that; rerun=true starts over and keeps it", share)


def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    """Values by class have a place in summary.json, not in a row of each evaluation."""
    return {f"{prefix}/{name}": value for name, value in values.items() if "." not in name}
