"""What is measured for the figures of statistics and gradients, against plain torch and autograd in float64."""

import json
import math

import pytest
import torch
from torch import nn

from normlab.dynamics import lipschitz, statistics
from normlab.dynamics.receptive_field import trace
from normlab.norm.layer import Normalizer
from normlab.norm.weight import WeightStandardization, weight_standardization

F64 = torch.float64
SIX_DIGITS = 6e-6  # relative; what is kept of statistics


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- statistics of BN and EN (HN, Sec. 4.6) --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 5)])
def test_statistics_of_the_first_replica(shape):
    x = 3 + 2 * torch.randn(shape, dtype=F64)
    row = statistics.batch_statistics(x, replicas=2)
    first = x[:3].transpose(0, 1).flatten(1)
    assert row["bn_mean"] == pytest.approx(first.mean(1).tolist(), rel=SIX_DIGITS)
    assert row["bn_std"] == pytest.approx(first.std(1, correction=0).tolist(), rel=SIX_DIGITS)
    assert row["en_mean"] == pytest.approx(first.mean().item(), rel=SIX_DIGITS)
    assert row["en_std"] == pytest.approx(first.std(correction=0).item(), rel=SIX_DIGITS)
    assert json.loads(json.dumps(row)) == row


def test_rows_of_a_training_pass():
    model = nn.Sequential(
        nn.Linear(5, 4),
        Normalizer(4, mean=["bn"], var=["bn"]),
        nn.Linear(4, 3),
        Normalizer(3, mean=["in", "ln"], var=["ln"]),
    ).double()
    sites = trace(model, (5,), lambda module: isinstance(module, Normalizer))
    x, later = torch.randn(2, 8, 5, dtype=F64)
    with statistics.observed(model, sites) as rows:
        model.eval()(x)
        assert rows == []
        out = model.train()[:3](x)
        rows.clear()
        model(x)
        model(later)  # a second pass of the step, which does not count
        expected = model[0](x)
        assert [(row["layer"], row["index"]) for row in rows] == [("1", 1), ("3", 2)]
        assert rows[0]["bn_mean"] == pytest.approx(expected.mean(0).tolist(), rel=SIX_DIGITS)
        assert rows[1]["en_std"] == pytest.approx(out.std(correction=0).item(), rel=SIX_DIGITS)
        rows.clear()
        model(later)
        assert rows[0]["bn_mean"] == pytest.approx(model[0](later).mean(0).tolist(), rel=SIX_DIGITS)
        rows.clear()
    model(x)
    assert rows == []


# ---- gradients of standardized weights (WS, Eqs. 11 to 15) -----------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (4, 7), (5, 2, 3)])
def test_what_is_left_over_is_the_gradient_of_the_stored_weight(shape):
    """sigma^2 ||grad_W||^2 by autograd through the standardization is ||g||^2 less both terms, filter by filter."""
    stored = (1 + 3 * torch.randn(shape, dtype=F64)).requires_grad_()
    standardized = WeightStandardization(stored, center=True, divide=True, affine=False, eps=0.0)(stored)
    standardized.retain_grad()
    (standardized.sin() * torch.randn(shape, dtype=F64) + standardized.square()).sum().backward()
    terms = lipschitz.terms(standardized.detach(), standardized.grad)
    var_O = stored.detach().flatten(1).var(1, correction=0)
    torch.testing.assert_close(terms["remaining"], var_O * stored.grad.flatten(1).square().sum(1))
    assert min(terms["division"].max(), terms["centring"].max()) > 1e-3

    alone = terms["division"] + terms["remaining"]  # Eq. 15: without centring, Eq. 9 takes nothing
    centred_OI = (standardized.grad.flatten(1) - standardized.grad.flatten(1).mean(1, keepdim=True)).square().sum(1)
    torch.testing.assert_close(alone, centred_OI)


def test_shares_sum_to_one_and_leave_out_dead_filters():
    standardized, gradient = torch.randn(2, 4, 9, dtype=F64)
    gradient[2] = 0
    found = lipschitz.shares(standardized, gradient)
    assert sum(found.values()) == pytest.approx(1)
    used = [0, 1, 3]
    expected = [(gradient[o].sum() ** 2 / 9 / gradient[o].square().sum()).item() for o in used]
    assert found["centring"] == pytest.approx(sum(expected) / 3)


def test_rows_of_a_backward_pass():
    """Against a plain convolution whose weight is the standardized one, as a leaf."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)
    ).double()
    for conv, settings in ((0, {}), (2, {}), (3, {"affine": True}), (4, {"divide": False})):
        weight_standardization(model[conv], **settings)
    x, later = torch.randn(2, 5, 2, 8, 8, dtype=F64)

    def loss_of(images):
        return model(images).square().sum()

    with lipschitz.observed(model) as found:
        loss_of(x).backward()
        loss_of(later).backward()  # a second pass of the step
        with torch.no_grad():
            model(x)
    rows = lipschitz.rows(found)
    assert [(row["layer"], row["index"]) for row in rows] == [("0", 1), ("2", 2)]
    for row in rows:
        leaf = model[int(row["layer"])].weight.detach().requires_grad_()
        for out in (x, later):
            for name, module in model.named_children():
                same = name == row["layer"]
                out = nn.functional.conv2d(out, leaf, module.bias) if same else module(out)
            out.square().sum().backward()
        expected = lipschitz.shares(leaf.detach(), leaf.grad)
        assert {name: row[name] for name in expected} == pytest.approx(expected)
    seen = found["0"]
    for gradient_OI in (torch.zeros_like(seen.gradient_OI), torch.full_like(seen.gradient_OI, math.inf)):
        assert lipschitz.rows({"0": lipschitz.Observed(1, seen.standardized_OI, gradient_OI)}) == []
