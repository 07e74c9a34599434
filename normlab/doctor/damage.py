"""Files of runs that are cut short or altered: what reads them says so, or answers as if they were not."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from normlab.doctor.experiment import UPDATES, Experiment, follow
from normlab.doctor.readers import READERS, REPRODUCE, Answer, notices
from normlab.runs.folder import checkpoint_files

CHECKPOINT = "checkpoints/*.pt"  # the newest one
OF_STOPPED = {f"stopped/{name}": name for name in (CHECKPOINT, "metrics.jsonl", "ratios.jsonl")}
Kind = Literal["truncation", "bit flip"]
_STOPPED, _FINISHED = "stopped", "finished"


@dataclass
class Damage:
    """A file that is cut short at a place, or has a bit flipped there, and what came of it.

    Args:
        kind: what is done.
        place: as a share of the file's length.
        bit: of the byte there.
        file: of a finished run, or in `stopped` of a stopped one.
        named: whether each command that reads the file named it; a resumed run: in a warning.
        unchanged: whether each that did not gave the answer that it gives of the whole file, and the resumed run ended
            as if nothing had been.
    """

    kind: Kind
    place: float
    bit: int
    file: str
    named: bool = False
    unchanged: bool = False


def draw_damages(number: int, rng: random.Random) -> list[Damage]:
    """So many of each kind, on each file in its turn."""
    files = (*OF_STOPPED, *READERS)
    kinds: tuple[Kind, ...] = ("truncation", "bit flip")
    drawn = enumerate(kind for kind in kinds for _ in range(number))
    return [Damage(kind, rng.random(), rng.randrange(8), files[i % len(files)]) for i, kind in drawn]


def damage_runs(experiment: Experiment, damages: list[Damage], progress: Callable[[int, int], None]) -> list[str]:
    """Damage files, and have them read; returns what is wrong: damage that changed something, and nobody said so."""
    wrong = []
    if any(damage.file in OF_STOPPED for damage in damages):
        _stop_a_run(experiment)
    if any(damage.file in READERS for damage in damages):
        made = experiment.type(_FINISHED, f"{REPRODUCE} seeds=1").answer()
        if made.status or made.problems:
            return [f"{_FINISHED}: the command ended with {made}", *made.problems]
    answers: dict[str, Answer] = {}
    for done, damage in enumerate(damages, 1):
        name = f"damage{done}"
        look = _resume if damage.file in OF_STOPPED else _read
        wrong += [f"{name}: {line}" for line in look(experiment, damage, name, answers)]
        progress(done, len(damages))
    return wrong


def _resume(experiment: Experiment, damage: Damage, name: str, _: dict[str, Answer]) -> list[str]:
    """The stopped run goes on as if the file had never been written; rows behind the checkpoint are not read at all."""
    shutil.copytree(experiment.out / _STOPPED, experiment.out / name)
    run = experiment.run(name)
    is_checkpoint = OF_STOPPED[damage.file] == CHECKPOINT
    path = checkpoint_files(run.checkpoints)[-1] if is_checkpoint else run.path / OF_STOPPED[damage.file]
    _inflict(damage, path)
    log = experiment.log(name)
    log.unlink()
    problems = experiment.finish(name)
    damage.named = path.name in log.read_text(errors="replace")
    if is_checkpoint and not damage.named:
        problems.append(f"no warning named {path.name} after a {damage.kind} at {damage.place:.4f} of it")
    problems = problems or experiment.verdict(name)
    damage.unchanged = not damage.named and not problems
    return problems


def _read(experiment: Experiment, damage: Damage, name: str, answers: dict[str, Answer]) -> list[str]:
    """Every command that reads the file names it, or answers as it does of the whole file (`answers`, once known)."""
    problems, quiet = [], []
    for command in READERS[damage.file]:
        answer = _ask(experiment, command, damage)
        if notices(command, damage.file, answer):
            continue
        quiet.append(command)
        if command not in answers:
            answers[command] = _ask(experiment, command, None)
        if not answer.is_as(answers[command]):
            problems.append(
                f"after a {damage.kind} at {damage.place:.4f} of {damage.file} `{command}` did not name it, and ended "
                f"with {answer}"
            )
    damage.named, damage.unchanged = not quiet, bool(quiet) and not problems
    return problems


def _ask(experiment: Experiment, command: str, damage: Damage | None) -> Answer:
    """What a command says of the finished run, in a copy that is always at the same place, damaged or whole."""
    copy = experiment.out / "copy"
    shutil.copytree(experiment.out / _FINISHED, copy)
    if damage is not None:
        _inflict(damage, experiment.run(copy.name).path / damage.file)
    answer = experiment.ask(copy.name, command)
    shutil.rmtree(copy)
    return answer


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
