"""A whole training step of a network: forward, loss, backward, update."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normlab.bench.machine import find_device, set_threads
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.tables import Row, Table, plain
from normlab.bench.timing import seconds_a_call
from normlab.config import Batch, Config, load
from normlab.norm.convert import convert
from normlab.progress import Progress
from normlab.replicas import RunningStatistics, set_replicas
from normlab.schema import bind

TORCH_BN = "torch BatchNorm2d"
NUM_CLASSES = 1000


def bench(
    progress: Progress,
    *,
    norms: Sequence[str] = ("bn", "sn"),
    model: str | None = None,
    batch: str = "8x2",
    ways: Sequence[Literal["plain", "replicas", "sequential"]] = ("plain", "replicas", "sequential"),
    size: Annotated[int, Ge(1), Le(2**12)] = 224,
    precision: Literal["fp32", "bf16"] | None = None,
    channels_last: bool | None = None,
    rounds: Annotated[int, Ge(1)] = 5,
    at_least: Annotated[float, Ge(0)] = 0.5,
    threads: Annotated[int, Ge(1), Le(2**15)] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[Row]:
    """A training step of a network with chosen normalizers, against the same network with torch's BatchNorm2d.

    Each normalizer takes the same samples in three ways: as one plain batch, as the replicas of batch=GxN in one pass,
    and as G micro-batches of N, one after the other, whose gradients add up. Random images, cross entropy, SGD with
    momentum.

    Args:
        norms: normalizers, by their names in `normlab list norms`.
        model: by its name in `normlab list models`; null: resnet50 on a GPU, resnet18 on the CPU.
        batch: replicas x samples.
        ways: which of the three.
        size: of the images, in pixels.
        precision: fp32, or bf16 by autocast; null: bf16 on a GPU, fp32 on the CPU.
        channels_last: the layout of images and weights; null: on a GPU.
        rounds: of which the medians and quartiles are taken.
        at_least: seconds that each candidate is repeated for in a round; a step is the median of the repetitions.
        threads: of the CPU; null: torch's own choice.
        device: auto, cpu or cuda.
    """
    set_threads(threads)
    on = find_device(device)
    on_gpu = on.type == "cuda"
    replicas = Batch(batch)
    name = model or ("resnet50" if on_gpu else "resnet18")
    low = on_gpu if precision is None else precision == "bf16"
    layout = torch.channels_last if (on_gpu if channels_last is None else channels_last) else torch.contiguous_format
    configs = {norm: load([f"norm={norm}", f"model={name}"]) for norm in norms}

    images = torch.randn(replicas.total, 3, size, size).to(on, memory_format=layout)
    labels = torch.randint(NUM_CLASSES, (replicas.total,), device=on)
    autocast = torch.autocast(on.type, torch.bfloat16, enabled=low)

    def trainer(config: Config, swap: bool) -> "Trainer":
        network = bind(config.model)((3, size, size), NUM_CLASSES)
        if swap:
            convert(network, config.norm and bind(config.norm))
        network.to(on, memory_format=layout).train()
        return Trainer(network, bind(config.optim)(network, replicas.total), images, labels, autocast)

    steps: dict[tuple[str, str], Callable[[], None]] = {
        (TORCH_BN, "plain"): trainer(load([f"model={name}"]), swap=False).step
    }
    for norm, config in configs.items():
        step = trainer(config, swap=True).step
        of: dict[str, Callable[[], None]] = {
            "plain": step,
            "replicas": partial(step, replicas=replicas.replicas),
            "sequential": partial(step, passes=replicas.replicas),
        }
        steps |= {(norm, way): of[way] for way in dict.fromkeys(("plain", *ways))}

    finished = itertools.count(1)

    def done() -> None:
        progress("measuring", next(finished), rounds * len(steps))

    timed = {key: partial(seconds_a_call, step, at_least) for key, step in steps.items()}
    times = interleave(timed, rounds, done)
    return [
        {
            **{"layer": layer, "way": way, "samples": replicas.total, "model": name, "size": size, "batch": batch},
            **{"precision": "bf16" if low else "fp32", "channels_last": layout is torch.channels_last},
            "seconds": spread(times[layer, way]),
            "to_torch_bn": ratio(times[layer, way], times[TORCH_BN, "plain"]),
            "to_plain": ratio(times[layer, way], times[layer, "plain"]),
        }
        for layer, way in steps
    ]


class Trainer:
    """A network and its optimizer, which take steps on the same samples."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, autocast: Any
    ) -> None:
        self.network, self.optimizer, self.autocast = network, optimizer, autocast
        self.images, self.labels = images, labels
        self.statistics = RunningStatistics(network)

    def step(self, *, replicas: int = 1, passes: int = 1) -> None:
        """One update, as the engine makes it: so many replicas in each of so many passes."""
        set_replicas(self.network, replicas)
        for images, labels in zip(self.images.chunk(passes), self.labels.chunk(passes), strict=True):
            with self.autocast:
                loss = cross_entropy(self.network(images), labels) / passes
            loss.backward()
            self.statistics.collect()
        self.statistics.advance()
        self.optimizer.step()
        self.optimizer.zero_grad()


def tables(rows: Sequence[Row]) -> list[Table]:
    """Time, and ratios to torch's BatchNorm2d and to the plain batch."""
    if not rows:
        return []
    one = rows[0]
    layout = "channels_last" if one["channels_last"] else "contiguous"
    columns = {"layer": "normalizer", "way": f"{one['samples']} samples as", "seconds": "seconds a step"}
    columns |= {"to_torch_bn": f"/ {TORCH_BN}", "to_plain": "/ its plain batch"}
    title = f"training step of {one['model']}, {one['size']} x {one['size']}, {one['precision']}, {layout}"
    ways = {"plain": "one batch", "replicas": f"{one['batch']}, one pass", "sequential": f"{one['batch']}, passes"}
    return [plain(title, [row | {"way": ways[row["way"]]} for row in rows], columns)]
