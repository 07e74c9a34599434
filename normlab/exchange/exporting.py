"""A run's model for use elsewhere: norms folded, weights plain, outputs checked, the gain in speed measured.

model.safetensors   the folded weights, by their names in the model
model.pt2           the whole network as torch.export makes it: runs wherever torch does, without normlab
export.json         what was folded, how far the outputs differ, how long a pass takes
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from normlab.bench.machine import machine
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.timing import seconds_a_call
from normlab.console import PlainConsole
from normlab.engine.saved import open_run
from normlab.engine.weights import load_own
from normlab.errors import RunError, UserError, unknown
from normlab.exchange.folding import fold
from normlab.runs.folder import RunFolder
from normlab.tasks.task import Task
from normlab.writing import write_bytes, write_json

ESTIMATORS = ("paper", "moving_average", "batch_average")
TOLERANCE = 1e-5  # of outputs, relative to the largest one
_CHECKED, _TIMED = 64, 16  # samples
_ROUNDS, _AT_LEAST = 7, 0.1  # of the timing, and seconds


def export_run(folder: RunFolder, place: Path, estimator: str = "paper") -> dict[str, Any]:
    """Write what the module's docstring lists to the folder `place`; returns export.json.

    Args:
        folder: of the run.
        place: is made if there is none.
        estimator: whose statistics are folded: moving_average, batch_average, or paper: those of its headline.

    Raises:
        UserError: the run has no weights or no such statistics, or its network cannot be exported.
        RunError: the outputs are not the run's own; nothing was written.
    """
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    session = open_run(folder)
    if estimator == "paper":
        estimator = folder.summary()["headline"]["estimator"]
    # Not a deep copy: it shares with the original the class in which torch keeps a reparametrized weight.
    model, folded = (s.experiment.model.cpu().eval() for s in (session, open_run(folder)))
    if estimator == "batch_average":
        for network in (model, folded):
            _take_batch_average(network, folder)
    two, checked, timed = (_inputs(session.experiment.task, model, number) for number in (2, _CHECKED, _TIMED))
    model, folded = (network.get_submodule(two.module) for network in (model, folded))
    folding = fold(folded, lambda network: network(*two.inputs))
    program = _exported(folded, two)
    with torch.no_grad():
        expected = model(*checked.inputs)
        runnable = torch.export.load(io.BytesIO(program)).module()
        outputs = {"folded": folded(*checked.inputs), "pt2": runnable(*checked.inputs)}
        differences = {name: _difference(output, expected) for name, output in outputs.items()}
    if max(differences.values()) > TOLERANCE:
        raise RunError(f"run {folder.path.name}: its outputs change by {differences} when folded; nothing was written")
    report = {
        "run": folder.path.name,
        "estimator": estimator,
        "module": two.module,
        "folded": folding.folded,
        "affine": folding.affine,
        "kept": folding.kept,
        "plain_weights": folding.weights,
        "differences": differences,
        "checked_samples": checked.samples,
        "speed": _timed(model, folded, timed, session.device),
    }
    place.mkdir(parents=True, exist_ok=True)
    weights = {name: t.contiguous() for name, t in folded.cpu().state_dict().items()}
    write_bytes(place / "model.safetensors", safetensors.torch.save(weights, _metadata(report)))
    write_bytes(place / "model.pt2", program)
    write_json(place / "export.json", report)
    return report


def _take_batch_average(model: nn.Module, folder: RunFolder) -> None:
    if not folder.batch_average.is_file():
        raise UserError(f"run {folder.path.name} has no batch average; estimator=moving_average takes the other")
    model.load_state_dict(load_own(folder.whole(folder.batch_average), model, folder), strict=False)


class _Inputs(NamedTuple):
    """What the network takes, of so many validation samples, and the axes of each whose size may differ."""

    inputs: tuple[Any, ...]
    dynamic: tuple[Any, ...]
    samples: int
    module: str = ""


def _inputs(task: Task, model: nn.Module, number: int) -> _Inputs:
    """Of the first validation samples, as the task says. Raises UserError where it refuses."""
    split = task.tested[0]
    dataset = task.dataset(split)
    samples = [dataset[None, index] for index in range(min(number, len(dataset)))]  # type: ignore[arg-type]
    batch = task.prepare(task.collate(samples, split), split)
    inputs, dynamic, module = task.exported(batch)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    inputs = tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
    axes = _automatic(dynamic) if dynamic else tree_map(lambda leaf: {0: torch.export.Dim.AUTO}, inputs)
    return _Inputs(inputs, axes, len(samples), module)


def _automatic(axes: Any) -> Any:
    """Which axes may differ, of inputs that may be nested; torch finds out how they hang together."""
    if isinstance(axes, Mapping):
        of_axes = all(isinstance(axis, int) for axis in axes)
        return {k: torch.export.Dim.AUTO if of_axes else _automatic(inside) for k, inside in axes.items()}
    return type(axes)(map(_automatic, axes)) if isinstance(axes, list | tuple) else axes


def _exported(model: nn.Module, given: _Inputs) -> bytes:
    """The network as torch.export writes it, for batches of any size."""
    buffer = io.BytesIO()
    try:
        with torch.no_grad():  # what gradients alone need stays out
            program = torch.export.export(model, given.inputs, dynamic_shapes=given.dynamic)
        torch.export.save(program, buffer)
    except Exception as error:  # torch raises many kinds on what it cannot trace
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"torch.export cannot trace this network: {reason}") from error
    return buffer.getvalue()


def _difference(ours: Any, expected: Any) -> float:
    """The largest, relative to the largest value of the same output, however outputs are nested."""
    pairs = zip(tree_leaves(ours), tree_leaves(expected), strict=True)
    found = [
        ((a - b).abs().max() / b.abs().max().clamp(min=torch.finfo(b.dtype).tiny)).item()
        for a, b in pairs
        if isinstance(b, Tensor) and b.is_floating_point() and b.numel()
    ]
    return max(found, default=0.0)


def _timed(model: nn.Module, folded: nn.Module, given: _Inputs, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a forward pass of both, taken in turns, and the speed-up within each round."""
    inputs = tree_map_only(Tensor, lambda t: t.to(device), given.inputs)
    networks = {"run": model.to(device), "folded": folded.to(device)}
    with torch.inference_mode():
        seconds = interleave(
            {name: lambda m=m: seconds_a_call(lambda: m(*inputs), _AT_LEAST) for name, m in networks.items()},  # type: ignore[misc]
            _ROUNDS,
            lambda: None,
        )
    return {
        "samples": given.samples,
        "milliseconds": {name: spread([1e3 * s for s in taken]) for name, taken in seconds.items()},
        "speed_up": ratio(seconds["run"], seconds["folded"]),
        "machine": machine("auto"),
    }


def _metadata(report: dict[str, Any]) -> dict[str, str]:
    return {"format": "pt", "run": report["run"], "estimator": report["estimator"]}


def print_export(report: dict[str, Any], place: Path) -> None:
    """What was folded, how well, and what it gains."""
    console = PlainConsole(highlight=False)
    folded, affine, kept = (len(report[key]) for key in ("folded", "affine", "kept"))
    what = f"{report['run']}{report['module'] and ', its ' + report['module']}"
    console.print(
        f"{what}: {folded} of {folded + affine + kept} norm layers folded, {affine} an affine map, "
        f"{kept} kept; {len(report['plain_weights'])} reparametrized weights are plain; "
        f"statistics: {report['estimator']}",
        soft_wrap=True,
    )
    console.print(
        f"outputs on {report['checked_samples']} validation samples differ by "
        f"{max(report['differences'].values()):.1e} of the largest (allowed: {TOLERANCE:g})"
    )
    speed, times = report["speed"], report["speed"]["milliseconds"]
    console.print(
        f"{speed['samples']} samples: {times['run']['median']:.2f} ms, folded {times['folded']['median']:.2f} ms: "
        f"{speed['speed_up']['median']:.2f} times as fast ({speed['speed_up']['low']:.2f} to "
        f"{speed['speed_up']['high']:.2f}), on {speed['machine']['processor']}, {speed['machine']['threads']} threads, "
        f"GPU {speed['machine']['gpu']}",
        soft_wrap=True,
    )
    for name in ("model.safetensors", "model.pt2", "export.json"):
        console.print(f"written: {place / name}", soft_wrap=True)
