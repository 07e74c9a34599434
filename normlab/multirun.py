"""`normlab train -m`: Hydra's multirun expands the overrides into cells, a launcher runs them.

The launcher "normlab" is the default (engine/sweep.py); any other of Hydra's serves as well, for example
hydra/launcher=submitit_slurm. Those get the task function below and compose by themselves; either way a cell's settings
come from config.load on its own overrides.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from normlab.config import GROUPS, conf_dir, load, parse
from normlab.errors import UserError


@dataclass
class LauncherConfig:
    """conf of hydra/launcher=normlab."""

    _target_: str = "normlab.multirun.SweepLauncher"
    jobs: int = 0  # side by side; 0: as many as cores or GPUs allow
    on_failure: str = "continue"  # or stop


class SweepLauncher(Launcher):
    """Checks every cell, then hands them all to the sweep; its outcome is left in `outcome`."""

    outcome: int | UserError = 0

    def __init__(self, jobs: int, on_failure: str) -> None:
        self.jobs, self.on_failure = jobs, on_failure

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        try:
            configs = [load(list(overrides)) for overrides in job_overrides]
            from normlab.engine.sweep import sweep  # imports torch, and all cells are checked before

            SweepLauncher.outcome = sweep(configs, self.jobs, self.on_failure)
        except UserError as error:  # Hydra would print a traceback of it
            SweepLauncher.outcome = error
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED, _return_value=None) for o in job_overrides]


def _run_cell(_composed: Any) -> str:
    """What other launchers run for a cell, on whatever machine: the same as `normlab train` with its overrides."""
    from normlab.engine.record import RunFolder
    from normlab.engine.start import start

    config = load(list(HydraConfig.get().overrides.task))
    folder = RunFolder.of(config)
    if folder.is_over and not config.rerun:
        return folder.status()["status"]
    return start(config, folder)


def multirun(words: list[str]) -> int:
    """Sweep over the overrides; returns the exit status. Raises UserError before the first cell on a bad one.

    Words that begin with "hydra" are Hydra's own; jobs= and on_failure= are the launcher's.
    """
    for_hydra = [word for word in words if word.lstrip("+~").startswith("hydra")]
    options = [word for word in words if word.partition("=")[0] in ("jobs", "on_failure")]
    overrides = [_for_hydra(word) for word in words if word not in for_hydra + options]
    launcher = [] if any(word.startswith("hydra/launcher=") for word in for_hydra) else ["hydra/launcher=normlab"]
    ConfigStore.instance().store(group="hydra/launcher", name="normlab", node=LauncherConfig)
    Plugins.instance().register(SweepLauncher)
    main = hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(_run_cell)
    sys.argv = ["normlab", "--multirun", *overrides, *for_hydra, *launcher,
                *(f"hydra.launcher.{option}" for option in options)]  # fmt: skip
    main()
    if isinstance(SweepLauncher.outcome, UserError):
        raise SweepLauncher.outcome
    return SweepLauncher.outcome


def _for_hydra(word: str) -> str:
    """Settings exist in the schema, where Hydra does not see them: for Hydra they are added."""
    key = parse(word, sweep=True).key_or_group
    return word if key in GROUPS else f"++{word.lstrip('+')}"
