"""The life of a run on one rank: build, train, measure statistics, evaluate under each estimator, draw, summarize."""

import logging
import time
from collections.abc import Iterable

import torch.distributed as dist

from normlab.config import Config, choices
from normlab.engine.loop import Loop
from normlab.engine.session import Session, open_session
from normlab.engine.summary import evaluate_estimators, summarize
from normlab.launch.failure import failed
from normlab.processes.signals import Interrupted, Stop
from normlab.progress import Progress, silent
from normlab.runs.folder import RunFolder, checkpoint_files
from normlab.schema import bind
from normlab.trackers.tracker import NoTracker, Tracker
from normlab.writing import write_json

SUMMARY_FIGURES = ("learning_curves", "ratios", "predictions", "stylized")  # drawn of every run

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
    session = open_session(folder, progress, stop, weights_follow=bool(checkpoint_files(folder.checkpoints)))
    tracker = _tracker(session)
    loop = Loop(session, tracker)
    if session.is_first:
        folder.set_status("running", updates=loop.length.total)
    status = loop.run()
    if status != "interrupted":
        _conclude(session, loop, status, tracker)
    elif session.is_first:
        folder.interrupted(loop.signal)
        tracker.finish({"status": status})
    return status


def _conclude(session: Session, loop: Loop, status: str, tracker: Tracker) -> None:
    start = time.monotonic()
    metrics = {} if status == "diverged" else evaluate_estimators(session)
    if session.is_first:
        seconds = loop.seconds + time.monotonic() - start
        summary = summarize(session, status, metrics) | {
            "updates": loop.updates,
            "diverged_at": loop.diverged_at,
            "made_by": loop.made_by,
            "seconds": round(seconds, 2),
        }
        write_json(session.folder.summary_file, summary, sealed=True)
        from normlab.figures.draw import draw  # matplotlib is not to hold up the first update

        for path in draw(session.folder, _figures(session.config, tracker)):
            tracker.image(f"figures/{path.stem}", path, loop.updates)
        session.folder.end(status, loop.updates)
        tracker.finish(summary)  # the records are whole: what becomes of their mirror is not waited for


def _figures(config: Config, tracker: Tracker) -> Iterable[str]:
    """Drawing all takes half a minute for 53 layers: for those who look at them in W&B; others ask for one by one."""
    wants_all = config.figures == "all" or (config.figures == "auto" and tracker.shows_images)
    return choices("figure") if wants_all else SUMMARY_FIGURES


def _tracker(session: Session) -> Tracker:
    folder, settings = session.folder, session.config.tracker
    record = folder.run()
    arguments = (folder.path, record["id"], record["name"], session.config.to_dict())
    if settings is None or not session.is_first:
        return NoTracker(*arguments)
    return bind(settings)(*arguments)
