"""Every file of conf/norm: builds and runs as declared, passes gradcheck, keeps only its input for backward."""

import pytest
import torch
from norm_files import NORMS, build, images, learned, randomize
from omegaconf import OmegaConf
from torch.autograd.graph import saved_tensors_hooks

from normlab import schema
from normlab.config import choices, conf_dir
from normlab.norm.layer import Normalizer
from normlab.norm.scopes import check_declaration

SHAPES = {"(N,C,L)": (4, 8, 5), "2d": (4, 8, 3, 3), "3d": (2, 8, 2, 3, 3)}
MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])


@MODES
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", NORMS)
def test_runs_forward_and_backward(name, shape, training):
    layer = build(name, 8).train(training)
    check_declaration(layer.mean_scopes, layer.var_scopes)
    x = images(*shape, dtype=torch.float32).requires_grad_()
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert all(t.grad.isfinite().all() for t in (x, *learned(layer).values()))


def test_none_takes_the_layer_out():
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "norm" / "none.yaml"))
    assert schema.check_target(node, "norm") is None


@pytest.mark.parametrize("name", NORMS)
def test_opens_with_what_it_is(name):
    assert len(choices("norm")[name]) > 10


@pytest.mark.parametrize("name", NORMS)
def test_state_dict_round_trip(name):
    saved, loaded = randomize(build(name, 8)).eval(), build(name, 8).eval()
    loaded.load_state_dict(saved.state_dict())
    x = images(2, 8, 3, 3, dtype=torch.float32)
    assert torch.equal(loaded(x), saved(x))


@pytest.mark.parametrize("name", NORMS)
def test_its_repr_names_its_scopes(name):
    layer = build(name, 8)
    assert f"8, mean={'+'.join(layer.mean_scopes)}, var={'+'.join(layer.var_scopes)}" in repr(layer)


@pytest.mark.parametrize("name", NORMS)
def test_ratios_start_equal_and_sum_to_one(name):
    layer = build(name, 8)
    for ratio, scopes in zip(layer.ratios(), (layer.mean_scopes, layer.var_scopes), strict=True):
        torch.testing.assert_close(ratio.sum(-1), torch.ones(ratio.shape[:-1]))
        if not layer.hard:
            torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / len(scopes)))
    assert layer.is_switchable == any(len(scopes) > 1 for scopes in (layer.mean_scopes, layer.var_scopes))


@MODES
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", NORMS)
def test_gradcheck(name, replicas, training):
    layer = with_distant_running_statistics(randomize(build(name, 4)).double()).train(training)
    layer.replicas = replicas
    x = images(4, 4, 2, 2).requires_grad_()
    # the parameters are arguments for gradcheck's sake: it moves them in place
    assert torch.autograd.gradcheck(lambda x, *parameters: layer(x), (x, *learned(layer).values()))


def with_distant_running_statistics(layer: Normalizer) -> Normalizer:
    """So far off that Batch Renorm's r and d, constants in its backward pass, stay at their bounds."""
    layer.calls = []
    for name, buffer in layer.named_buffers():
        if name.startswith("running_"):
            buffer.fill_(1e4)
    return layer


@MODES
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_the_input_is_all_that_is_kept_of_its_size(name, dtype, layout, training):
    layer = build(name, 8).train(training)
    x = images(4, 8, 16, 16, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    kept: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    activations = [t for t in kept if t.untyped_storage().nbytes() >= x.numel()]
    assert activations
    assert {t.untyped_storage().data_ptr() for t in activations} == {x.untyped_storage().data_ptr()}
    assert all(t.numel() <= 4 * 8 for t in kept if t.data_ptr() != x.data_ptr())  # (N, C) at most
