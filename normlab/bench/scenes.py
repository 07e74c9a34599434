"""Making scenes: milliseconds of a CPU for each."""

import itertools
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from annotated_types import Ge, Le

from normlab.bench.machine import set_threads
from normlab.bench.rounds import interleave, spread
from normlab.bench.tables import Row, Table, plain
from normlab.config import settings_of
from normlab.progress import Progress
from normlab.schema import bind

DATA = ("scenes", "scene_maps", "scene_boxes")
_ALONE = 1


def bench(
    progress: Progress,
    *,
    sizes: Sequence[Annotated[int, Ge(8), Le(2**12)]] = (16, 32, 64, 96),
    channels: Annotated[int, Ge(1), Le(2**12)] = 1,
    batch: Annotated[int, Ge(1), Le(2**16)] = 16,
    repeats: Annotated[int, Ge(1)] = 20,
    rounds: Annotated[int, Ge(1)] = 5,
) -> list[Row]:
    """Training scenes with their targets, a batch at once and one at a time, in time of the CPU, on one thread.

    All settings but size and channels are those of conf/data.

    Args:
        sizes: of the images, in pixels.
        channels: of the images.
        batch: scenes that are made at once.
        repeats: batches of a measurement.
        rounds: of which the medians and quartiles are taken.
    """
    set_threads(1)
    candidates = {
        (name, size, at_once): partial(_milliseconds, _dataset(name, size, channels), batch, at_once, repeats)
        for name in DATA
        for size in sizes
        for at_once in (batch, _ALONE)
    }
    finished = itertools.count(1)
    times = interleave(candidates, rounds, lambda: progress("making", next(finished), rounds * len(candidates)))
    return [
        {
            **{"data": name, "size": size, "channels": channels, "batch": batch},
            "milliseconds": spread(times[name, size, batch]),
            "alone": spread(times[name, size, _ALONE]),
        }
        for name in DATA
        for size in sizes
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    columns = {"data": "data", "size": "pixels a side", "milliseconds": "CPU ms a scene", "alone": "one at a time"}
    title = "making scenes on one thread, channels={channels}, batches of {batch}".format(**rows[0])
    return [plain(title, [row | {"size": str(row["size"])} for row in rows], columns)]


def _dataset(name: str, size: int, channels: int) -> Any:
    settings = settings_of("data", name, [f"data.size={size}", f"data.channels={channels}"])
    assert settings is not None  # of a file that comes with normlab
    return bind(settings)("train", 0)


def _milliseconds(dataset: Any, batch: int, at_once: int, repeats: int) -> float:
    """For each scene."""
    keys = [(epoch, index) for epoch in range(repeats) for index in range(batch)]
    start = time.process_time()
    for first in range(0, len(keys), at_once):
        dataset.take_all(keys[first : first + at_once])
    return 1000 * (time.process_time() - start) / len(keys)
