"""Statistics of BN and EN at the input of every normalizing layer: what is written to statistics.jsonl each step.

A record is {"step": 300, "epoch": 3.0, "layers": [row, ...]}; a row has layer (module name), index (from 1), bn_mean
and bn_std, a number for each channel, and en_mean and en_std, one for all channels together (HN, Sec. 4.6).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normlab.dynamics.receptive_field import NormSite
from normlab.norm.normalize import moments
from normlab.norm.pooling import statistics

Row = dict[str, Any]


@torch.no_grad()
def batch_statistics(x: Tensor, replicas: int = 1) -> Row:
    """Of the first replica of x (R*N, C, ...): bn_mean, bn_std (C numbers) and en_mean, en_std, ready for JSON.

    Standard deviations are biased, without an epsilon. EN has all channels in one group. Six digits are kept: a record
    of ResNet50, with its 26,560 channels, has 0.5 MB.
    """
    mean_NC, var_NC = moments(x[: len(x) // replicas].reshape(len(x) // replicas, x.shape[1], -1))
    row: Row = {}
    for name, width in (("bn", x.shape[1]), ("en", 1)):
        mean, var = statistics(mean_NC[None], var_NC[None], across=True, width=width)
        values = {"mean": mean.double().flatten(), "std": var.double().flatten().sqrt()}
        numbers = {what: [float(f"{v:.6g}") for v in t.tolist()] for what, t in values.items()}
        row |= {f"{name}_{what}": v if name == "bn" else v[0] for what, v in numbers.items()}
    return row


@contextmanager
def observed(model: nn.Module, sites: Iterable[NormSite]) -> Iterator[list[Row]]:
    """While it lasts, training passes leave rows in the list: one for each layer, in network order.

    Rows are of the first replica, and where a step has several passes (replicas_per_pass, accumulate), of the first.
    """
    rows: list[Row] = []
    names = [site.name for site in sites]

    def watch(index: int, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training and all(row["layer"] != name for row in rows):
                replicas = getattr(module, "replicas", 1)
                rows.append({"layer": name, "index": index} | batch_statistics(inputs[0], replicas))

        return model.get_submodule(name).register_forward_pre_hook(look)

    handles = [watch(index, name) for index, name in enumerate(names, start=1)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
