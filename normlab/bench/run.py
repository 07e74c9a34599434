"""A training run of the engine, against a bare loop of the same network on the same data."""

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import nn
from torch.nn.functional import cross_entropy

from normlab.bench.machine import set_threads
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.tables import Row, Table, plain
from normlab.config import Config, load
from normlab.engine.evaluate import evaluated
from normlab.engine.length import Length
from normlab.engine.loader import batches
from normlab.engine.loop import Loop
from normlab.engine.session import Session, open_session
from normlab.norm.convert import convert
from normlab.progress import Progress
from normlab.replicas import Share, passes, set_replicas
from normlab.runs.folder import RunFolder
from normlab.schema import bind
from normlab.trackers.tracker import NoTracker

RUN, BARE, TORCH = "normlab train", "bare loop, our layers", "bare loop, torch BatchNorm2d"


def bench(
    progress: Progress,
    *,
    settings: Sequence[str] = ("norm=sn", "batch=8x2"),
    epochs: Annotated[int, Ge(1)] = 2,
    rounds: Annotated[int, Ge(1)] = 5,
    threads: Annotated[int, Ge(1), Le(2**15)] = 1,
) -> list[Row]:
    """CPU time of an update in a run of classification, next to bare loops of the same network on the same samples.

    The run keeps its records, ratios and checkpoints as by default, and loads its samples as it does. The bare loops
    have them in memory, augmented and normalized, and do nothing but forward, loss, backward and optimizer: with the
    run's normalizers, and with torch's BatchNorm2d in their place, which knows no replicas. All three evaluate at each
    epoch's end. Starting a process and what follows the last epoch is not counted.

    Args:
        settings: of the run, as for normlab train.
        epochs: of each run and loop.
        rounds: of which the medians and quartiles are taken.
        threads: of the CPU.
    """
    set_threads(threads)
    finished = itertools.count(1)
    with tempfile.TemporaryDirectory() as out:
        config = load([*settings, f"epochs={epochs}", "tracker=none", f"threads={threads}", f"out={out}"])
        runs = itertools.count(1)
        run = partial(_run, config, Path(out), runs)
        session = _session(config, Path(out), runs)
        loops = {BARE: _BareLoop(session, config, False), TORCH: _BareLoop(session, config, True)}
        candidates: dict[str, Callable[[], float]] = {RUN: run} | {name: loop.run for name, loop in loops.items()}
        times = interleave(candidates, rounds, lambda: progress("measuring", next(finished), 3 * rounds))
    updates = loops[BARE].updates
    return [
        {
            **{"who": who, "settings": " ".join(settings), "updates": updates},
            "milliseconds": spread([1000 * seconds / updates for seconds in values]),
            "to_bare": ratio(values, times[BARE]),
            "to_torch": ratio(values, times[TORCH]),
        }
        for who, values in times.items()
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    columns = {"who": "", "milliseconds": "ms of CPU time an update", "to_bare": "/ bare loop", "to_torch": "/ torch's"}
    return [plain("a run against a bare loop: {settings}".format(**rows[0]), rows, columns)]


def _session(config: Config, out: Path, runs: "itertools.count[int]") -> Session:
    folder = RunFolder(out / str(next(runs)))
    folder.create(config)
    return open_session(folder)


def _run(config: Config, out: Path, runs: "itertools.count[int]") -> float:
    """Seconds of CPU time that the engine's loop takes, from its first update to the end of its last epoch."""
    session = _session(config, out, runs)
    loop = Loop(session, NoTracker(session.folder.path, "", "", {}))
    start = time.process_time()
    loop.run()
    return time.process_time() - start


class _BareLoop:
    """What anyone would write: a network, an optimizer, batches in memory."""

    def __init__(self, session: Session, config: Config, torchs: bool) -> None:
        task: Any = session.experiment.task  # of images
        self.torchs, self.config = torchs, config
        length = Length(config, task)
        self.per_epoch, self.updates = length.per_epoch, length.total
        share = Share(config.replicas, config.per_replica)
        trips = partial(passes, share, config.seed, len(task.dataset("train")), self.per_epoch, 0, self.updates)
        self.train = [batch for _, batch in batches(session, "train", trips, config.per_replica)]
        self.val = [batch for _, batch in evaluated(session, "val")]
        self.shape, self.num_classes = task.example, task.num_classes

    def run(self) -> float:
        """Seconds of CPU time of all epochs."""
        network = self.network()
        start = time.process_time()
        self.train_epochs(network)
        return time.process_time() - start

    def network(self) -> nn.Module:
        network = bind(self.config.model)(self.shape, self.num_classes)
        if not self.torchs:
            convert(network, self.config.norm and bind(self.config.norm))
            set_replicas(network, self.config.replicas)
        return network

    def train_epochs(self, network: nn.Module) -> None:
        optimizer = bind(self.config.optim)(network, self.config.update_samples)
        for update, (images, labels) in enumerate(self.train, 1):
            cross_entropy(network(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            if update % self.per_epoch == 0:
                self._evaluate(network)

    @torch.no_grad()
    def _evaluate(self, network: nn.Module) -> float:
        network.eval()
        correct = sum((network(images).argmax(1) == labels).sum() for images, labels in self.val)
        network.train()
        return float(correct)
