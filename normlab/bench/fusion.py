"""What fusing the ReLU behind a norm into it could save at most: a step of a network without its ReLUs."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import nn

from normlab.bench.machine import set_threads
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.step import NUM_CLASSES, Trainer
from normlab.bench.tables import Row, Table, plain
from normlab.bench.timing import seconds_a_call
from normlab.config import load
from normlab.norm.convert import convert
from normlab.progress import Progress
from normlab.schema import bind

_WHOLE, _WITHOUT = "as it is", "without its ReLUs"


def bench(
    progress: Progress,
    *,
    norm: str = "sn",
    model: str = "resnet18",
    batch: Annotated[int, Ge(1)] = 16,
    size: Annotated[int, Ge(1), Le(2**12)] = 224,
    rounds: Annotated[int, Ge(1)] = 5,
    at_least: Annotated[float, Ge(0)] = 0.5,
    threads: Annotated[int, Ge(1), Le(2**15)] | None = None,
) -> list[Row]:
    """A training step of a network on the CPU, and the same step without the network's ReLUs.

    No fused kernel can save more than the ReLUs take by themselves.

    Args:
        norm: by its name in `normlab list norms`.
        model: by its name in `normlab list models`, with ReLUs that are modules.
        batch: samples, as one replica.
        size: of the images, in pixels.
        rounds: of which the medians and quartiles are taken.
        at_least: seconds that each candidate is repeated for in a round; a step is the median of the repetitions.
        threads: of the CPU; null: torch's own choice.
    """
    set_threads(threads)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(NUM_CLASSES, (batch,))
    config = load([f"norm={norm}", f"model={model}"])

    def trainer(without: bool) -> Trainer:
        network = bind(config.model)((3, size, size), NUM_CLASSES)
        convert(network, config.norm and bind(config.norm))
        if without:
            names = [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
            for name in names:
                network.set_submodule(name, nn.Identity())
        optimizer = bind(config.optim)(network, batch)
        return Trainer(network.train(), optimizer, images, labels, torch.autocast("cpu", enabled=False))

    steps = {_WHOLE: trainer(without=False).step, _WITHOUT: trainer(without=True).step}
    finished = itertools.count(1)
    timed = {name: partial(seconds_a_call, step, at_least) for name, step in steps.items()}
    times = interleave(timed, rounds, lambda: progress("measuring", next(finished), rounds * len(steps)))
    return [
        {
            **{"network": name, "model": model, "norm": norm, "batch": batch, "size": size},
            "seconds": spread(values),
            "to_whole": ratio(values, times[_WHOLE]),
        }
        for name, values in times.items()
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    columns = {"network": "network", "seconds": "seconds a step", "to_whole": f"/ {_WHOLE}"}
    title = "training step of {model} with {norm}, {batch} images of {size} x {size}".format(**rows[0])
    return [plain(title, rows, columns)]
