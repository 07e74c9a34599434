"""The LSTM cell with norms, against torch's own cell and layers, and the formula of its authors."""

import pytest
import torch
from torch import nn

import normlab
from normlab.config import node_of
from normlab.errors import UserError
from normlab.norm.lstm import NormLSTMCell
from normlab.schema import bind

N, INPUTS, H = 5, 6, 8
NORMS = ("none", "ln", "gn", "sn_ln_gn")


def cell(norm: str, bias: bool = True, sizes: tuple[int, int] = (INPUTS, H), **settings: object) -> NormLSTMCell:
    torch.manual_seed(0)
    made = normlab.create_lstm_cell(norm, *sizes, bias, **settings).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
    return made


def inputs() -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    x, h, c = (torch.randn(N, size, generator=draw, dtype=torch.float64) for size in (INPUTS, H, H))
    return x, (h, c)


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_norm_it_is_torchs(bias):
    own, torchs = cell("none", bias), nn.LSTMCell(INPUTS, H, bias, dtype=torch.float64)
    torchs.load_state_dict(own.state_dict())  # of the same names
    x, state = inputs()
    for _ in range(3):
        expected, state = torchs(x, state), own(x, state)
        torch.testing.assert_close(state, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(own(x), torchs(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("norm", "layer"), [
    ("ln", lambda channels: nn.LayerNorm(channels)),
    ("gn", lambda channels: nn.GroupNorm(4, channels)),
])  # fmt: skip
def test_norms_are_where_their_authors_have_them(norm, layer):
    """Ba et al., Eq. 20-22, with torch's layers: apart on what comes from inputs and from the state, and on c'."""
    own = cell(norm, **({"groups": 4} if norm == "gn" else {}))
    norms = {}
    for name in ("norm_ih", "norm_hh", "norm_c"):
        there = getattr(own, name)
        norms[name] = layer(there.num_channels).double()
        norms[name].load_state_dict({"weight": there.weight, "bias": there.bias})
    x, (h, c) = inputs()
    gates = norms["norm_ih"](x @ own.weight_ih.T) + norms["norm_hh"](h @ own.weight_hh.T) + own.bias_ih + own.bias_hh
    i, f, g, o = gates[:, :H], gates[:, H : 2 * H], gates[:, 2 * H : 3 * H], gates[:, 3 * H :]
    new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    new_h = torch.sigmoid(o) * torch.tanh(norms["norm_c"](new_c))
    torch.testing.assert_close(own(x, (h, c)), (new_h, new_c), rtol=1e-12, atol=1e-12)


def test_sn_mixes_ln_and_gn_by_learned_ratios():
    """SN, Sec. 4.4: on the state, with the ratios of mean and variance apart."""
    layer, x = cell("sn_ln_gn", groups=2).norm_c, inputs()[1][0]
    (mean_ln, mean_gn), (var_ln, var_gn) = layer.ratios()
    halves = x.view(N, 2, H // 2)
    mean = mean_ln * x.mean(1, keepdim=True) + mean_gn * halves.mean(2).repeat_interleave(H // 2, 1)
    var = var_ln * x.var(1, correction=0, keepdim=True)
    var = var + var_gn * halves.var(2, correction=0).repeat_interleave(H // 2, 1)
    torch.testing.assert_close(layer(x), (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias)
    assert mean_ln.item() != pytest.approx(0.5)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients(norm):
    own = cell(norm, sizes=(2, 4), **({} if norm in ("none", "ln") else {"groups": 2}))
    x, (h, c) = inputs()
    leaves = [t[:2, :size].clone().requires_grad_() for t, size in ((x, 2), (h, 4), (c, 4))]
    names, parameters = zip(*own.named_parameters(), strict=True)

    def two_steps(x, h, c, *values):
        given = dict(zip(names, values, strict=True))
        state = torch.func.functional_call(own, given, (x, (h, c)))
        return torch.func.functional_call(own, given, (x, state))

    assert torch.autograd.gradcheck(two_steps, (*leaves, *parameters), atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_does_not_depend_on_the_others(norm):
    """In training as in evaluation, with three replicas as with one: scopes of channels alone."""
    own = cell(norm)
    x, (h, c) = inputs()
    together = own(x, (h, c))
    for k in range(N):
        alone = own(x[k : k + 1], (h[k : k + 1], c[k : k + 1]))
        torch.testing.assert_close(alone, tuple(t[k : k + 1] for t in together), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own.eval()(x, (h, c)), together, rtol=0, atol=0)


@pytest.mark.parametrize(("norm", "scope", "reason"), [
    ("in", "in", "no positions"), ("sn", "in", "no positions"), ("bn", "bn", "from step to step"),
    ("hn", "bn", "from step to step"), ("en", "en", "from step to step"), ("sn_ln_bn", "bn", "from step to step"),
])  # fmt: skip
def test_scopes_that_an_lstm_has_not(norm, scope, reason):
    with pytest.raises(UserError, match=rf"scope '{scope}\d*' cannot serve in an LSTM: .*{reason}.*; allowed: ln, gn"):
        NormLSTMCell(INPUTS, H, norm=bind(node_of("norm", norm)))


def test_what_a_cell_looks_like():
    assert repr(cell("none", False)).startswith("NormLSTMCell(\n  6, 8, bias=False")
    assert [name for name, _ in cell("ln").named_parameters() if "." not in name] == [
        "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    ]  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'sn_ln_gn'"):
        normlab.create_lstm_cell("sn_ln_gm", INPUTS, H)
