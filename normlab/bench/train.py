"""Training end to end: `normlab train` against timm's training script."""

import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from normlab.bench.follow import Moment, follow, rate
from normlab.bench.images import make_folders
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.start import NORMLAB, metrics, updates_in_metrics
from normlab.bench.tables import Row, Table, plain
from normlab.data.scan import class_names
from normlab.errors import UserError
from normlab.models.names import check_model_name
from normlab.progress import Progress

NORMLAB_ROW, TIMM_ROW = "normlab train norm=bn", "timm's train.py"
RECORD_EVERY = 5  # updates, of both
_TIMM_LINE = re.compile(r"Train: \d+ \[\s*(\d+)/")


def bench(
    progress: Progress,
    *,
    script: str,
    data: str | None = None,
    model: str = "resnet18",
    size: Annotated[int, Ge(1), Le(2**12)] = 224,
    batch: Annotated[int, Ge(2)] = 32,
    precision: Literal["fp32", "bf16"] = "fp32",
    channels_last: bool = False,
    workers: Annotated[int, Ge(0)] = 2,
    updates: Annotated[int, Ge(1)] = 30,
    warmup: Annotated[int, Ge(1)] = 10,
    rounds: Annotated[int, Ge(1)] = 3,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[Row]:
    """Samples per second of `normlab train norm=bn` and of timm's own training script, on the same work.

    Both train the same timm network on the same files, with random resized crops and flips, bilinear, SGD with
    momentum. Each is a process of its own, and both are followed alike: the moment when the record of an update
    appears, in metrics.jsonl here and in the log there, every 5 updates. The rate is that between the first record
    after the warm-up and the last; then the process is ended.

    Args:
        script: path of timm's train.py.
        data: folder with train and val, one folder a class in each; null: JPEG files made for the occasion.
        model: a timm name.
        size: of the images, in pixels.
        batch: samples of an update.
        precision: fp32, or bf16 by autocast.
        channels_last: the layout of images and weights.
        workers: processes that load data.
        updates: of each run.
        warmup: updates at the start of each run that do not count.
        rounds: of which the medians and quartiles are taken.
        device: cuda or auto: both use the GPU where torch finds one; cpu hides it from them.
    """
    _check(script, updates, warmup)
    check_model_name("timm", model)
    runs = itertools.count(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root = _data(data, work, updates * batch)
        on_cpu = ["env", "CUDA_VISIBLE_DEVICES="] if device == "cpu" else []

        def out() -> Path:
            return work / f"run{next(runs)}"

        def normlab() -> list[Moment]:
            place = out()
            words = [f"out={place}", f"data.root={root}", f"data.size={size}", f"model.name={model}"]
            words += [f"batch=1x{batch}", f"precision={precision}", f"channels_last={channels_last}".lower()]
            words += [f"workers={workers}", "norm=bn", "model=timm", "data=imagenet", "epochs=1", "tracker=none"]
            command = [*on_cpu, *NORMLAB, "train", *words, f"log_every={RECORD_EVERY}"]
            return follow(command, partial(metrics, place), updates_in_metrics, updates)

        def timm() -> list[Moment]:
            values = {"model": model, "img-size": size, "batch-size": batch, "workers": workers, "output": out()}
            values |= {"num-classes": len(class_names(root / "train")), "train-split": "train", "val-split": "val"}
            values |= {"epochs": 1, "warmup-epochs": 0, "opt": "momentum", "lr": 0.05, "weight-decay": 1e-4}
            values |= {"smoothing": 0, "color-jitter": 0, "train-interpolation": "bilinear"}
            values |= {"log-interval": RECORD_EVERY, "device": "cpu" if device == "cpu" or not _has_gpu() else "cuda"}
            words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
            words += ["--amp", "--amp-dtype", "bfloat16"] if precision == "bf16" else []
            words += ["--channels-last"] if channels_last else []
            command = [*on_cpu, sys.executable, script, str(root), *words]
            return follow(command, lambda log: log, updates_in_timm_log, updates - RECORD_EVERY)

        def samples_a_second(run: Callable[[], list[Moment]]) -> float:
            return rate(run(), batch, warmup)

        finished = itertools.count(1)
        candidates = {NORMLAB_ROW: partial(samples_a_second, normlab), TIMM_ROW: partial(samples_a_second, timm)}
        rates = interleave(candidates, rounds, lambda: progress("runs", next(finished), 2 * rounds))
    settings = {"model": model, "size": size, "batch": batch, "precision": precision, "workers": workers}
    return [
        {"who": who, **settings, "samples_per_second": spread(values), "to_timm": ratio(values, rates[TIMM_ROW])}
        for who, values in rates.items()
    ]


def updates_in_timm_log(line: str) -> int | None:
    """`Train: 0 [  10/ 100 ( 10%)] ...` stands behind the update of that number, counted from 0."""
    found = _TIMM_LINE.search(line)
    return int(found[1]) + 1 if found else None


def tables(rows: Sequence[Row]) -> list[Table]:
    columns = {"who": "", "samples_per_second": "samples per second", "to_timm": f"/ {TIMM_ROW}"}
    title = "{model}, {size} x {size}, batch {batch}, {precision}, {workers} workers".format(**rows[0])
    return [plain(f"training end to end: {title}", rows, columns)]


def _check(script: str, updates: int, warmup: int) -> None:
    if not Path(script).is_file():
        raise UserError(f"script={script}: there is no such file; it is the path of timm's train.py")
    if updates < warmup + 3 * RECORD_EVERY:
        least = warmup + 3 * RECORD_EVERY
        raise UserError(f"updates={updates}: expected {least} or more, for records after a warmup of {warmup}")


def _data(data: str | None, work: Path, images: int) -> Path:
    if data is None:
        make_folders(work / "data", images)
        return work / "data"
    for split in ("train", "val"):
        if not (Path(data) / split).is_dir():
            raise UserError(f"data={data}: there is no folder '{split}' in it")
    return Path(data).absolute()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
