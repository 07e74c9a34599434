import json
import math

import pytest
import torch
from torch import nn

from normlab.dynamics.ratios import (
    average,
    averages_by_key,
    divergence,
    mean_by_part,
    mean_by_range,
    snapshot,
    switchable,
)
from normlab.dynamics.receptive_field import NormSite, trace
from normlab.norm.layer import Normalizer


def sites(*names: str) -> list[NormSite]:
    return [NormSite(name, (3, 3), False, 10 * (index + 1)) for index, name in enumerate(names)]


def row(receptive_field: int, mean: dict[str, float], var: dict[str, float], layer: str = "bn1") -> dict:
    return {"layer": layer, "receptive_field": receptive_field, "mean": mean, "var": var}


def test_snapshot_of_a_network():
    scopes = ("in", "ln", "bn")
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        Normalizer(4, mean=scopes, var=scopes),
        nn.Conv2d(4, 6, 1),
        Normalizer(6, mean=["bn"], var=["bn"]),
    )
    with torch.no_grad():
        model[1].mean_logits.copy_(torch.tensor([0.0, math.log(2), math.log(5)]))
    rows = snapshot(model, trace(model, (1, 8, 8), lambda module: isinstance(module, Normalizer)))
    assert [(r["layer"], r["index"], r["kernel_size"], r["shortcut"], r["receptive_field"]) for r in rows] == [
        ("1", 1, [3, 3], False, 3),
        ("3", 2, [1, 1], False, 3),
    ]
    assert rows[0]["mean"] == pytest.approx({"in": 1 / 8, "ln": 2 / 8, "bn": 5 / 8})
    assert rows[0]["var"] == pytest.approx(dict.fromkeys(scopes, 1 / 3))
    assert rows[1]["mean"] == rows[1]["var"] == {"bn": 1.0}
    assert json.loads(json.dumps(rows)) == rows
    assert switchable(rows) and not switchable(rows[1:])


def test_group_sn_is_averaged_and_kept_by_group():
    layer = Normalizer(4, mean=["in", "bn"], var=["in", "bn"], ratio_groups=2)
    with torch.no_grad():
        layer.mean_logits.copy_(torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]))
    (found,) = snapshot(nn.Sequential(layer), sites("0"))
    assert found["mean"] == pytest.approx({"in": 3 / 8, "bn": 5 / 8})
    assert found["mean_groups"]["in"] == pytest.approx([1 / 2, 1 / 4])
    assert found["var_groups"]["bn"] == pytest.approx([1 / 2, 1 / 2])


def test_layers_without_ratios_are_left_out_but_counted():
    layer = Normalizer(4, mean=["in", "bn"], var=["in", "bn"])
    rows = snapshot(nn.Sequential(nn.BatchNorm2d(4), layer), sites("0", "1"))
    assert [(r["layer"], r["index"]) for r in rows] == [("1", 2)]
    assert snapshot(nn.Sequential(nn.BatchNorm2d(4)), sites("0")) == []


def test_average_by_range():
    rows = [
        row(7, {"in": 0.2, "bn": 0.8}, {"ln": 1.0}),
        row(43, {"in": 0.6, "bn": 0.4}, {"ln": 0.5, "bn": 0.5}),
        row(427, {"bn": 1.0}, {"ln": 1.0}),
    ]
    found = mean_by_range(rows)
    assert list(found) == ["<49", ">299", "all"]
    assert found["<49"]["mean"] == pytest.approx({"in": 0.4, "bn": 0.6})
    assert found["<49"]["var"] == pytest.approx({"ln": 0.5, "bn": 0.5})  # of the one that chooses
    assert found[">299"] == {"mean": {"bn": 1.0}, "var": {"ln": 1.0}}
    assert found["all"]["mean"] == pytest.approx({"in": 0.4, "bn": 0.6})
    assert found["all"] == average(rows)
    assert mean_by_range([]) == {}


def test_averages_have_keys_and_single_layers_have_none():
    rows = [row(50, {"bn": 1.0}, {"in": 0.25, "ln": 0.75}, layer="layer1.0.bn1")]
    assert averages_by_key(rows) == {
        f"ratios_rf/{key}/{name}": value
        for name in ("49-99", "all")
        for key, value in (("mean/bn", 1.0), ("var/in", 0.25), ("var/ln", 0.75))
    }


def test_averages_of_parts():
    """Without receptive fields there are no ranges of them; layers of no part are called other."""
    of = {"backbone": 0.2, "head": 0.5, None: 1.0}
    rows = [
        {**row(7, {"bn": share}, {"in": 1.0}, layer=str(part)), "receptive_field": None, "part": part}
        for part, share in of.items()
    ]
    assert averages_by_key(rows) == pytest.approx(
        {"ratios_rf/mean/bn/all": 1.7 / 3, "ratios_rf/var/in/all": 1.0}
        | {f"ratios_part/mean/bn/{part or 'other'}": share for part, share in of.items()}
        | {f"ratios_part/var/in/{part or 'other'}": 1.0 for part in of}
    )
    assert mean_by_part([{**r, "part": "head"} for r in rows]) == mean_by_part([row(7, {}, {})]) == {}


def test_divergence():
    p, q = {"in": 0.2, "ln": 0.3, "bn": 0.5}, {"in": 0.6, "ln": 0.3, "bn": 0.1}
    kl = nn.functional.kl_div
    p_S, q_S = (torch.tensor(list(x.values()), dtype=torch.float64) for x in (p, q))
    expected = kl(q_S.log(), p_S, reduction="sum") + kl(p_S.log(), q_S, reduction="sum")
    assert divergence(p, q) == pytest.approx(expected.item())
    assert divergence(p, p) == 0.0
    assert divergence({"in": 1.0, "bn": 0.0}, {"in": 1.0}) == 0.0
    assert divergence({"in": 1.0, "bn": 0.0}, {"in": 0.0, "bn": 1.0}) == math.inf
