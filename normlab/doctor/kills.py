"""`kill -9` at drawn moments of a run, and the same command again, until it ends as if nothing had happened."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from normlab.doctor.attempts import Attempt
from normlab.doctor.experiment import EPOCHS, INTERVAL, Experiment, follow, loadable
from normlab.doctor.watch import PHASES, TRAINING, last_row

_TYPED_EVERY = 10  # one attempt in so many is a new process, as when the command is typed
_A_RUN = 5  # kills, before it is let go to its end
_ANYWHERE = "anywhere"
_AIMS = (*PHASES, _ANYWHERE, _ANYWHERE)


@dataclass
class Kill:
    """A kill as it is drawn, and what came of it.

    Args:
        aim: the phase to hit, or anywhere in the run.
        entry: which time of coming into the phase.
        delay: after that, as a share of how long the phase lasts in the uninterrupted run.
        victim: everything, or only one process; everything where the run has none of that kind at the moment.
        typed: of the attempt that it ends: typed, or forked.
        last: after it the run is let go to its end.
    """

    aim: str
    entry: int
    delay: float
    victim: Literal["everything", "command", "rank", "worker"]
    typed: bool = False
    last: bool = False
    run: str = ""
    phase: str = ""
    seconds: float = 0.0  # since the attempt began
    status: int | None = None  # of the command
    updates: int = 0  # that metrics.jsonl tells of
    checkpoint: int = 0  # updates that the newest good checkpoint holds
    left: int = 0  # processes that outlived the command, for a while


def draw_kills(number: int, ranks: int, workers: int, rng: random.Random) -> list[Kill]:
    """Kills spread over all phases, and a quarter of them over the whole run, so that no moment is spared.

    Those of one run are in the order of its life: few find it over already.
    """
    victims = ["everything", "command"] + ["rank"] * (ranks > 1) + ["worker"] * (workers > 0)
    aims = [_AIMS[i % len(_AIMS)] for i in range(number)]
    rng.shuffle(aims)
    kills = [Kill(aim, _entry(aim, rng), rng.random(), rng.choice(victims)) for aim in aims]  # type: ignore[arg-type]
    runs = [sorted(kills[start : start + _A_RUN], key=_moment) for start in range(0, number, _A_RUN)]
    for run in runs:
        run[-1].last = True
    drawn = [kill for run in runs for kill in run]
    for kill in drawn[_TYPED_EVERY - 1 :: _TYPED_EVERY]:
        kill.typed = True
    return drawn


def _entry(aim: str, rng: random.Random) -> int:
    return rng.randint(1, EPOCHS) if aim in TRAINING else 1


def _moment(kill: Kill) -> float:
    """Roughly when in a run's life, as an index of its phases."""
    if kill.aim == _ANYWHERE:
        return kill.delay * len(PHASES)
    return PHASES.index(TRAINING[0] if kill.aim in TRAINING else kill.aim)


def kill_runs(experiment: Experiment, kills: list[Kill], progress: Callable[[int, int], None]) -> list[str]:
    """Carry out the kills, several on each run, on as many runs as it takes; returns what is wrong.

    A run that ends before the moment of a kill leaves it to the next run.
    """
    wrong = []
    number = 1
    for done, kill in enumerate(kills, 1):
        while not kill.run:
            name = f"run{number}"
            problems = _strike(experiment, name, kill)
            if kill.last or not kill.run:
                problems = problems or experiment.finish(name) or experiment.verdict(name)
                number += 1
            if not kill.run:
                kill.delay, kill.entry = kill.delay / 2, max(1, kill.entry - 1)  # so that it hits some time
            wrong += [f"{name}: {line}" for line in problems]
        progress(done, len(kills))
    return wrong


def _strike(experiment: Experiment, name: str, kill: Kill) -> list[str]:
    """An attempt at a run that is killed, unless it is over first; returns what is wrong with what that left."""
    run = experiment.run(name)
    goes_on_from = loadable(run)[0]
    attempt, watch = experiment.start(name, typed=kill.typed)
    moment = attempt.began + kill.delay * experiment.remaining(goes_on_from) if kill.aim == _ANYWHERE else math.inf

    def look(phase: str) -> None:
        nonlocal moment
        now = time.monotonic()
        if moment == math.inf and phase == kill.aim and watch.entries(phase) == kill.entry:
            moment = now + kill.delay * experiment.seconds(phase)
        if now >= moment and not kill.run:
            kill.run, kill.phase, kill.seconds = name, phase, round(now - attempt.began, 3)
            attempt.kill(_victim(attempt, kill))

    problems = follow(attempt, watch, look)
    if not kill.run:
        return problems + experiment.end_problems(name, attempt)
    kill.status, kill.left = attempt.status, attempt.left
    kill.updates = last_row(run).get("step", 0)
    kill.checkpoint, unloadable = loadable(run)
    problems += [f"{path.name} cannot be loaded after a kill" for path in unloadable]
    if kill.updates - kill.checkpoint > INTERVAL:
        problems.append(f"{kill.updates} updates were done at a kill, and the newest checkpoint has {kill.checkpoint}")
    if watch.lowest < goes_on_from:
        problems.append(f"the checkpoint has {goes_on_from} updates, and the command went on from {watch.lowest}")
    return problems


def _victim(attempt: Attempt, kill: Kill) -> int | None:
    """The process to kill; None for all of them."""
    if kill.victim == "command":
        return attempt.pid
    there = attempt.children()[kill.victim] if kill.victim != "everything" else []
    return there[int(kill.delay * len(there))] if there else None
