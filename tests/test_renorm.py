"""Batch Renormalization against its formula in float64, with r and d computed by hand."""

import pytest
import torch
from norm_files import gradients, images, learned, randomize
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.norm.renorm import BatchRenorm

C = 6


def formula(x: Tensor, layer: BatchRenorm, r_max: float, d_max: float, weight: Tensor, bias: Tensor) -> Tensor:
    """One replica, channel by channel; r and d from plain numbers, so that no gradient reaches them."""
    columns = []
    for c in range(C):
        values = x[:, c]
        mean, std = values.mean(), (values.var(correction=0) + layer.eps).sqrt()
        running_mean, running_std = (
            layer.running_mean[c].item(),
            (layer.running_var[c].item() + layer.eps) ** 0.5,
        )
        r = min(max(std.item() / running_std, 1 / r_max), r_max)
        d = min(max((mean.item() - running_mean) / running_std, -d_max), d_max)
        columns.append(weight[c] * ((values - mean) / std * r + d) + bias[c])
    return torch.stack(columns, 1)


def random_layer(**options) -> BatchRenorm:
    return randomize(BatchRenorm(C, **options)).double()


@pytest.mark.parametrize(("r_max", "d_max"), [(1.5, 0.5), (100.0, 100.0), (1.0, 0.5), (3.0, 0.0)])
@pytest.mark.parametrize("replicas", [1, 2])
def test_equals_the_formula(r_max, d_max, replicas):
    layer = random_layer(r_max=r_max, d_max=d_max)
    layer.replicas, layer.calls = replicas, []
    x = images(4, C, 3, 2)
    plain = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    torch.testing.assert_close(
        gradients(layer, x, learned(layer)),
        gradients(
            lambda x: torch.cat([formula(b, layer, r_max, d_max, **plain) for b in x.split(4 // replicas)]),
            x,
            plain,
        ),
        rtol=1e-10,
        atol=1e-10,
    )


def test_bounds_that_allow_no_correction_leave_batch_norm():
    ours, theirs = random_layer(r_max=1.0, d_max=0.0), nn.BatchNorm2d(C).double()
    theirs.load_state_dict(ours.state_dict())
    for step in range(3):
        x = images(4, C, 3, 2, seed=step)
        torch.testing.assert_close(
            gradients(ours, x, learned(ours)), gradients(theirs, x, learned(theirs)), rtol=1e-12, atol=1e-12
        )
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_warmup_counts_steps_of_plain_batch_norm():
    ours, theirs = random_layer(warmup=2), nn.BatchNorm2d(C).double()
    theirs.load_state_dict(ours.state_dict())
    same = [torch.allclose(ours(x), theirs(x)) for x in (images(4, C, 3, 2, seed=s) for s in range(4))]
    assert same == [True, True, False, False]


def test_wide_bounds_give_in_training_what_evaluation_gives():
    layer = random_layer(r_max=1e6, d_max=1e6)
    layer.calls = []
    x = images(4, C, 3, 2)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=1e-9, atol=1e-9)


def test_evaluation_and_state_dict_are_batch_norms():
    ours, theirs = BatchRenorm(C).double(), randomize(nn.BatchNorm2d(C)).double()
    ours.load_state_dict(theirs.state_dict())
    x = images(4, C, 3, 2)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_a_constant_input_keeps_only_the_shift():
    layer = randomize(BatchRenorm(C))
    found = gradients(layer, torch.full((4, C, 3, 2), 30.0), learned(layer))
    y = (layer.bias + layer.d_max * layer.weight).view(1, C, 1, 1)  # the mean lies above all bounds
    torch.testing.assert_close(found["y"], y.expand(4, C, 3, 2), rtol=0, atol=1e-3)
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize(("options", "said"), [({"r_max": 0.9}, "norm.r_max=0.9"), ({"d_max": -1}, "norm.d_max=-1")])
def test_bounds_without_meaning_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        BatchRenorm(C, **options)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_it_is_compiled_in_one_graph_with_its_warmup(training, momentum):
    """Which ends after the second of four steps, without compiling anew."""
    layer, twin = (random_layer(warmup=2, momentum=momentum).train(training) for _ in range(2))
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            x = images(4, C, 3, 2, seed=step)
            found, expected = (gradients(f, x, learned(of)) for f, of in ((compiled, layer), (twin, twin)))
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
