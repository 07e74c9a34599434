"""Checkpoints whose writing is killed."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from normlab.doctor.experiment import PATIENCE, UPDATES, Experiment, loadable
from normlab.doctor.watch import unfinished_writes
from normlab.errors import RunError
from normlab.runs.folder import RunFolder, checkpoint_files

_DELAY = 0.003  # seconds, at most, that a write is under way at its kill: about as long as it takes
_LOOK = 0.1  # seconds to wait for the sight of one


@dataclass
class WriteKill:
    """A kill of a process that writes checkpoint after checkpoint, as it is drawn, and what came of it.

    Args:
        seconds: from the sight of a write to the kill.
        written: checkpoints that were reported as written.
        inside: whether it hit within a write, as a temporary file tells.
    """

    seconds: float
    written: int = 0
    inside: bool = False


def draw_writes(number: int, rng: random.Random) -> list[WriteKill]:
    return [WriteKill(round(rng.uniform(0, _DELAY), 6)) for _ in range(number)]


def kill_writes(experiment: Experiment, kills: list[WriteKill], progress: Callable[[int, int], None]) -> list[str]:
    """Kill loops of writing; returns what is wrong: a checkpoint that cannot be loaded, or one that was lost."""
    wrong = []
    reference = experiment.reference
    for done, kill in enumerate(kills, 1):
        name = f"write{done}"
        run = RunFolder(experiment.out / name / reference.path.name)
        run.checkpoints.mkdir(parents=True)
        shutil.copy(reference.run_file, run.run_file)
        log = experiment.log(name)
        words = [str(checkpoint_files(reference.checkpoints)[-1]), str(run.path)]
        attempt = experiment.server.start(words, log, verb="save")
        while not (log.is_file() and log.stat().st_size):
            if attempt.ended(0.001):
                raise RunError(f"the writing of checkpoints ended by itself; see {log}")
        until = time.monotonic() + _LOOK
        while not unfinished_writes(run) and time.monotonic() < until:
            pass
        time.sleep(kill.seconds)
        attempt.kill()
        attempt.ended(PATIENCE)
        kill.written = len(log.read_text().split())
        kill.inside = bool(unfinished_writes(run))
        newest, unloadable = loadable(run)
        problems = [f"{path.name} cannot be loaded" for path in unloadable]
        if newest < UPDATES + kill.written:
            problems.append(f"checkpoint {UPDATES + kill.written} was written, and the newest to be had is {newest}")
        wrong += [f"{name}: {line}" for line in problems]
        if not problems:
            shutil.rmtree(experiment.out / name)
        progress(done, len(kills))
    return wrong
