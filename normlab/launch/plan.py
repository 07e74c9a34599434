"""What a run would be, without training it."""

from rich.console import Console
from rich.table import Table

from normlab.config import Config, identity
from normlab.engine.build import build
from normlab.engine.fit import Length
from normlab.launch.elastic import num_devices
from normlab.replicas import normalizers
from normlab.runs.folder import RunFolder
from normlab.schema import bind


def print_plan(config: Config) -> None:
    """Raises UserError on all that would keep the run from starting."""
    experiment = build(config)
    train, val = (len(experiment.task.dataset(split)) for split in ("train", "val"))  # type: ignore[arg-type]
    length, devices = Length(config, train), num_devices(config)
    optimizer = bind(config.optim)(experiment.model, config.update_samples)
    layers = normalizers(experiment.model)
    fields = [site.receptive_field for site in experiment.sites]
    folder = RunFolder.of(config)
    rows = {
        "run": f"{folder.path} ({identity(config)}, {folder.status()['status']})",
        "samples": f"{train} for training, {val} for validation, each {'x'.join(map(str, experiment.task.example))}",
        "length": f"{length.total} updates, {length.epoch(length.total):g} epochs of {length.per_epoch} updates",
        "update": f"{config.update_samples} samples: {config.replicas} replicas x {config.per_replica}"
        + (f" x {config.accumulate} iterations" if config.accumulate > 1 else ""),
        "learning rate": f"{optimizer.param_groups[0]['lr']:g}, before the schedule",
        "devices": f"{devices}, each hosting {config.replicas // devices} replicas",
        "parameters": f"{sum(p.numel() for p in experiment.model.parameters()):,}",
        "norm layers": f"{len(layers)}"
        + (f", receptive fields {min(fields)} to {max(fields)} pixels" if fields else "")
        + (f", the first: {layers[0]}" if layers else ""),
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(markup=False).print(table)
