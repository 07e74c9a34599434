"""What a run came to: its metrics under each estimator of the statistics, and what summary.json says of it."""

from typing import Any

from normlab.dynamics import ratios
from normlab.engine import pictures
from normlab.engine.batch_average import measure
from normlab.engine.evaluate import evaluate, statistics
from normlab.engine.session import Session
from normlab.processes import devices
from normlab.replicas import normalizers
from normlab.runs import checkpoint
from normlab.runs.data_errors import data_errors
from normlab.tasks.metrics import metrics_of, value_of


def evaluate_estimators(session: Session) -> dict[str, dict[str, float]]:
    """Metrics under each estimator of the statistics, from one set of weights; saves weights and statistics.

    Those of the task's further test sets are called by them, as test/top1.

    Where no layer stores statistics (LN, GN, IN) there is nothing to estimate, and both are the same.
    """
    model, folder = session.experiment.model, session.folder
    moving_average = _tested(session)
    state = measure(session) if any(layer.tracks_statistics for layer in normalizers(model)) else {}
    if session.is_first:
        checkpoint.save_tensors(folder.weights, model.state_dict())
        checkpoint.save_tensors(folder.batch_average, state)
    with statistics(model, state if _estimator(session) == "batch_average" else {}):
        pictures.keep(session)
    with statistics(model, state):
        return {"moving_average": moving_average, "batch_average": _tested(session) if state else moving_average}


def _estimator(session: Session) -> str:
    """The statistics of what a run is known by."""
    if session.config.estimator != "paper":
        return session.config.estimator
    # SN, Sec. 2.1 for SN; the others keep the moving average of their papers
    layers = normalizers(session.experiment.model)
    mixes_batches = any(layer.is_switchable and layer.tracks_statistics for layer in layers)
    return "batch_average" if mixes_batches else "moving_average"


def _tested(session: Session) -> dict[str, float]:
    first, *others = session.experiment.task.tested
    more = {f"{split}/{name}": v for split in others for name, v in evaluate(session, split).items()}
    return evaluate(session, first) | more


def summarize(session: Session, status: str, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What summary.json says of a run, but for its length."""
    config, experiment, record = session.config, session.experiment, session.folder.run()
    layers = normalizers(experiment.model)
    estimator = _estimator(session)
    rows = experiment.ratios()
    known = metrics_of(config.task["_target_"])
    metric = next(iter(known))
    return {
        "id": record["id"],
        "name": record["name"],
        "status": status,
        **{group: config.choices[group] for group in ("norm", "weight", "model", "data", "task")},
        **{key: getattr(config, key) for key in ("batch", "accumulate", "epochs", "iterations", "seed", "precision")},
        "headline": {"metric": metric, "estimator": estimator}
        | (
            {"value": value_of(metrics[estimator], metric, metrics_of(config.task["_target_"]))}
            if metrics
            else {"value": None}
        ),
        "metrics": metrics,
        "ratios": ratios.average(rows) if ratios.switchable(rows) else None,
        "ratios_by_part": ratios.mean_by_part(rows) if ratios.switchable(rows) else {},
        "tested": experiment.task.splits[experiment.task.tested[0]],
        "parts": {part: list(prefixes) for part, prefixes in experiment.parts.prefixes.items()},
        "parameters": sum(p.numel() for p in experiment.model.parameters()),
        "norm_layers": len(layers),
        "not_used_of_init": experiment.unused,
        "data_errors": data_errors(session.folder.path),
        "devices": session.share.ranks,
        "device": devices.describe(session.device),
        "versions": record["versions"],
        "commit": record["commit"],
        "inputs": record.get("inputs"),
    }
