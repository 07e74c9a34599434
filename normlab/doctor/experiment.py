"""The small run that the chaos kills: sn on the embedded digits, with every kind of record and frequent checkpoints."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from normlab.config import load
from normlab.doctor.attempts import Attempt, Server
from normlab.doctor.compare import differences, load_state, missing_or_repeated
from normlab.doctor.readers import Answer, words, written
from normlab.doctor.watch import TRAINING, Watch
from normlab.errors import UserError
from normlab.runs import checkpoint
from normlab.runs.folder import RunFolder, checkpoint_files

EPOCHS, PER_EPOCH, INTERVAL = 3, 12, 3  # updates in an epoch, and from checkpoint to checkpoint
UPDATES = EPOCHS * PER_EPOCH
_SETTINGS = (
    *("norm=sn", "batch=12x1", f"epochs={EPOCHS}", "data.fraction=0.104", "model.width=4", "task.dropout=0.1"),
    *(f"checkpoint.every={INTERVAL / PER_EPOCH}", "ratios_every=2", "log_every=1", "snapshots=[0.5]"),
    *("threads=1", "tracker=none", "figures=summary"),
)
PATIENCE = 300.0  # seconds in which any attempt ends, or hangs
_POLL = 0.001


@dataclass
class Experiment:
    """Runs of it, each in a folder of its own below `out`, and the uninterrupted one, which they are held against.

    spans: seconds of each phase of the uninterrupted run.
    """

    server: Server
    out: Path
    ranks: int = 1
    workers: int = 0
    spans: list[tuple[str, float]] = field(default_factory=list)

    @property
    def settings(self) -> list[str]:
        return [*_SETTINGS, f"devices={self.ranks}", f"workers={self.workers}"]

    def words(self, name: str) -> list[str]:
        """The command of the run below out/name."""
        return ["train", *self.settings, f"out={self.out / name}"]

    def run(self, name: str, seed: int = 0) -> RunFolder:
        return RunFolder.of(load([*self.words(name)[1:], f"seed={seed}"]))

    def spelled(self, name: str, command: str) -> list[str]:
        """The words of a command on the runs below out/name (readers.py)."""
        out = str(self.out / name)
        places = {
            "RUN": str(self.run(name).path),
            "OUT": out,
            "TABLES": str(self.tables(name)),
            "ELSEWHERE": str(self.elsewhere(name)),
        }
        return words(command, places, self.settings)

    def tables(self, name: str) -> Path:
        """Where the records of tables go."""
        return self.out / name / "tables"

    def elsewhere(self, name: str) -> Path:
        """Where commands may write files that are of no run."""
        return self.out / name / "elsewhere"

    def ask(self, name: str, command: str) -> Answer:
        """What a command says of the runs below out/name, and what it writes."""
        self.elsewhere(name).mkdir(exist_ok=True)
        answer = self.type(name, command).answer()
        return replace(answer, written=written(self.elsewhere(name), self.tables(name)))

    def type(self, name: str, command: str, server: Server | None = None) -> "Typed":
        """Start a command on the runs below out/name; with another server, beside one that is under way."""
        (self.out / name).mkdir(parents=True, exist_ok=True)
        place = self.out / f"{name}-{(server or self.server).pid}"
        out, err = place.with_suffix(".out"), place.with_suffix(".err")
        return Typed((server or self.server).start(self.spelled(name, command), err, out), out, err)

    def start(self, name: str, *, typed: bool = False) -> tuple[Attempt, Watch]:
        (self.out / name).mkdir(parents=True, exist_ok=True)
        watch = Watch(self.run(name), UPDATES, PER_EPOCH)
        return self.server.start(self.words(name), self.log(name), typed=typed), watch

    def log(self, name: str) -> Path:
        return self.out / name / "log.txt"

    def finish(self, name: str) -> list[str]:
        """Let the command run to its end; returns what is wrong with that."""
        attempt, watch = self.start(name)
        return follow(attempt, watch) + self.end_problems(name, attempt)

    def end_problems(self, name: str, attempt: Attempt) -> list[str]:
        """What is wrong with an attempt that nobody killed."""
        last = self.log(name).read_text(errors="replace").strip().rpartition("\n")[2]
        return [f"the command ended with status {attempt.status}: {last}"] if attempt.status else []

    def run_reference(self) -> list[str]:
        """The uninterrupted run; returns what is wrong with it."""
        attempt, watch = self.start("uninterrupted")
        problems = follow(attempt, watch) or self.end_problems("uninterrupted", attempt)
        self.spans = watch.spans
        return problems or missing_or_repeated(self.reference, UPDATES, EPOCHS)

    def seconds(self, phase: str) -> float:
        """How long the uninterrupted run was in a phase, on average each time."""
        spans = [seconds for name, seconds in self.spans if name == phase]
        return sum(spans) / max(1, len(spans))

    def remaining(self, updates: int) -> float:
        """How long the uninterrupted run would take from its start if so many updates were done."""
        training = sum(seconds for name, seconds in self.spans if name in TRAINING)
        return sum(seconds for _, seconds in self.spans) - training * updates / UPDATES

    @property
    def reference(self) -> RunFolder:
        return self.run("uninterrupted")

    def verdict(self, name: str) -> list[str]:
        """How the finished run differs from the uninterrupted one; its folder stays where it does."""
        run = self.run(name)
        lines = missing_or_repeated(run, UPDATES, EPOCHS) + differences(self.reference, run)
        if not lines:
            shutil.rmtree(self.out / name)
        return lines


@dataclass(frozen=True)
class Typed:
    """A command under way whose words are of interest, not its phases."""

    attempt: Attempt
    out: Path
    err: Path

    def answer(self) -> Answer:
        """Once it has ended."""
        problems = _wait(self.attempt)
        out, err = (path.read_text(errors="replace") for path in (self.out, self.err))
        for path in (self.out, self.err):
            path.unlink()
        return Answer(self.attempt.status, out, err, problems=problems)


def follow(attempt: Attempt, watch: Watch, look: Callable[[str], object] = lambda phase: None) -> list[str]:
    """Watch an attempt to its end, each time with a `look` at its phase; returns what is wrong with the end."""
    return _wait(attempt, lambda: look(watch.look()))


def _wait(attempt: Attempt, look: Callable[[], object] = lambda: None) -> list[str]:
    """Wait for an attempt's end; returns what is wrong with it: it hangs, or leaves processes behind."""
    while not attempt.ended(_POLL):
        look()
        if time.monotonic() - attempt.began > PATIENCE:
            attempt.kill()
            while not attempt.ended(PATIENCE):
                pass
            return [f"the command did not end within {PATIENCE:.0f} s"]
    return [f"{attempt.orphans} processes were left behind"] if attempt.orphans else []


def loadable(run: RunFolder) -> tuple[int, list[Path]]:
    """Updates in the newest good checkpoint, 0 without one, and the checkpoints that cannot be loaded."""
    updates, unloadable = 0, []
    for path in checkpoint_files(run.checkpoints):
        try:
            updates = max(updates, load_state(run, path)["updates"])
        except (checkpoint.DamagedError, UserError):
            unloadable.append(path)
    return updates, unloadable
