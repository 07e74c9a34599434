"""A run's folder: the files that say what was run and what came out. They are the truth; W&B mirrors them.

config.yaml      the resolved settings, for people
run.json         id, name, settings, versions, commit: what the ranks read
status.json      running | finished | diverged | failed | interrupted, with the reason; the digests of the files below
metrics.jsonl    a line per update (loss, learning rate) and per epoch (accuracies)
ratios.jsonl     a line per recorded moment: the ratios of every norm layer
statistics.jsonl a line per update, of the last ones: BN's and EN's statistics (record.statistics)
gradients.jsonl  a line per epoch: what Weight Standardization takes from gradients (record.gradients)
summary.json     the outcome: metrics under each estimator, versions, commit, seconds
predictions.safetensors   of a few samples, where the task shows them
checkpoints/     000120.pt (after 120 updates, to go on), weights.safetensors, batch_average.safetensors
snapshots/       0.3.safetensors: the weights at 30% of training (snapshots)
lock             who works on the run, while someone does
error.txt        the traceback, where the run failed
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from normlab.config import Config, identity, inputs, recorded, recorded_inputs, run_name
from normlab.config.initial import RUN_ID, find_runs
from normlab.errors import DiskFullError, UserError, nearest
from normlab.reading import RUN, STATUS, STEP, SUMMARY, last_json, read_json
from normlab.versions import PACKAGES, commit, version
from normlab.writing import TEMPORARY, overwrite_sealed, write_json, write_text

# Of summary.json and checkpoints: all that two runs of one experiment may differ in.
TIME_FIELDS = ("seconds",)


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.json"
        self.metrics, self.ratios = path / "metrics.jsonl", path / "ratios.jsonl"
        self.statistics, self.gradients = path / "statistics.jsonl", path / "gradients.jsonl"
        self.predictions = path / "predictions.safetensors"
        self.rows = (self.metrics, self.ratios, self.statistics, self.gradients)
        self.summary_file, self.status_file = path / "summary.json", path / "status.json"
        self.traceback = path / "error.txt"
        self.checkpoints = path / "checkpoints"
        self.weights = self.checkpoints / "weights.safetensors"
        self.batch_average = self.checkpoints / "batch_average.safetensors"
        self.snapshots = path / "snapshots"

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """The folder of this experiment; one that holds the same experiment under another name is taken.

        The same settings on other data are another experiment, in a folder of its own.
        """
        out, run_id, read = Path(config.out), identity(config), inputs(config)
        own = out / "-".join(filter(None, (run_name(config), (read or "")[:8], run_id)))
        existing = sorted(out.glob(f"*-{run_id}"), key=lambda path: (path != own, path))
        return next((run for run in map(cls, existing) if run.path == own or run.is_of(config, read)), cls(own))

    def is_of(self, config: Config, read: str | None) -> bool:
        """Whether a run of these settings has read the same as one of `config` would, `read`; None: nobody knows.

        A run of a version that did not note it is taken for the same where its data lie at the same place.
        """
        if not self.run_file.is_file():
            return False
        run = self.run()
        if "inputs" not in run:
            data = run["config"].get("data")
            return isinstance(data, dict) and data.get("root") == config.data.get("root")
        recorded = recorded_inputs(run)
        return None in (recorded, read) or recorded == read or self._is_repaired(config)

    def _is_repaired(self, config: Config) -> bool:
        """Whether a bad file stopped the run, which had not used it, and all other data are what they were."""
        bad = self.status().get("bad_file", "")
        return bad != "" and self.status().get("other_inputs") == inputs(config, without=bad)

    @classmethod
    def find(cls, name: str, out: Path, key: str = "out") -> "RunFolder":
        """A run by its folder, or by its name or id in `out`, which the option `key` sets.

        Raises UserError if there is none, or several.
        """
        if (Path(name) / "run.json").is_file():
            path = Path(name)
            return cls(path if path.name not in ("", "..") else path.resolve())  # a run is called by its folder's name
        matching = find_runs(name, out)
        if len(matching) == 1:
            return cls(matching[0])
        names = [p.parent.name for p in sorted(out.glob("*/run.json"))]
        if not names:
            raise UserError(f"run '{name}': there are no runs in {out}; {key}=FOLDER names another place")
        ids = [run.rpartition("-")[2] for run in names]
        raise UserError(
            f"run '{name}': there is no such run in {out}; {nearest(name, ids if RUN_ID.fullmatch(name) else names)}"
        )

    def weights_at(self, share: float) -> Path:
        """The file of the weights after this share of training; 1: the final ones."""
        return self.snapshots / f"{share:g}.safetensors" if share < 1 else self.weights

    def create(self, config: Config, run_id: str | None = None) -> None:
        """Make the folder of a run to come; an imported one has an id beside that of its config.

        Raises UserError where a folder in it is a symbolic link: files that are not the run's would be removed there.
        """
        for inside in (self.checkpoints, self.snapshots):
            if inside.is_symlink():
                raise UserError(f"{inside} is a symbolic link, and folders of a run are its own; remove it")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.status_file.unlink(missing_ok=True)  # what an earlier attempt came to
        record = {
            "id": run_id or identity(config),
            "name": self.path.name,
            "config": config.to_dict(),
            "inputs": inputs(config),
            "versions": {package: version(package) for package in PACKAGES},
            "commit": commit(),
        }
        write_json(self.run_file, record, sealed=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))

    def run(self) -> dict[str, Any]:
        """run.json."""
        return read_json(self.run_file, RUN)

    def config(self) -> Config:
        return recorded(self.run()["config"])

    def status(self) -> dict[str, Any]:
        """status.json; {"status": "new"} before the run was started."""
        return read_json(self.status_file, STATUS) if self.status_file.is_file() else {"status": "new"}

    @property
    def is_over(self) -> bool:
        """Whether the run has its outcome: finished, or diverged, which is one too."""
        return self.status()["status"] in ("finished", "diverged")

    def updates_done(self) -> int:
        """As the status of a run that is over says, or else in metrics.jsonl."""
        if self.is_over:
            return self.status().get("updates", 0)
        row = last_json(self.metrics, STEP)
        return row["step"] if row else 0

    def set_status(self, status: str, **details: Any) -> None:
        record = {"status": status} | details
        try:
            write_json(self.status_file, record, sealed=True)
        except DiskFullError:
            if not self.status_file.is_file():
                raise
            overwrite_sealed(self.status_file, record)  # or it would say running for ever

    def begin(self) -> None:
        """Note that an attempt at the run is under way; what is left of an earlier one, or half written, goes."""
        for place in (self.path, self.checkpoints, self.snapshots):
            for path in place.glob(TEMPORARY):
                path.unlink(missing_ok=True)
        self.traceback.unlink(missing_ok=True)
        self.set_status("running")

    def interrupted(self, number: int) -> str:
        """Note that a signal ended the run, and where it will go on from; returns its status: it may be over."""
        if not self.is_over:
            saved = checkpoint_files(self.checkpoints)
            self.set_status("interrupted", updates=int(saved[-1].stem) if saved else 0, signal=number)
        return self.status()["status"]

    def end(self, status: str, updates: int) -> None:
        """Note that the run is over, and the digests of what it leaves for others to read."""
        tensors = (*self.checkpoints.glob("*.safetensors"), *self.snapshots.glob("*.safetensors"))
        kept = sorted(path for path in (*self.rows, self.predictions, *tensors) if path.is_file())
        files = {path.relative_to(self.path).as_posix(): _digest(path) for path in kept}
        self.set_status(status, updates=updates, files=files)

    def whole(self, path: Path) -> Path:
        """A file of the run. Raises UserError if the run is over and it is not what was there then."""
        expected = self.status().get("files", {}).get(path.relative_to(self.path).as_posix())
        if expected is not None and not (path.is_file() and _digest(path) == expected):
            what = "is damaged: it is not what the run left" if path.is_file() else "is gone"
            raise UserError(f"{path} {what}; rerun=true makes the run again")
        return path

    def summary(self) -> dict[str, Any]:
        return read_json(self.summary_file, SUMMARY)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_file(folder: Path, updates: int) -> Path:
    """Of the checkpoint after so many updates, in the folder of a run's checkpoints."""
    return folder / f"{updates:06d}.pt"


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their updates."""
    return sorted((p for p in folder.glob("*.pt") if re.fullmatch("[0-9]+", p.stem)), key=lambda p: int(p.stem))
