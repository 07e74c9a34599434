"""Forward and backward of single layers over the shapes of a network."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.bench.machine import find_device, set_threads
from normlab.bench.papers import PaperSN
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.tables import Row, Table, pivot
from normlab.bench.timing import seconds_a_call
from normlab.config import Batch, load
from normlab.errors import UserError
from normlab.progress import Progress
from normlab.schema import bind

TORCH_BN, TORCH_GN, PAPER_SN, COPY = "torch BN", "torch GN", "papers' SN", "copy"
PASSES = 8  # over the activation: x twice, y; dy and x twice, dx (normlab.norm.normalize)
COPY_PASSES = 2
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class LayerShape(NamedTuple):
    """What a norm layer of a network sees of a sample, and how many layers see it."""

    C: int
    H: int
    W: int
    layers: int

    def __str__(self) -> str:
        return f"{self.C}x{self.H}x{self.W}"


class Case(NamedTuple):
    shape: LayerShape
    batch: Batch
    layout: str
    precision: str


def bench(
    progress: Progress,
    *,
    norms: Sequence[str] = ("sn", "hn", "gn", "en", "ln", "in", "bn"),
    batch: Sequence[str] = ("8x32", "8x2"),
    shapes: Sequence[str] = ("all",),
    layout: Sequence[Literal["contiguous", "channels_last"]] = ("contiguous", "channels_last"),
    precision: Sequence[Literal["fp32", "bf16", "fp16"]] = ("fp32",),
    papers: bool = True,
    model: str = "resnet50",
    rounds: Annotated[int, Ge(1)] = 5,
    at_least: Annotated[float, Ge(0)] = 0.1,
    threads: Annotated[int, Ge(1), Le(2**15)] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[Row]:
    """Forward and backward of a norm layer, against torch's layers, the papers' formulas and the memory's speed.

    Times are ratios within a round, to torch's BatchNorm2d on the same tensor, and to the time that eight passes over
    the activation take: four copies of it, measured in the same rounds. What is kept for backward is what autograd
    saves, parameters and buffers left out, in sizes of the input.

    Args:
        norms: normalizers, by their names in `normlab list norms`.
        batch: replicas x samples; normlab's layers take statistics per replica, torch's of the whole batch.
        shapes: all of the model's, large (those of at least half the largest), or some by name, as 64x56x56.
        layout: of the tensors in memory.
        precision: of the activations; bf16 and fp16 run under autocast.
        papers: also SN written as in the papers, with torch operations and autograd.
        model: the network of `normlab list models` whose norm layers give the shapes, for images of 224 x 224.
        rounds: of which the medians and quartiles are taken.
        at_least: seconds that each candidate is repeated for in a round; a call is the median of the repetitions.
        threads: of the CPU; null: torch's own choice.
        device: auto, cpu or cuda.
    """
    set_threads(threads)
    on = find_device(device)
    makers = _candidates(norms, papers)
    known = select(layer_shapes(model), shapes)
    batches = [Batch(text) for text in batch]
    cases = [Case(s, b, lay, p) for b, p, lay, s in itertools.product(batches, precision, layout, known)]

    total, finished = len(cases) * rounds * (len(makers) + 1), itertools.count(1)

    def done() -> None:
        progress("measuring", next(finished), total)

    return [row for case in cases for row in _measure(case, makers, rounds, at_least, on, done)]


def layer_shapes(model: str, size: int = 224) -> list[LayerShape]:
    """The inputs of the batch norms of a network, in its order, each once; found by running it without data.

    Raises UserError if there is no such network, or it has no 2-d batch norm.
    """
    settings = load([f"model={model}"]).model
    counts: Counter[tuple[int, int, int]] = Counter()

    def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim == 4:
            C, H, W = inputs[0].shape[1:]
            counts[C, H, W] += 1

    network = bind(settings)((3, size, size), 1000).to("meta").eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(see)
    network(torch.empty(1, 3, size, size, device="meta"))
    if not counts:
        raise UserError(f"model={model}: it has no batch norm over images")
    return [LayerShape(*shape, layers) for shape, layers in counts.items()]


def select(known: list[LayerShape], names: Sequence[str]) -> list[LayerShape]:
    """`all`, `large` (at least half the largest), or shapes by name. Raises UserError."""
    sizes = {shape: shape.C * shape.H * shape.W for shape in known}
    chosen = []
    for name in names:
        found = {
            "all": known,
            "large": [shape for shape in known if 2 * sizes[shape] >= max(sizes.values())],
        }.get(name, [shape for shape in known if str(shape) == name])
        if not found:
            raise UserError(f"shapes={name}: allowed: all, large, {', '.join(map(str, known))}")
        chosen += [shape for shape in found if shape not in chosen]
    return chosen


def _candidates(norms: Sequence[str], papers: bool) -> dict[str, Callable[[int, int], nn.Module]]:
    """Name -> what makes its layer from channels and replicas. Raises UserError."""
    makers: dict[str, Callable[[int, int], nn.Module]] = {
        TORCH_BN: lambda C, R: nn.BatchNorm2d(C),
        TORCH_GN: lambda C, R: nn.GroupNorm(32, C),
    }
    if papers:
        makers[PAPER_SN] = lambda C, R: PaperSN(C)
    for name in norms:
        settings = load([f"norm={name}"]).norm
        if settings is None:
            raise UserError(f"norms={name}: there is nothing to measure in it")
        makers[name] = partial(_ours, bind(settings))
    return makers


def _ours(make: Callable[[int], nn.Module], C: int, R: int) -> nn.Module:
    layer = make(C)
    layer.replicas = R  # type: ignore[assignment]
    return layer


def _measure(
    case: Case,
    makers: dict[str, Callable[[int, int], nn.Module]],
    rounds: int,
    at_least: float,
    device: torch.device,
    done: Callable[[], None],
) -> Iterator[Row]:
    """The rows of a case: all candidates on the same tensor."""
    shape, batch, layout, precision = case
    size = (batch.total, shape.C, shape.H, shape.W)
    x, dy = (
        torch.randn(size, device=device, dtype=_DTYPES[precision]).contiguous(memory_format=_LAYOUTS[layout])
        for _ in range(2)
    )
    x.requires_grad_()
    target = torch.empty_like(dy)
    autocast = nullcontext() if precision == "fp32" else torch.autocast(device.type, _DTYPES[precision])
    steps: dict[str, Callable[[], Any]] = {COPY: lambda: target.copy_(dy)}
    kept = {}
    for name, make in makers.items():
        layer = make(shape.C, batch.replicas).to(device).train()
        steps[name] = partial(_step, layer, x, dy, autocast)
        with autocast:
            kept[name] = kept_bytes(layer, x) / (x.numel() * x.element_size())

    times = interleave({n: partial(seconds_a_call, step, at_least) for n, step in steps.items()}, rounds, done)
    for name in makers:
        yield {
            **{"layer": name, "shape": str(shape), "layers": shape.layers, "batch": str(batch)},
            **{"layout": layout, "precision": precision, "kept": kept[name], "seconds": spread(times[name])},
            "to_torch_bn": ratio(times[name], times[TORCH_BN]),
            "of_copy_limit": ratio(times[COPY], times[name], PASSES / COPY_PASSES),
            "to_papers": ratio(times[name], times[PAPER_SN]) if PAPER_SN in times else None,
        }


def _step(layer: nn.Module, x: Tensor, dy: Tensor, autocast: Any) -> tuple[Tensor, ...]:
    with autocast:
        y = layer(x)
    return torch.autograd.grad(y, [x, *(p for p in layer.parameters() if p.requires_grad)], dy.to(y.dtype))


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for backward: each storage once, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    seen: dict[int, Tensor] = {}  # the tensors too: a freed storage's address could be used again

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            seen[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x)
    return sum(t.untyped_storage().nbytes() for t in seen.values())


def tables(rows: Sequence[Row]) -> list[Table]:
    """Ratios to torch's BatchNorm2d, of SN to the papers' formulas, to the copy limit, and what is kept."""
    index = {"batch": "batch", "precision": "precision", "layout": "layout", "shape": "C x H x W"}
    kept = {"batch": "batch", "precision": "precision", "layout": "layout"}
    return [
        pivot("time / time of torch's BatchNorm2d", [*rows, *summed(rows)], index, "layer", "to_torch_bn"),
        pivot("time / time of SN written as in the papers, with autograd", rows, index, "layer", "to_papers"),
        pivot("share of the copy limit: time of four copies / time", rows, index, "layer", "of_copy_limit"),
        pivot("kept for backward, in sizes of the input", _largest(rows, "kept", kept), kept, "layer", "kept"),
    ]


def summed(rows: Sequence[Row]) -> list[Row]:
    """For each way of measuring, the ratio of the sums over all layers of the network that have a measured shape."""
    sums: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        way = sums.setdefault((row["batch"], row["precision"], row["layout"]), {})
        way[row["layer"]] = way.get(row["layer"], 0.0) + row["layers"] * row["seconds"]["median"]
    return [
        {"batch": batch, "precision": precision, "layout": layout, "shape": "sum over layers"}
        | {"layer": layer, "to_torch_bn": seconds / of[TORCH_BN]}
        for (batch, precision, layout), of in sums.items()
        for layer, seconds in of.items()
    ]


def _largest(rows: Sequence[Row], value: str, index: Mapping[str, str]) -> list[Row]:
    """Of the rows that differ in their shapes alone, the one of the largest value."""
    found: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row[value]):
        found[(row["layer"], *(row[key] for key in index))] = row
    return [found[key] for key in dict.fromkeys((r["layer"], *(r[k] for k in index)) for r in rows)]
