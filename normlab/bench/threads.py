"""What threads gain and cost: a training step with one and with several, alone or beside other programs."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import torch
from annotated_types import Ge, Le

from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.step import NUM_CLASSES, Trainer
from normlab.bench.tables import Row, Table, plain
from normlab.bench.timing import seconds_a_call
from normlab.config import Batch, load
from normlab.dynamics.dry_run import multiply_adds
from normlab.norm.convert import convert
from normlab.progress import Progress
from normlab.schema import bind

_BUSY = (sys.executable, "-c", "while True: pass")


def bench(
    progress: Progress,
    *,
    model: str = "resnet18",
    sizes: Sequence[Annotated[int, Ge(1), Le(2**12)]] = (16, 32, 64),
    batch: str = "8x2",
    threads: Sequence[Annotated[int, Ge(1), Le(2**15)]] = (1, 2),
    beside: Annotated[int, Ge(0), Le(64)] = 0,
    rounds: Annotated[int, Ge(1)] = 5,
    at_least: Annotated[float, Ge(0)] = 0.5,
) -> list[Row]:
    """Seconds of a training step with norm=sn, by the number of threads and by what a forward pass has to do.

    How waiting threads wait is OpenMP's matter: OMP_WAIT_POLICY=ACTIVE before the command has them ask on.

    Args:
        model: by its name in `normlab list models`.
        sizes: of the images, in pixels.
        batch: replicas x samples.
        threads: numbers of threads.
        beside: other programs that want a core each, meanwhile.
        rounds: of which the medians and quartiles are taken.
        at_least: seconds that each candidate is repeated for in a round; a step is the median of the repetitions.
    """
    replicas = Batch(batch)
    config = load(["norm=sn", f"model={model}"])
    trainers: dict[int, tuple[Trainer, int]] = {}
    for size in sizes:
        network = bind(config.model)((3, size, size), NUM_CLASSES)
        convert(network, config.norm and bind(config.norm))
        images, labels = torch.randn(replicas.total, 3, size, size), torch.randint(NUM_CLASSES, (replicas.total,))
        optimizer = bind(config.optim)(network, replicas.total)
        work = replicas.total * multiply_adds(network, (3, size, size))
        trainers[size] = Trainer(network.train(), optimizer, images, labels, torch.autocast("cpu", enabled=False)), work

    def timed(size: int, number: int) -> Callable[[], float]:
        def seconds() -> float:
            torch.set_num_threads(number)
            return seconds_a_call(lambda: trainers[size][0].step(replicas=replicas.replicas), at_least)

        return seconds

    candidates = {(size, number): timed(size, number) for size in sizes for number in threads}
    finished = itertools.count(1)
    with _busy(beside):
        times = interleave(candidates, rounds, lambda: progress("measuring", next(finished), rounds * len(candidates)))
    return [
        {
            **{"model": model, "batch": batch, "size": size, "threads": number, "beside": beside},
            "waiting": os.environ.get("OMP_WAIT_POLICY", "OpenMP's default").lower(),
            "billions": trainers[size][1] / 1e9,
            "seconds": spread(values),
            "to_first": ratio(values, times[size, threads[0]]),
        }
        for (size, number), values in times.items()
    ]


@contextmanager
def _busy(number: int) -> Iterator[None]:
    others = [subprocess.Popen(_BUSY) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def tables(rows: Sequence[Row]) -> list[Table]:
    columns = {"size": "pixels a side", "billions": "billions of multiply-adds forward", "threads": "threads"}
    columns |= {"seconds": "seconds a step", "to_first": f"/ with {rows[0]['threads']}"}
    title = "training step of {model}, {batch}, beside {beside} other programs, waiting threads: {waiting}"
    shown = [row | {name: str(row[name]) for name in ("size", "threads")} for row in rows]
    return [plain(title.format(**rows[0]), shown, columns)]
