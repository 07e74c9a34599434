"""The same sweep typed twice at once, and two reproductions of one table: they share the work, and nothing is lost."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from normlab.doctor.attempts import Server
from normlab.doctor.compare import missing_or_repeated
from normlab.doctor.experiment import EPOCHS, UPDATES, Experiment
from normlab.doctor.readers import REPRODUCE, SCALE, TABLE, Answer
from normlab.reading import read_jsonl
from normlab.report.records import key_of, table_folder
from normlab.report.table import cells
from normlab.report.tables import load_table

_SEEDS = (0, 1)
_SWEEP = "train -m SETTINGS seed=0,1 jobs=1 out=OUT"
_COMMANDS = {"sweep": (_SWEEP, _SWEEP), "table": (f"{REPRODUCE} seeds=1", f"{REPRODUCE} seeds=2")}
_APART = 2.0  # seconds, at most, from one command to the other
_LEFT_TO_ANOTHER = 1  # status of a command that left a cell to another, which is at it


@dataclass
class Twice:
    """Two commands at once, as they are drawn, and what came of them.

    Args:
        what: the same sweep, of two cells; or the same table, with one seed and with two.
        seconds: from one to the other.
        statuses: that they ended with. 0, or 1 where a cell was left to the other command.
    """

    what: Literal["sweep", "table"]
    seconds: float
    statuses: list[int | None] = field(default_factory=list)


def draw_twice(number: int, rng: random.Random) -> list[Twice]:
    """So many of each."""
    return [Twice(what, round(rng.uniform(0, _APART), 3)) for _ in range(number) for what in ("sweep", "table")]


def type_twice(
    experiment: Experiment, module: str, pairs: list[Twice], progress: Callable[[int, int], None]
) -> list[str]:
    """Type each pair, and the second command once more; returns what is wrong then.

    Args:
        experiment: whose runs the commands make.
        module: that serves attempts: the second command has a server of its own.
        pairs: as drawn.
        progress: of the work.
    """
    wrong = []
    if not pairs:
        return []
    with Server(module) as beside:
        for done, pair in enumerate(pairs, 1):
            name = f"twice{done}"
            wrong += [f"{name}: {line}" for line in _type(experiment, beside, name, pair)]
            progress(done, len(pairs))
    return wrong


def _type(experiment: Experiment, beside: Server, name: str, pair: Twice) -> list[str]:
    first, second = _COMMANDS[pair.what]
    one = experiment.type(name, first)
    time.sleep(pair.seconds)
    other = experiment.type(name, second, beside)
    answers = [one.answer(), other.answer()]
    pair.statuses = [answer.status for answer in answers]
    problems = [line for answer in answers for line in _wrong_end(answer)]
    if pair.what == "table":
        seeds = [seed for seed, status in enumerate(pair.statuses) if status == 0][-1:]
        problems += _missing_records(experiment, name, range(seeds[0] + 1) if seeds else ())
    elif 0 not in pair.statuses:
        problems.append("no command saw the end of both cells")
    again = experiment.type(name, second).answer()
    problems += again.problems
    if again.status:
        return [*problems, f"typed once more, the command ended with {again}"]
    for seed in _SEEDS:
        problems += [
            f"seed {seed}: {line}" for line in missing_or_repeated(experiment.run(name, seed), UPDATES, EPOCHS)
        ]
    if pair.what == "table":
        problems += _missing_records(experiment, name, _SEEDS)
    return problems or experiment.verdict(name)


def _wrong_end(answer: Answer) -> list[str]:
    """A command may leave a cell to the other one, and say so; it says of nothing that it failed."""
    said = answer.out + answer.err
    if answer.status in (0, _LEFT_TO_ANOTHER) and "failed" not in said and "Traceback" not in said:
        return answer.problems
    return [*answer.problems, f"a command ended with {answer}"]


def _missing_records(experiment: Experiment, name: str, seeds: Sequence[int]) -> list[str]:
    """Cells whose number is not recorded, or is another than that of the run."""
    table = load_table(TABLE)
    folder = table_folder(table, SCALE, experiment.tables(name))
    found = {key_of(record): record["metrics"] for record in read_jsonl(folder / "records.jsonl")}
    problems = []
    for seed in seeds:
        measured = experiment.run(name, seed).summary()["metrics"]
        for cell in cells(table, SCALE, [seed]):
            metrics = found.get((cell.row, cell.column, seed), {})
            if not measured.items() <= metrics.items():
                problems.append(f"records.jsonl: {cell.row} {cell.column} seed {seed} is missing, or not the run's")
    return problems
