"""Checkpoints whose writing is killed, and checkpoints that are cut short or altered."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from normlab.doctor.experiment import PATIENCE, UPDATES, Experiment, follow, loadable
from normlab.doctor.watch import unfinished_writes
from normlab.errors import RunError
from normlab.runs.folder import RunFolder, checkpoint_files

_DELAY = 0.003  # seconds, at most, that a write is under way at its kill: about as long as it takes
_LOOK = 0.1  # seconds to wait for the sight of one
_STOPPED = "stopped"


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


@dataclass
class Damage:
    """A newest checkpoint that is cut short at a place, or has a bit flipped there, and what came of it.

    Args:
        kind: what is done.
        place: as a share of the file's length.
        bit: of the byte there.
        named: whether a warning of the resumed run named the file.
    """

    kind: Literal["truncation", "bit flip"]
    place: float
    bit: int
    named: bool = False


def draw_writes(number: int, rng: random.Random) -> list[WriteKill]:
    return [WriteKill(round(rng.uniform(0, _DELAY), 6)) for _ in range(number)]


def draw_damages(number: int, rng: random.Random) -> list[Damage]:
    """So many of each kind, by turns."""
    return [Damage(kind, rng.random(), rng.randrange(8)) for _ in range(number) for kind in ("truncation", "bit flip")]


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


def damage_runs(experiment: Experiment, damages: list[Damage], progress: Callable[[int, int], None]) -> list[str]:
    """Damage the newest checkpoint of a stopped run, and resume; returns what is wrong.

    That is: no warning named the file, or the run came to another end.
    """
    wrong = []
    if damages:
        _stop_a_run(experiment)
    for done, damage in enumerate(damages, 1):
        name = f"damage{done}"
        shutil.copytree(experiment.out / _STOPPED, experiment.out / name)
        newest = checkpoint_files(experiment.run(name).checkpoints)[-1]
        _inflict(damage, newest)
        log = experiment.log(name)
        log.unlink()
        problems = experiment.finish(name)
        damage.named = newest.name in log.read_text(errors="replace")
        if not damage.named:
            problems.append(f"no warning named {newest.name} after a {damage.kind} at {damage.place:.4f} of it")
        problems = problems or experiment.verdict(name)
        wrong += [f"{name}: {line}" for line in problems]
        progress(done, len(damages))
    return wrong


def _stop_a_run(experiment: Experiment) -> None:
    """A run that was killed near its end, with two checkpoints or more."""
    run = experiment.run(_STOPPED)
    attempt, watch = experiment.start(_STOPPED)

    def look(phase: str) -> None:
        files = checkpoint_files(run.checkpoints)
        if len(files) > 1 and int(files[-1].stem) >= UPDATES * 2 // 3:
            attempt.kill()

    follow(attempt, watch, look)


def _inflict(damage: Damage, path: Path) -> None:
    content = bytearray(path.read_bytes())
    offset = int(damage.place * len(content))
    if damage.kind == "truncation":
        del content[offset:]
    else:
        content[offset] ^= 1 << damage.bit
    path.write_bytes(content)
