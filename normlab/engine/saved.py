"""Work on runs that are over: evaluate their weights again, measure their statistics again."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch

from normlab.config import BatchAverage, inputs
from normlab.engine.batch_average import measure
from normlab.engine.build import build_task
from normlab.engine.evaluate import evaluate, evaluated, statistics
from normlab.engine.session import Session, open_session
from normlab.engine.weights import load_own
from normlab.errors import UserError
from normlab.progress import Progress, progress_bar, silent
from normlab.runs.folder import RunFolder
from normlab.runs.lock import locked
from normlab.tasks.task import Task
from normlab.writing import append_jsonl

Metrics = dict[str, dict[str, float]]


def need_weights(folders: Iterable[RunFolder]) -> None:
    """Raise UserError, ahead of any work, if one of the runs has none."""
    for folder in folders:
        if not folder.weights.is_file():
            raise UserError(f"run {folder.path.name} has no weights: it is {folder.status()['status']}")


def splits_of(folders: Iterable[RunFolder], split: str | None) -> list[str]:
    """The split of each run; None: the one that it is tested on.

    Raises UserError, ahead of any work, if the task of one of the runs has no such split.
    """
    found = []
    for folder in folders:
        task = build_task(folder.config())
        if split is not None and split not in task.splits:
            raise UserError(f"split={split}: expected {' or '.join(task.splits)}")
        found.append(split or task.tested[0])
    return found


def open_run(folder: RunFolder, progress: Progress = silent) -> Session:
    """A run with its final weights, and the statistics of the moving average.

    Raises UserError if it has none, or if what it has read is not there any more.
    """
    need_weights([folder])
    config = folder.config()
    if not folder.is_of(config, inputs(config)):
        raise UserError(
            f"{folder.path.name}: the data at {config.data.get('root')} are not those that the run has read; put these "
            "there, and it goes on"
        )
    session = open_session(folder, progress, weights_follow=True)
    try:
        model = session.experiment.model
        model.load_state_dict(load_own(folder.whole(folder.weights), model, folder))
    except RuntimeError:
        raise UserError(f"{folder.weights}: these are not weights of the model that {folder.run_file} names") from None
    return session


def evaluate_run(folder: RunFolder, split: str) -> tuple[str, Metrics]:
    """The split in words, and metrics of a run's weights on it under the statistics that it saved: moving and batch
    average.

    An imported run has no batch average.
    """
    with progress_bar() as progress:
        session = open_run(folder, progress)
        metrics = {"moving_average": evaluate(session, split)}
        if folder.batch_average.is_file():
            model = session.experiment.model
            with statistics(model, load_own(folder.whole(folder.batch_average), model, folder)):
                metrics["batch_average"] = evaluate(session, split)
        return session.experiment.task.splits[split], metrics


def predict_run(folder: RunFolder, split: str, into: Path) -> int:
    """Write what a run predicts of a split, under the statistics of its headline; returns the number of files.

    Raises UserError where the task writes no predictions.
    """
    with progress_bar() as progress:
        session = open_run(folder, progress)
        task, model = session.experiment.task, session.experiment.model
        if type(task).write is Task.write:
            raise UserError(f"task={session.config.choices['task']}: its predictions are not written as files")
        averaged = folder.summary()["headline"]["estimator"] == "batch_average" and folder.batch_average.is_file()
        state = load_own(folder.whole(folder.batch_average), model, folder) if averaged else {}
        into.mkdir(parents=True, exist_ok=True)
        with torch.no_grad(), statistics(model.eval(), state):
            passes = evaluated(session, split)
            predicted = (
                (task.predict(model, batch), [index for _, index in current.keys]) for current, batch in passes
            )
            return task.write(predicted, split, into)


def estimate_run(folder: RunFolder, settings: BatchAverage) -> tuple[str, Metrics]:
    """The tested split in words, and metrics under batch averages measured anew by `settings`.

    Adds them to the run's estimates.jsonl.
    """
    with locked(folder.path), progress_bar() as progress:
        session = open_run(folder, progress)
        session.config.batch_average = settings
        with statistics(session.experiment.model, measure(session)):
            metrics = evaluate(session, session.experiment.task.tested[0])
        append_jsonl(folder.path / "estimates.jsonl", [dataclasses.asdict(settings) | metrics], sealed=True)
    label = f"{settings.samples} samples, {settings.variance} variance, augment={str(settings.augment).lower()}"
    task = session.experiment.task
    return task.splits[task.tested[0]], {label: metrics}
