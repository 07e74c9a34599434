"""Importance ratios of switchable layers: what is written to ratios.jsonl each logged moment, and its summaries.

A row describes one normalizing layer, a record one moment: {"epoch": 3, "step": 300, "layers": [row, ...]}. Figures are
drawn from such records, without torch.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from normlab.dynamics.receptive_field import NormSite

Row = dict[str, Any]
MOMENTS = ("mean", "var")

# Distinct, Figs. 4 and 7. "<49" excludes 49 and ">299" excludes 299, so both bounds belong to the middle ranges; 99 and
# 199, on which no layer of ResNet50 falls, go to the lower one.
_MIDDLE_RANGES = {"49-99": 99, "99-199": 199, "199-299": 299}
RF_RANGES = ("<49", *_MIDDLE_RANGES, ">299", "all")


def range_of(receptive_field: int) -> str:
    """The name in `RF_RANGES` (other than "all") of the range in which a receptive field in pixels falls."""
    if receptive_field < 49:
        return "<49"
    return next((name for name, last in _MIDDLE_RANGES.items() if receptive_field <= last), ">299")


def snapshot(
    model: "nn.Module", sites: "Iterable[NormSite]", part_of: Callable[[str], str | None] = lambda name: None
) -> list[Row]:
    """The ratios of every normalizing layer now, in network order, ready for JSON.

    A row has: layer (module name), index (from 1, as the papers count), part (of the model, by `part_of` the name),
    kernel_size, shortcut, receptive_field (or None), and mean and var, each {scope: ratio} summing to 1. With group SN
    (SN-TPAMI, Sec. 3.2), where ratios are (ratio_groups, S), these are averages over the groups, and mean_groups and
    var_groups hold {scope: [ratio, ...]}.
    Sites whose module has no `ratios()`, such as torch's own layers, are left out; the others keep their index.
    """
    rows = []
    for index, site in enumerate(sites, start=1):
        layer: Any = model.get_submodule(site.name)
        if not hasattr(layer, "ratios"):
            continue
        row: Row = {
            "layer": site.name,
            "index": index,
            "part": part_of(site.name),
            "kernel_size": None if site.kernel_size is None else list(site.kernel_size),
            "shortcut": site.shortcut,
            "receptive_field": site.receptive_field,
        }
        rows.append(row | of_layer(layer))
    return rows


def of_layer(layer: Any) -> Row:
    """Mean and var of a normalizing layer now, and those of its groups, as a row has them."""
    row: Row = {}
    for moment, scopes, ratio in zip(MOMENTS, (layer.mean_scopes, layer.var_scopes), layer.ratios(), strict=True):
        row |= _by_scope(moment, scopes, ratio)
    return row


def _by_scope(moment: str, scopes: Sequence[str], ratio: "Tensor") -> Row:
    """ratio is (S,) or (ratio_groups, S)."""
    ratio_GS = ratio.detach().double().reshape(-1, len(scopes))
    row: Row = {moment: dict(zip(scopes, ratio_GS.mean(0).tolist(), strict=True))}
    if ratio.ndim == 2:
        row[f"{moment}_groups"] = dict(zip(scopes, ratio_GS.T.tolist(), strict=True))
    return row


def switchable(rows: Iterable[Row]) -> bool:
    """Whether any layer chooses between scopes; with BN or GN alone every ratio is 1 and there is nothing to see."""
    return any(len(row[moment]) > 1 for row in rows for moment in MOMENTS)


def average(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """{"mean": {scope: ratio}, "var": {scope: ratio}}, over layers with equal weight; sums to 1.

    A layer without a scope counts as ratio 0 of it. Layers that choose nothing, as those of a frozen BN beside SN, do
    not count where others choose.
    """
    found = {}
    for moment in MOMENTS:
        choosing = [row[moment] for row in rows if len(row[moment]) > 1] or [row[moment] for row in rows]
        scopes = dict.fromkeys(scope for ratio in choosing for scope in ratio)
        found[moment] = {s: math.fsum(ratio.get(s, 0.0) for ratio in choosing) / len(choosing) for s in scopes}
    return found


def mean_by_range(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """The average of the layers in each range of receptive fields (Distinct, Fig. 4), and of "all".

    Returns {range: {"mean": {scope: ratio}, "var": {scope: ratio}}}; ranges without a layer are left out. A layer
    without a receptive field counts in "all" alone.
    """
    members: dict[str, list[Row]] = {name: [] for name in RF_RANGES}
    for row in rows:
        if row["receptive_field"] is not None:
            members[range_of(row["receptive_field"])].append(row)
        members["all"].append(row)
    return {name: average(inside) for name, inside in members.items() if inside}


def moved(moments: Sequence[Sequence[Row]]) -> dict[str, float]:
    """{"mean": length, "var": length}: the ways of a run's ratios from one recorded moment to the next, added up.

    A way is half the sum of absolute changes, so that from one scope alone to another it is 1; averaged over layers.
    Ratios that go straight to their ends have come a shorter way than those that go to and fro.
    """
    found = {}
    for moment in MOMENTS:
        ways = [
            math.fsum(abs(b[moment].get(s, 0.0) - a[moment].get(s, 0.0)) for s in {**a[moment], **b[moment]}) / 2
            for before, after in itertools.pairwise(moments)
            for a, b in zip(before, after, strict=True)
        ]
        found[moment] = math.fsum(ways) / len(moments[0]) if moments and moments[0] else 0.0
    return found


def by_part(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The layers of each part of the model, in the order in which the parts begin; "other": those of no part.

    Older records know of no parts: all their layers are of one.
    """
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.get("part") or "other", []).append(row)
    return members


def mean_by_part(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """The average of the layers in each part of the model: {part: {"mean": {scope: ratio}, "var": ...}}.

    Empty where all layers are of one part, whose average is that of the network.
    """
    members = by_part(rows)
    return {name: average(inside) for name, inside in members.items()} if len(members) > 1 else {}


def mean_by_block(rows: Iterable[Row], depth: int) -> dict[str, dict[str, dict[str, float]]]:
    """The average of the layers in each block (SN, Fig. 3): {block: {"mean": {scope: ratio}, "var": ...}}.

    A block is the first `depth` words of a layer's name, as torchvision gives them: layer1 of layer1.0.bn1 at 1, its
    residual block layer1.0 at 2.
    """
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(".".join(row["layer"].split(".")[:depth]), []).append(row)
    return {name: average(inside) for name, inside in members.items()}


def choice(ratio: Mapping[str, float]) -> str:
    """The scope of the largest ratio, which a hard ratio keeps alone; the first declared of equal ones."""
    return max(ratio, key=lambda scope: ratio[scope])


def num_disagreeing(rows: Iterable[Row]) -> int:
    """Layers whose mean and variance choose different scopes (Distinct, Fig. 2)."""
    return sum(choice(row["mean"]) != choice(row["var"]) for row in rows)


def averages_by_key(rows: Sequence[Row]) -> dict[str, float]:
    """The averages as a tracker calls them: "ratios_rf/var/ln/49-99" by range of receptive fields, and "all", and
    "ratios_part/mean/bn/head" by part of the model. Those of each layer would be hundreds.
    """
    averages = {"part": mean_by_part(rows), "rf": mean_by_range(rows)}
    return {
        f"ratios_{kind}/{moment}/{scope}/{name}": ratio
        for kind, members in averages.items()
        for name, moments in members.items()
        for moment, ratios in moments.items()
        for scope, ratio in ratios.items()
    }


def divergence(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """D(p||q) = KL(p||q) + KL(q||p) in nats, of two {scope: ratio} (Distinct, Sec. 4.1.1).

    Infinite where one gives a scope no weight and the other does, as hard ratios do.
    """
    total = 0.0
    for scope in p.keys() | q.keys():
        a, b = p.get(scope, 0.0), q.get(scope, 0.0)
        if a != b:
            total += (a - b) * math.log(a / b) if a > 0 and b > 0 else math.inf
    return total


def divergence_by_range(pairs: Iterable[tuple[int | None, float]]) -> dict[str, float]:
    """The average divergence of the layers in each range of receptive fields, and of "all" (Distinct, Figs. 3c and 5).

    pairs are (receptive field or None, divergence) of each layer; ranges without a layer are left out.
    """
    members: dict[str, list[float]] = {name: [] for name in RF_RANGES}
    for receptive_field, value in pairs:
        if receptive_field is not None:
            members[range_of(receptive_field)].append(value)
        members["all"].append(value)
    return {name: math.fsum(values) / len(values) for name, values in members.items() if values}
