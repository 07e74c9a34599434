"""What a run would be, without training it."""

from rich.table import Table
from torch import nn

from normlab.config import Config, identity
from normlab.console import PlainConsole
from normlab.data.published import is_absent
from normlab.engine.build import Experiment, build
from normlab.engine.evaluate import check_splits
from normlab.engine.length import Length
from normlab.launch.cost import Costs
from normlab.launch.cost import throughput as read_throughput
from normlab.launch.elastic import num_devices
from normlab.replicas import normalizers
from normlab.runs.folder import RunFolder
from normlab.schema import bind
from normlab.tasks.task import Task


def print_plan(config: Config, throughput: str | None = None) -> None:
    """With a throughput of a GPU (launch/cost.py), GPU-hours too.

    Raises UserError on all that would keep the run from starting, but for data that are not there.
    """
    experiment = build(config)
    task, length, devices = experiment.task, Length(config, experiment.task), num_devices(config)
    check_splits(task, config)
    folder = RunFolder.of(config)
    sizes = {split: len(task.dataset(split)) for split in dict.fromkeys([*_trained_on(task), *task.tested])}  # type: ignore[arg-type]
    each = f", each {'x'.join(map(str, task.example))}" if task.example else ""
    optimizer = bind(config.optim)(experiment.model, config.update_samples)
    rows = {
        "run": f"{folder.path} ({identity(config)}, {folder.status()['status']})",
        "samples": ", ".join(f"{size} for {task.splits.get(split, split)}" for split, size in sizes.items()) + each,
        "length": f"{length.total} updates, {length.epoch(length.total):g} epochs of {length.per_epoch} updates",
        **_phases(task, length),
        "update": f"{config.update_samples} samples: {config.replicas} replicas x {config.per_replica}"
        + (f" x {config.accumulate} iterations" if config.accumulate > 1 else ""),
        "learning rate": f"{optimizer.param_groups[0]['lr']:g}, before the schedule",
        "devices": f"{devices}, each hosting {config.replicas // devices} replicas",
        "parameters": f"{sum(p.numel() for p in experiment.model.parameters()):,}"
        + _frozen(experiment.model, experiment.trainable),
        "norm layers": _norm_layers(experiment),
    }
    if throughput is not None:
        costs = Costs(read_throughput(throughput))
        rows["GPU-hours"] = f"{costs.hours(config):,.2f} of training, at {costs.given.words}"
    if is_absent(config.data):
        rows["samples"] += f" (as published: {config.data['root']} is not there)"
    if experiment.unused:
        rows["not used of init"] = ", ".join(experiment.unused)
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    PlainConsole().print(table)


def _trained_on(task: Task) -> list[str]:
    return [phase.split for phase in task.phases]


def _phases(task: Task, length: Length) -> dict[str, str]:
    """Nothing where there is one."""
    if len(task.phases) == 1:
        return {}
    turns = zip(task.phases, length.spans, strict=True)
    return {"phases": ", then ".join(f"{phase.name}: {span.updates} updates on {phase.split}" for phase, span in turns)}


def _frozen(model: nn.Module, trainable: frozenset[str]) -> str:
    frozen = sum(p.numel() for name, p in model.named_parameters() if name not in trainable)
    return f", {frozen:,} of them frozen" if frozen else ""


def _norm_layers(experiment: Experiment) -> str:
    layers = normalizers(experiment.model)
    by_part: dict[str, int] = {}
    for site in experiment.sites:
        part = experiment.parts.of(site.name) or "of no part"
        by_part[part] = by_part.get(part, 0) + 1
    words = [f"{len(layers)}"]
    if len(by_part) > 1:
        words[0] += f" ({', '.join(f'{part} {count}' for part, count in by_part.items())})"
    fields = [site.receptive_field for site in experiment.sites if site.receptive_field is not None]
    words += [f"receptive fields {min(fields)} to {max(fields)} pixels"] if fields else []
    words += [f"the first: {layers[0]}"] if layers else []
    return ", ".join(words)
