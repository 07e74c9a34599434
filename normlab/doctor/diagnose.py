"""`normlab doctor`: looks at all that a run needs of the machine, and says what to do."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.table import Table
from rich.text import Text

from normlab.console import PlainConsole
from normlab.doctor import collectives, hardware, software, storage
from normlab.doctor.check import Check, Checks, Level
from normlab.writing import write_json

_COLORS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(out: Path, report: Path | None = None) -> int:
    """Check the machine and print a table; returns the exit status: 1 if anything failed.

    Args:
        out: folder of the runs.
        report: JSON file to write.
    """
    results = [result for name, check in checks(out).items() for result in examine(name, check)]
    _print(results)
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, [asdict(result) for result in results])
    return int(any(result.level == "fail" for result in results))


def checks(out: Path) -> dict[str, Callable[[], Checks]]:
    """All checks, in the order of the table."""
    functions = [software.python, software.packages, software.torchvision, hardware.cpu, hardware.memory]
    functions += [hardware.shared_memory, hardware.open_files, hardware.gpus, collectives.gloo, collectives.nccl]
    functions += [software.compiler, software.kernels, software.triton, software.wandb, software.slurm]
    named = {function.__name__: function for function in functions}
    return named | {"disk": partial(storage.disk, out), "datasets": storage.datasets}


def examine(name: str, check: Callable[[], Checks]) -> list[Check]:
    """The results of a check; that of one that breaks down is what broke it."""
    results: list[Check] = []
    try:
        results += check()
    except Exception as error:  # a doctor tells of any illness
        line = " ".join(str(error).split()) or type(error).__name__
        results.append(Check(name, f"could not be checked: {line}", "fail", "repair what the message names"))
    return results


def _print(results: list[Check]) -> None:
    table = Table("check", "result", "", "what to do")
    for column in table.columns:
        column.overflow = "fold"  # a path is to be read to its end
    for result in results:
        table.add_row(result.name, result.result, Text(result.level, style=_COLORS[result.level]), result.advice)
    counts = Counter(result.level for result in results)
    console = PlainConsole()
    console.print(table)
    console.print(", ".join(f"{counts[level]} {level}" for level in _COLORS))
