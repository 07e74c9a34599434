"""Loading JPEG files: normlab's loader against timm's."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from annotated_types import Ge, Le
from torch import nn

from normlab.bench.images import make_folders
from normlab.bench.machine import set_threads
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.tables import Row, Table, plain
from normlab.config import load
from normlab.engine import loader
from normlab.engine.build import Experiment, build_task
from normlab.engine.session import Session
from normlab.errors import UserError
from normlab.processes.signals import Stop
from normlab.progress import Progress, silent
from normlab.replicas import Share, passes
from normlab.runs.folder import RunFolder
from normlab.tasks.parts import Parts

NORMLAB_ROW, TIMM_ROW = "normlab", "timm"


def bench(
    progress: Progress,
    *,
    workers: Sequence[Annotated[int, Ge(0)]] = (0, 1, 2),
    data: str | None = None,
    size: Annotated[int, Ge(1), Le(2**12)] = 224,
    batch: Annotated[int, Ge(1)] = 32,
    batches: Annotated[int, Ge(2)] = 20,
    rounds: Annotated[int, Ge(1)] = 3,
    threads: Annotated[int, Ge(1), Le(2**15)] | None = None,
) -> list[Row]:
    """Samples per second of the loaders alone: decode, random resized crop, flip, normalize, stack, as float32.

    The rate is that from the first batch to the last of a fresh loader, which has one more to load: timm's gives a
    batch when it has the next. Batches end on the CPU; both normalize there what their workers leave as bytes.

    Args:
        workers: processes that load, each number in its turn; 0: the process itself.
        data: folder with train and val, one folder a class in each; null: JPEG files made for the occasion.
        size: of the images, in pixels.
        batch: samples of a batch.
        batches: of each run.
        rounds: of which the medians and quartiles are taken.
        threads: of the process that takes the batches; null: torch's own choice.
    """
    set_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(data) if data else Path(folder) / "data"
        if data is None:
            make_folders(root, batch * (batches + 1))
        candidates = {}
        for count in workers:
            ours = partial(_ours, root, size, batch, count)
            candidates[NORMLAB_ROW, count] = partial(_rate, ours, batch, batches)
            candidates[TIMM_ROW, count] = partial(_rate, partial(_timms, root, size, batch, count), batch, batches)
        finished = itertools.count(1)
        rates = interleave(candidates, rounds, lambda: progress("loading", next(finished), rounds * len(candidates)))
    return [
        {
            **{"who": who, "workers": count, "size": size, "batch": batch},
            "samples_per_second": spread(values),
            "to_timm": ratio(values, rates[TIMM_ROW, count]),
        }
        for (who, count), values in rates.items()
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    columns = {"workers": "workers", "who": "loader", "samples_per_second": "samples per second", "to_timm": "/ timm"}
    title = "loading JPEG files, {size} x {size}, batches of {batch}".format(**rows[0])
    return [plain(title, [row | {"workers": str(row["workers"])} for row in rows], columns)]


def _ours(root: Path, size: int, batch: int, workers: int) -> Iterator[Any]:
    """One epoch of the engine's own loader, on the CPU."""
    words = ["data=imagenet", f"data.root={root}", f"data.size={size}", f"batch=1x{batch}", f"workers={workers}"]
    config = load(words)
    task = build_task(config)
    share = Share(config.replicas, config.per_replica)
    experiment = Experiment(task, nn.Identity(), Parts({}, {}), [], [], frozenset())
    session = Session(config, RunFolder(root), experiment, torch.device("cpu"), share, silent, Stop())
    length = len(task.dataset("train"))  # type: ignore[arg-type]
    per_epoch = length // batch
    return loader.batches(session, "train", lambda: passes(share, 0, length, per_epoch, 0, per_epoch), batch)


def _timms(root: Path, size: int, batch: int, workers: int) -> Iterable[Any]:
    dataset = timm.data.create_dataset("", root=str(root), split="train", is_training=True)
    return timm.data.create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=batch,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=workers,
        device=torch.device("cpu"),
        pin_memory=False,
    )


def _rate(make: Callable[[], Iterable[Any]], batch: int, count: int) -> float:
    """Samples per second from the first batch to the last of `count`, or as many as there are."""
    taken = itertools.islice(make(), count)
    next(taken, None)
    start = time.perf_counter()
    further = sum(1 for _ in taken)
    if further == 0:
        raise UserError(f"batch={batch}: the training files do not fill two batches")
    return batch * further / (time.perf_counter() - start)
