"""`normlab doctor --chaos`: the proof, on the user's own machine, that a killed run loses nothing."""

import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from normlab.console import PlainConsole
from normlab.doctor.attempts import Server
from normlab.doctor.damage import Damage, damage_runs, draw_damages
from normlab.doctor.experiment import Experiment
from normlab.doctor.hardware import machine
from normlab.doctor.kills import Kill, draw_kills, kill_runs
from normlab.doctor.twice import Twice, draw_twice, type_twice
from normlab.doctor.watch import PHASES
from normlab.doctor.writes import WriteKill, draw_writes, kill_writes
from normlab.errors import UserError
from normlab.progress import progress_bar
from normlab.versions import PACKAGES, commit, version
from normlab.writing import write_json

RANKS = (1, 2, 3, 4)  # that can share the replicas of the small run equally


@dataclass
class Proof:
    """What is done, and what came of it.

    lost: a line on everything that is not as in the uninterrupted run.
    """

    seed: int
    ranks: int
    workers: int
    kills: list[Kill]
    writes: list[WriteKill]
    damages: list[Damage]
    twice: list[Twice]
    seconds: float = 0.0
    lost: list[str] | None = None

    @classmethod
    def draw(cls, seed: int, ranks: int, workers: int, kills: int, writes: int, damages: int, twice: int) -> "Proof":
        """The moments of the kills, and the places of the damages, from the seed.

        Args:
            seed: of all draws.
            ranks: processes of the run.
            workers: loader workers of each.
            kills: of a run.
            writes: kills of a process that does nothing but write checkpoints.
            damages: truncations of files of a run, and as many flips of a bit in them.
            twice: sweeps, and as many tables, that are typed twice at once.

        Raises:
            UserError: a number of ranks that cannot share the run.
        """
        if ranks not in RANKS:
            raise UserError(f"ranks={ranks}: expected one of {', '.join(map(str, RANKS))}")
        rng = random.Random(seed)
        drawn = draw_kills(kills, ranks, workers, rng), draw_writes(writes, rng), draw_damages(damages, rng)
        return cls(seed, ranks, workers, *drawn, draw_twice(twice, rng))


def chaos(proof: Proof, out: Path, report: Path, server: str = "normlab.doctor.attempts") -> int:
    """Kill, damage, resume, compare and write the report; returns the exit status: 1 if anything was lost.

    Args:
        proof: as drawn.
        out: folder of the runs; those that lost something stay there.
        report: JSON file to write.
        server: module that serves the attempts.

    Raises:
        UserError: not on Linux, whose /proc tells of processes left behind.
        RunError: the server of the attempts ended; the lines before say why.
    """
    if sys.platform != "linux":
        raise UserError("doctor --chaos needs Linux, whose /proc tells which processes are left behind")
    console = PlainConsole(stderr=True)
    console.print(f"seed={proof.seed}")
    for needed in (out, report.parent):
        needed.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="runs-", dir=out.absolute()))
    began = time.monotonic()
    with Server(server) as attempts, progress_bar(console) as progress:
        experiment = Experiment(attempts, folder, proof.ranks, proof.workers)
        proof.lost = experiment.run_reference()
        if not proof.lost:
            proof.lost += kill_runs(experiment, proof.kills, partial(progress, "kills of runs"))
            proof.lost += kill_writes(experiment, proof.writes, partial(progress, "kills of writes"))
            proof.lost += damage_runs(experiment, proof.damages, partial(progress, "damaged files"))
            proof.lost += type_twice(experiment, server, proof.twice, partial(progress, "commands typed twice"))
    proof.seconds = round(time.monotonic() - began, 1)
    if not proof.lost:
        shutil.rmtree(folder)
    installed = {package: version(package) for package in PACKAGES}
    about = {"verdict": _verdict(proof), "machine": machine(), "versions": installed, "commit": commit()}
    write_json(report, about | asdict(proof))
    _show(proof, report)
    return 1 if proof.lost else 0


def _verdict(proof: Proof) -> str:
    return "something was lost" if proof.lost else "nothing was lost"


def _show(proof: Proof, report: Path) -> None:
    table = Table("what was done", "times", "remark")
    for phase in PHASES:
        kills = [kill for kill in proof.kills if kill.phase == phase]
        repeated = max((kill.updates - kill.checkpoint for kill in kills), default=0)
        table.add_row(f"kill: {phase}", str(len(kills)), f"at most {repeated} updates repeated" if kills else "")
    inside = sum(kill.inside for kill in proof.writes)
    table.add_row("kill: writing of checkpoints", str(len(proof.writes)), f"{inside} within a write")
    for kind in ("truncation", "bit flip"):
        damages = [damage for damage in proof.damages if damage.kind == kind]
        noticed, same = sum(d.named for d in damages), sum(d.unchanged for d in damages)
        table.add_row(f"damage: {kind}", str(len(damages)), f"{noticed} noticed, {same} changed nothing")
    for what in ("sweep", "table"):
        pairs = [pair for pair in proof.twice if pair.what == what]
        shared = sum(pair.statuses != [0, 0] for pair in pairs)
        table.add_row(f"typed twice at once: {what}", str(len(pairs)), f"{shared} with cells left to the other command")
    console = PlainConsole()
    console.print(table)
    for line in proof.lost or []:
        console.print(f"lost: {line}", soft_wrap=True)
    console.print(f"{_verdict(proof)}: seed={proof.seed}, {proof.seconds:.0f} s, report: {report}", soft_wrap=True)
