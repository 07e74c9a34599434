"""hydra/launcher=normlab: what `normlab train -m` runs its cells with. Hydra looks for plugins in this package."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from normlab.config import load
from normlab.sweeps import multirun
from normlab.trackers.tracker import in_sweep


@dataclass
class LauncherConfig:
    """Settings of the launcher."""

    _target_: str = "hydra_plugins.normlab_launcher.NormlabLauncher"
    jobs: int = 0  # cells side by side; 0: as many as cores or GPUs allow
    on_failure: str = "continue"  # or stop


ConfigStore.instance().store(group="hydra/launcher", name="normlab", node=LauncherConfig)


class NormlabLauncher(Launcher):
    """Hands all cells to the sweep (normlab.sweeps.pool), and its exit status to normlab.sweeps.multirun."""

    def __init__(self, jobs: int, on_failure: str) -> None:
        self.jobs, self.on_failure = jobs, on_failure

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.name = Path(str(config.hydra.sweep.dir)).name

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        configs = [load(list(overrides)) for overrides in job_overrides]
        for config in configs:
            config.tracker = in_sweep(config.tracker, self.name)
        # These import torch, which Hydra's search for plugins is not to wait for.
        from normlab.runs.folder import RunFolder
        from normlab.sweeps.pool import sweep

        multirun.outcome = max(multirun.outcome, sweep(configs, self.jobs, self.on_failure))
        if multirun.outcome >= 128:  # a signal: a sweeper that searches is not to go on
            sys.exit(multirun.outcome)
        values = [multirun.reached(RunFolder.of(config)) for config in configs]
        return [
            JobReturn(overrides=list(own), status=JobStatus.COMPLETED, _return_value=value)
            for own, value in zip(job_overrides, values, strict=True)
        ]
