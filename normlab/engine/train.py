"""The life of a run on one rank: build, fit, measure statistics, evaluate under each estimator, draw, summarize."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from normlab.config import Config, choices, conf_dir
from normlab.dynamics import ratios
from normlab.engine import checkpoint, devices
from normlab.engine.batch_average import measure
from normlab.engine.data_errors import data_errors
from normlab.engine.evaluate import evaluate, statistics
from normlab.engine.failure import failed
from normlab.engine.fit import Fit
from normlab.engine.record import RunFolder
from normlab.engine.session import Session, open_session
from normlab.engine.stop import Interrupted, Stop
from normlab.errors import DiskFullError, UserError
from normlab.figures.run import Run
from normlab.figures.style import save
from normlab.reading import read_yaml
from normlab.replicas import normalizers
from normlab.report.progress import Progress, silent
from normlab.schema import bind
from normlab.tracker import NoTracker, Tracker
from normlab.writing import write_json

SUMMARY_FIGURES = ("learning_curves", "ratios")  # drawn of every run

_log = logging.getLogger(__name__)


def train(folder: RunFolder, progress: Progress = silent) -> str:
    """Run or resume a run on this rank; returns its status, and leaves its records in the folder.

    Raises UserError on what only building can tell, RunError on what ends a run under way; status.json says failed.
    """
    with Stop() as stop:
        try:
            return _train(folder, progress, stop)
        except Interrupted as end:
            return _interrupted(folder, end.signal)
        except (Exception, SystemExit) as error:
            if stop.signal:  # that is what took away a worker, or another rank
                return _interrupted(folder, stop.signal)
            raise failed(folder, error) from error


def _interrupted(folder: RunFolder, number: int) -> str:
    if dist.is_initialized() and folder.status()["status"] == "failed":
        return "failed"  # another rank did, and the launcher ends this one
    return folder.interrupted(number)


def _train(folder: RunFolder, progress: Progress, stop: Stop) -> str:
    if not dist.is_initialized():  # else the rank has said so
        folder.begin()
    session = open_session(folder, progress, stop)
    tracker = _tracker(session)
    fit = Fit(session, tracker)
    if session.is_first:
        folder.set_status("running", updates=fit.length.total)
    status = fit.run()
    if status != "interrupted":
        _conclude(session, fit, status, tracker)
    elif session.is_first:
        folder.interrupted(fit.signal)
        tracker.finish({"status": status})
    return status


def _conclude(session: Session, fit: Fit, status: str, tracker: Tracker) -> None:
    start = time.monotonic()
    metrics = {} if status == "diverged" else evaluate_estimators(session)
    if session.is_first:
        seconds = fit.seconds + time.monotonic() - start
        summary = summarize(session, status, metrics) | {
            "updates": fit.updates,
            "diverged_at": fit.diverged_at,
            "seconds": round(seconds, 2),
        }
        write_json(session.folder.summary_file, summary)
        for path in draw(session.folder, _figures(session.config, tracker)):
            tracker.image(f"figures/{path.stem}", path, fit.updates)
        session.folder.set_status(status, updates=fit.updates)
        tracker.finish(summary)  # the records are whole: what becomes of their mirror is not waited for


def evaluate_estimators(session: Session) -> dict[str, dict[str, float]]:
    """Metrics under each estimator of the statistics, from one set of weights; saves weights and statistics.

    Where no layer stores statistics (LN, GN, IN) there is nothing to estimate, and both are the same.
    """
    model, folder = session.experiment.model, session.folder
    moving_average = evaluate(session)
    state = measure(session) if any(layer.tracks_statistics for layer in normalizers(model)) else {}
    if session.is_first:
        checkpoint.save_tensors(folder.weights, model.state_dict())
        checkpoint.save_tensors(folder.batch_average, state)
    with statistics(model, state):
        return {"moving_average": moving_average, "batch_average": evaluate(session) if state else moving_average}


def summarize(session: Session, status: str, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What summary.json says of a run, but for its length."""
    config, experiment, record = session.config, session.experiment, session.folder.run()
    layers = normalizers(experiment.model)
    estimator = config.estimator
    if estimator == "paper":  # seed 001, Sec. 2.1 for SN; the others keep the moving average of their papers
        mixes_batches = any(layer.is_switchable and layer.tracks_statistics for layer in layers)
        estimator = "batch_average" if mixes_batches else "moving_average"
    rows = ratios.snapshot(experiment.model, experiment.sites)
    return {
        "id": record["id"],
        "name": record["name"],
        "status": status,
        **{group: config.choices[group] for group in ("norm", "weight", "model", "data", "task")},
        **{key: getattr(config, key) for key in ("batch", "accumulate", "epochs", "iterations", "seed", "precision")},
        "headline": {"metric": experiment.task.headline, "estimator": estimator}
        | ({"value": metrics[estimator][experiment.task.headline]} if metrics else {"value": None}),
        "metrics": metrics,
        "ratios": ratios.average(rows) if ratios.switchable(rows) else None,
        "parameters": sum(p.numel() for p in experiment.model.parameters()),
        "norm_layers": len(layers),
        "not_used_of_init": experiment.unused,
        "data_errors": data_errors(session.folder.path),
        "devices": session.share.ranks,
        "device": devices.describe(session.device),
        "versions": record["versions"],
        "commit": record["commit"],
    }


def draw(folder: RunFolder, names: Iterable[str]) -> list[Path]:
    """Those figures of conf/figure that the run's records can show, into its folder; no other error fails the run."""
    run, drawn = Run.load(folder), []
    for name in names:
        path = folder.path / f"{name}.png"
        try:
            save(bind(read_yaml(conf_dir() / "figure" / f"{name}.yaml"))([run]), path)
        except UserError:
            continue  # it shows other records, or several runs
        except DiskFullError:
            raise
        except Exception as error:
            _log.warning("figure %s cannot be drawn: %s: %s", name, type(error).__name__, error)
            continue
        drawn.append(path)
    return drawn


def _figures(config: Config, tracker: Tracker) -> Iterable[str]:
    """Drawing all takes half a minute for 53 layers: for those who look at them in W&B; others ask for one by one."""
    wants_all = config.figures == "all" or (config.figures == "auto" and not isinstance(tracker, NoTracker))
    return choices("figure") if wants_all else SUMMARY_FIGURES


def _tracker(session: Session) -> Tracker:
    folder, settings = session.folder, session.config.tracker
    record = folder.run()
    arguments = (folder.path, record["id"], record["name"], session.config.to_dict())
    if settings is None or not session.is_first:
        return NoTracker(*arguments)
    return bind(settings)(*arguments)
