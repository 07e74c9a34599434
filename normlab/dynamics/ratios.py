"""Importance ratios of switchable layers: what is written to ratios.jsonl each logged moment, and its summaries.

A row describes one normalizing layer, a record one moment: {"epoch": 3, "step": 300, "layers": [row, ...]}.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normlab.dynamics.receptive_field import RF_RANGES, NormSite, range_of

Row = dict[str, Any]
MOMENTS = ("mean", "var")


def snapshot(model: nn.Module, sites: Iterable[NormSite]) -> list[Row]:
    """The ratios of every normalizing layer now, in network order, ready for JSON.

    A row has: layer (module name), index (from 1, as the papers count), kernel_size, shortcut, receptive_field,
    and mean and var, each {scope: ratio} summing to 1. With group SN (seed 002, Sec. 3.2), where ratios are
    (ratio_groups, S), these are averages over the groups, and mean_groups and var_groups hold {scope: [ratio, ...]}.
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
            "kernel_size": None if site.kernel_size is None else list(site.kernel_size),
            "shortcut": site.shortcut,
            "receptive_field": site.receptive_field,
        }
        for moment, scopes, ratio in zip(MOMENTS, (layer.mean_scopes, layer.var_scopes), layer.ratios(), strict=True):
            row |= _by_scope(moment, scopes, ratio)
        rows.append(row)
    return rows


@torch.no_grad()
def _by_scope(moment: str, scopes: Sequence[str], ratio: Tensor) -> Row:
    """ratio is (S,) or (ratio_groups, S)."""
    ratio_GS = ratio.double().reshape(-1, len(scopes))
    row: Row = {moment: dict(zip(scopes, ratio_GS.mean(0).tolist(), strict=True))}
    if ratio.ndim == 2:
        row[f"{moment}_groups"] = dict(zip(scopes, ratio_GS.T.tolist(), strict=True))
    return row


def switchable(rows: Iterable[Row]) -> bool:
    """Whether any layer chooses between scopes; with BN or GN alone every ratio is 1 and there is nothing to see."""
    return any(len(row[moment]) > 1 for row in rows for moment in MOMENTS)


def average(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """{"mean": {scope: ratio}, "var": {scope: ratio}}, over layers with equal weight; sums to 1.

    A layer without a scope counts as ratio 0 of it.
    """
    return {
        moment: {
            scope: math.fsum(row[moment].get(scope, 0.0) for row in rows) / len(rows)
            for scope in dict.fromkeys(scope for row in rows for scope in row[moment])
        }
        for moment in MOMENTS
    }


def mean_by_range(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """The average of the layers in each range of receptive fields (seed 000, Fig. 4), and of "all".

    Returns {range: {"mean": {scope: ratio}, "var": {scope: ratio}}}; ranges without a layer are left out.
    """
    members: dict[str, list[Row]] = {name: [] for name in RF_RANGES}
    for row in rows:
        members[range_of(row["receptive_field"])].append(row)
        members["all"].append(row)
    return {name: average(inside) for name, inside in members.items() if inside}


def flatten(rows: Sequence[Row]) -> dict[str, float]:
    """Flat keys for a tracker: "ratios/mean/bn/layer1.0.bn1" by layer, "ratios_rf/var/ln/49-99" by range."""
    by_layer = {
        f"ratios/{moment}/{scope}/{row['layer']}": ratio
        for row in rows
        for moment in MOMENTS
        for scope, ratio in row[moment].items()
    }
    by_range = {
        f"ratios_rf/{moment}/{scope}/{name}": ratio
        for name, moments in mean_by_range(rows).items()
        for moment, ratios in moments.items()
        for scope, ratio in ratios.items()
    }
    return by_layer | by_range


def divergence(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """D(p||q) = KL(p||q) + KL(q||p) in nats, of two {scope: ratio} (seed 000, Sec. 4.1.1).

    Infinite where one gives a scope no weight and the other does, as hard ratios do.
    """
    total = 0.0
    for scope in p.keys() | q.keys():
        a, b = p.get(scope, 0.0), q.get(scope, 0.0)
        if a != b:
            total += (a - b) * math.log(a / b) if a > 0 and b > 0 else math.inf
    return total
