"""GPU-hours that runs would take, from a throughput: stated, or as `normlab bench train out=FILE` measured it."""

import math
from pathlib import Path
from typing import NamedTuple

from normlab.config import Config, load
from normlab.dynamics.dry_run import multiply_adds
from normlab.engine.build import build_task
from normlab.engine.length import Length
from normlab.errors import UserError
from normlab.reading import read_json
from normlab.schema import bind


class Throughput(NamedTuple):
    """What one GPU trains in a second: samples, or multiply-adds of their forward passes."""

    rate: float
    of: str  # "samples" or "multiply-adds"
    words: str


def throughput(text: str) -> Throughput:
    """Of throughput=TEXT: samples a second, or a file of `normlab bench train`. Raises UserError on anything else."""
    try:
        number = float(text)
    except ValueError:
        return _measured(Path(text))
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"throughput={text}: expected samples a second on one GPU, a number above 0")
    return Throughput(number, "samples", f"{number:g} samples a second on a GPU")


def _measured(file: Path) -> Throughput:
    if not file.is_file():
        raise UserError(
            f"throughput={file}: expected samples a second on one GPU, or a file of `normlab bench train out=FILE`"
        )
    content = read_json(file)
    if content.get("bench") != "train":
        raise UserError(f"throughput={file}: expected a file of `normlab bench train out=FILE`")
    row = next((row for row in content["rows"] if row["who"].startswith("normlab train")), None)
    if row is None:
        raise UserError(f"throughput={file}: it has no row of normlab train")
    config = load([f"model={row['model']}", "norm=bn"])
    shape = (3, row["size"], row["size"])
    operations = multiply_adds(bind(config.model)(shape, 1000), shape)
    samples = row["samples_per_second"]["median"]
    where = content["machine"]["gpu"] if content["machine"]["gpu"] != "none" else content["machine"]["processor"]
    return Throughput(
        samples * operations, "multiply-adds", f"{samples:.0f} samples a second of {row['model']} on one {where}"
    )


class Costs:
    """GPU-hours of training; networks and data that many runs share are looked at once."""

    def __init__(self, given: Throughput) -> None:
        self.given = given
        self._lengths: dict[str, int] = {}
        self._operations: dict[str, int] = {}

    def hours(self, config: Config) -> float:
        """Of the whole run, on all GPUs together. Raises UserError where its samples have no one shape."""
        samples = self._updates(config) * config.update_samples
        each = 1 if self.given.of == "samples" else self._of_a_sample(config)
        return samples * each / self.given.rate / 3600

    def _updates(self, config: Config) -> int:
        if config.iterations:
            return config.iterations
        key = repr((config.data, config.task, config.batch, config.accumulate, config.epochs, config.phases))
        if key not in self._lengths:
            self._lengths[key] = Length(config, build_task(config)).total
        return self._lengths[key]

    def _of_a_sample(self, config: Config) -> int:
        key = repr((config.model, config.data, config.task))
        if key not in self._operations:
            task = build_task(config)
            if task.example is None:
                raise UserError(
                    f"throughput: samples of task={config.choices['task']} have no one shape; state samples a second"
                )
            try:
                self._operations[key] = multiply_adds(task.build({}), task.example)
            except (TypeError, RuntimeError, AssertionError) as error:  # a network that takes more than one tensor
                raise UserError(
                    f"throughput: the operations of task={config.choices['task']} cannot be counted; state samples a "
                    "second"
                ) from error
        return self._operations[key]
