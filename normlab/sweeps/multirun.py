"""`normlab train -m`: Hydra's multirun expands the overrides into cells, and a launcher runs them.

Ours (hydra_plugins/normlab_launcher.py) is the default. Any other of Hydra's serves as well, for example
hydra/launcher=submitit_slurm: it calls the task function below for each cell, on whatever machine.
"""

import hashlib
import logging
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from normlab.config import EXPERIMENT, GROUPS, Config, check_hydra, choices, conf_dir, load, parse, search_path
from normlab.errors import BusyError, UserError, nearest
from normlab.reading import read_yaml
from normlab.trackers.tracker import in_sweep

if TYPE_CHECKING:
    from normlab.runs.folder import RunFolder

MOST_CELLS = 10_000

# How our launcher's sweep ended: its exit status. Hydra makes the launcher and keeps it.
outcome = 0


def multirun(words: list[str]) -> int:
    """Sweep over the overrides; returns the exit status. Raises UserError before the first cell on a bad one.

    Words that begin with "hydra" are Hydra's own; jobs= and on_failure= are the launcher's.
    """
    global outcome
    for_hydra = [word for word in words if word.lstrip("+~").startswith("hydra")]
    options = [word for word in words if word.partition("=")[0] in ("jobs", "on_failure")]
    given = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in for_hydra}
    is_ours = given.get("hydra/launcher", "normlab") == "normlab"
    searches = given.get("hydra/sweeper", "basic") != "basic"  # Optuna's: the words do not say which cells there are
    if options and not is_ours:
        raise UserError(f"{options[0]} is for normlab's own launcher; another's settings are hydra.launcher.KEY=VALUE")
    if not re.fullmatch(r"[\w./-]+", given.get("hydra/launcher", "normlab")):
        raise UserError(f"hydra/launcher={given['hydra/launcher']}: expected one launcher, as submitit_slurm")
    for option in options:
        if option.startswith("jobs=") and not re.fullmatch("[0-9]{1,9}", option.removeprefix("jobs=")):
            raise UserError(f"{option}: expected a whole number of 0 or more")
    check_hydra(for_hydra)
    settings = [_listed(word) for word in words if word not in for_hydra + options]
    overrides = [_for_hydra(word) for word in settings]
    words_of = [_fixed(settings)] if searches else _expanded(settings)
    cells = [load(own) for own in words_of]

    sweep_id = hashlib.sha256(" ".join(sorted(overrides)).encode()).hexdigest()[:8]
    # Beside the runs: the working folder may be one that nothing can be written to.
    place = Path(cells[0].out).parent / "sweeps" / sweep_id
    quoted = str(place).replace("\\", "\\\\").replace("'", "\\'")
    defaults = {"hydra/launcher": "normlab", "hydra.sweep.dir": f"'{quoted}'"}
    for_hydra += [f"{key}={value}" for key, value in defaults.items() if key not in given] + search_path()
    sys.argv = ["normlab", "--multirun", *overrides, *for_hydra, *(f"hydra.launcher.{option}" for option in options)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what is wrong; else Hydra prints a traceback of its own and exits
    outcome, failure = 0, None
    place = Path(given.get("hydra.sweep.dir", str(place)).strip("'\""))
    before = _started(place)
    if searches:
        place.mkdir(parents=True, exist_ok=True)  # where a sweeper that searches says what it found
    if not is_ours:
        logging.getLogger("submitit").addFilter(_once(set()))
    try:
        with _grids_that_end() if searches else nullcontext():
            hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(_run_cell)()
    except UserError:
        raise
    except HydraException as error:
        raise UserError(str(error)) from None
    except Exception as error:  # of a plugin, as Optuna's where every cell failed
        if is_ours and not searches:
            raise
        failure = error
    if is_ours:
        status = outcome
    else:
        tried = [load(read_yaml(file)) for file, _ in sorted(_started(place) - before)]
        status = _conclude(tried if searches else cells)
    if failure is not None:
        plugin = f"hydra/sweeper={given['hydra/sweeper']}" if searches else f"hydra/launcher={given['hydra/launcher']}"
        print(f"normlab: {plugin}: {' '.join(str(failure).split()) or type(failure).__name__}", file=sys.stderr)
    if not searches:
        from normlab.sweeps.outcome import show

        show(words_of, cells, place)
    return status or int(failure is not None)


@contextmanager
def _grids_that_end() -> Iterator[None]:
    """Let a search over a grid end, whatever its last cell did.

    Optuna's grid sampler stops the study after the last cell, which is an error where nothing optimizes. Hydra's plugin
    knows that of a cell that ended well, and not of one that failed: the search ended without its results.
    """
    from unittest import mock

    try:
        from optuna.study import Study
    except ImportError:  # another sweeper, or none: Hydra says so
        yield
        return
    with mock.patch.object(Study, "stop", lambda study: None):
        yield


def _started(place: Path) -> set[tuple[Path, int]]:
    """Of each cell that a launcher of Hydra's own has begun: the file in which Hydra leaves its words, and when."""
    return {(file, file.stat().st_mtime_ns) for file in place.rglob(".hydra/overrides.yaml")}


def _once(said: set[str]) -> Callable[[logging.LogRecord], bool]:
    """A filter that says each warning once; without sacct, submitit has three at every look at its jobs."""

    def is_to_be_said(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        text = re.sub(r"^Call #\d+ - ", "", record.getMessage())
        if text not in said:
            said.add(text)
            print(f"{record.name}: {text}", file=sys.stderr)
        return False

    return is_to_be_said


def _conclude(cells: list[Config]) -> int:
    """What our own launcher does at a sweep's end, for another's."""
    from normlab.console import PlainConsole
    from normlab.sweeps.pool import conclude, plan

    return conclude(plan(cells), PlainConsole(stderr=True))


def expand(words: list[str]) -> list[Config]:
    """The cells of a sweep, without running them. Raises UserError, in bounded time, on one that cannot work."""
    words = [_listed(word) for word in words if word.partition("=")[0] not in ("jobs", "on_failure")]
    return [load(own) for own in _expanded(words)]


def _expanded(words: list[str]) -> list[list[str]]:
    """The words of each cell."""
    overrides = [parse(word, sweep=True) for word in words]
    number = math.prod({o.get_key_element(): _num_values(o) for o in overrides}.values())
    if number > MOST_CELLS:
        raise UserError(f"these words stand for {number} cells or more; a sweep has up to {MOST_CELLS}")
    return [list(cell) for batch in BasicSweeper.split_arguments(overrides, None) for cell in batch]


def _num_values(override: Override) -> int:
    """How many values a word stands for, counted up to the most. Raises UserError on none."""
    if not override.is_sweep_override():
        return 1
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: expected values, as 1,2 or range(1,3)")
    sweep: Any = override.value()
    try:
        number = sum(1 for _ in islice(sweep.range() if override.is_range_sweep() else sweep.list, MOST_CELLS + 1))
    except (ArithmeticError, ValueError):  # a step of 0, or infinite ends
        number = 0
    if number == 0:
        raise UserError(f"{override.input_line}: there is no value in it")
    return number


def _listed(word: str) -> str:
    """norm=glob(sn*) as norm=sn,sn_hard,...; any other word as it is. Raises UserError."""
    override = parse(word, sweep=True)
    sweep = override.value()
    if not isinstance(sweep, Glob):
        return word
    group = override.key_or_group
    if group not in (*GROUPS, "scale"):
        raise UserError(f"{word}: glob is for files, as those of {', '.join(GROUPS)}; expected values, as 1,2")
    names = sweep.filter(list(choices(group)))
    if not names:
        raise UserError(f"{word}: no file of {group} has such a name; {nearest('', choices(group))}")
    return f"{override.get_key_element()}={','.join(names)}"


def _fixed(words: list[str]) -> list[str]:
    """Those that stand for one value."""
    return [word for word in words if not parse(word, sweep=True).is_sweep_override()]


def _for_hydra(word: str) -> str:
    """Settings stand in the schema, where Hydra does not see them: for Hydra they are added."""
    key = parse(word, sweep=True).key_or_group
    return word if key in (*GROUPS, EXPERIMENT) else f"++{word.lstrip('+')}"


def _run_cell(_composed: Any) -> float | str:
    """What other launchers run for a cell: the same as `normlab train` with its overrides; returns what it reached, for
    sweepers that search, or else its status.

    A cell that fails says so in its folder, and costs no other. One that was stopped ends its process, as the scheduler
    expects: submitit queues it again after SIGUSR2, Slurm itself where it preempts, and then it resumes.
    """
    from normlab.launch.start import start
    from normlab.runs.folder import RunFolder
    from normlab.sweeps.pool import LOG
    from normlab.writing import write_text

    os.chdir(HydraConfig.get().runtime.cwd)  # where the words were typed, also under hydra.job.chdir=true
    config = load(list(HydraConfig.get().overrides.task))
    config.tracker = in_sweep(config.tracker, Path(HydraConfig.get().sweep.dir).name)
    folder = RunFolder.of(config)
    if folder.is_over and not config.rerun:
        return reached(folder)
    try:
        status = start(config, folder)
    except BusyError as error:
        print(f"normlab: {error}", file=sys.stderr)
        return "busy"
    except Exception as error:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.set_status("failed", error=" ".join(str(error).split()) or type(error).__name__)
        write_text(folder.path / LOG, traceback.format_exc())
        return "failed"
    if status == "interrupted":
        number = folder.status()["signal"]
        if number == signal.SIGUSR2:
            signal.raise_signal(number)  # now that the cell is saved, to the handler that was there before ours
        sys.exit(128 + number)
    return reached(folder)


def reached(folder: "RunFolder") -> float | str:
    """The number that a run is known by; its status where there is none."""
    status = folder.status()["status"]
    value = folder.summary()["headline"]["value"] if status == "finished" else None
    return status if value is None else float(value)
