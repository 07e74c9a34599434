"""Derivatives of derivatives, forward mode, torch.func and torch.jit: exact, or refused in a line."""

import copy
from collections.abc import Callable

import pytest
import torch
from norm_files import NORMS, build, images, learned, randomize
from torch import Tensor, func, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from normlab.norm.layer import Normalizer

C = 4
MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
# Batch Renorm's correction is a constant to derivatives, but not to finite differences: with these bounds it is none.
OPTIONS = {"brn": {"r_max": 1, "d_max": 0, "warmup": 1}}


def layer_of(name: str, training: bool) -> Normalizer:
    layer = randomize(build(name, C, **OPTIONS.get(name, {}))).double().train(training)
    layer.replicas = 2
    layer.calls = []  # each call sees the same layer
    return layer


def function_of(layer: Normalizer) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Of x and all that is learned, and these."""
    names = list(learned(layer))

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    values = [t.detach().clone().requires_grad_() for t in learned(layer).values()]
    return run, [images(4, C, 1, 3).requires_grad_(), *values]


@MODES
@pytest.mark.parametrize("name", NORMS)
def test_second_derivatives_and_forward_mode_are_exact(name, training):
    run, inputs = function_of(layer_of(name, training))
    assert gradgradcheck(run, inputs)
    assert gradcheck(run, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize("hard", [False, True])
def test_of_the_released_code_too(hard):
    layer = randomize(build("sn", C, profile="official", hard=hard)).double()
    layer.calls = []
    run, inputs = function_of(layer)
    assert gradgradcheck(run, inputs)
    assert gradcheck(run, inputs, check_forward_ad=True)


def test_a_gradient_penalty_reaches_all_that_comes_before():
    """And is that of torch's own layers."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.Tanh(), nn.Conv2d(C, 2, 1), nn.GroupNorm(1, 2))
    ours = copy.deepcopy(theirs)
    ours[1], ours[4] = build("bn", C), build("ln", 2)
    penalties = []
    for model in (ours.double(), theirs.double()):
        x = images(3, 3, 5, 5).requires_grad_()
        (dx,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
        penalty = (dx.flatten(1).norm(dim=1) - 1).square().mean()
        penalties.append(torch.autograd.grad(penalty, [x, *(p for p in model.parameters() if p is not model[4].bias)]))
    torch.testing.assert_close(*penalties)


def test_an_input_that_is_a_function_of_another_counts_once():
    """As tied logits are, or a weight that is computed from x."""
    layer = layer_of("bn", True)

    def run(x: Tensor) -> Tensor:
        weight = x.mean((0, 2, 3))
        return func.functional_call(layer, {"weight": weight}, (x,))

    assert gradgradcheck(run, images(4, C, 1, 3).requires_grad_())


@MODES
@pytest.mark.parametrize("name", NORMS)
def test_the_transforms_of_torch_func_agree_with_autograd(name, training):
    layer = layer_of(name, training)
    x, dy = images(4, C, 2, 3), images(4, C, 2, 3, seed=1)
    leaf = x.clone().requires_grad_()
    parameters = learned(layer)
    expected = torch.autograd.grad((layer(leaf) * dy).sum(), [leaf, *parameters.values()])

    def loss(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return (func.functional_call(layer, parameters, (x,)) * dy).sum()

    dx, dparameters = func.grad(loss, argnums=(0, 1))(x, {k: p.detach() for k, p in parameters.items()})
    torch.testing.assert_close((dx, *dparameters.values()), expected)
    y, dy_along = func.jvp(layer, (x,), (dy,))
    torch.testing.assert_close(y, layer(x))
    _, pull = func.vjp(layer, x)
    torch.testing.assert_close((dy_along * dy).sum(), (pull(dy)[0] * dy).sum())
    torch.testing.assert_close(func.jacrev(layer)(x), func.jacfwd(layer)(x))
    batched = torch.stack([x, images(4, C, 2, 3, seed=3)])
    torch.testing.assert_close(func.vmap(layer)(batched), torch.stack([layer(t) for t in batched]))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", ["bn", "sn", "hn", "brn", "sn_hard", "gn"])
def test_an_ensemble_is_its_members(name, momentum):
    """Statistics of each advance with it, when they are among what is mapped."""
    members = [randomize(build(name, C, momentum=momentum), seed).double() for seed in range(3)]
    parameters, buffers = func.stack_module_state(members)
    x = images(4, C, 2, 3)

    def run(parameters, buffers):
        return func.functional_call(members[0], (parameters, buffers), (x,))

    found = func.vmap(run)(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([member(x) for member in members]))
    for key, value in buffers.items():
        torch.testing.assert_close(value, torch.stack([member.get_buffer(key) for member in members]))


@pytest.mark.parametrize("transform", [func.vmap, func.grad], ids=["vmap", "grad"])
def test_statistics_that_cannot_advance_are_refused_in_a_line(transform):
    layer = build("sn", C).double()
    x = images(2, 4, C, 2, 3)
    with pytest.raises(
        RuntimeError, match=r"functional_call\(model, \(parameters, buffers\), x\), or use model\.eval\(\)"
    ):
        transform(lambda x: layer(x.view(-1, C, 2, 3)).sum())(x)
    assert layer.num_batches_tracked == 0
    layer.eval()
    transform(lambda x: layer(x.view(-1, C, 2, 3)).sum())(x)


def test_nothing_of_a_transform_stays_in_calls():
    layer = layer_of("bn", True)
    func.vmap(layer)(images(2, 4, C, 2, 3))
    assert layer.calls == []
    layer(images(4, C, 2, 3))
    assert len(layer.calls) == 1


def test_dual_numbers_pass_through_a_layer_that_advances_its_statistics():
    layer, twin = build("sn", C).double(), build("sn", C).double()
    x, t = images(4, C, 2, 3), images(4, C, 2, 3, seed=1)
    with forward_ad.dual_level():
        y, along = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, t)))
    h = 1e-6
    twin.calls = []
    torch.testing.assert_close(along, (twin(x + h * t) - twin(x - h * t)) / (2 * h), rtol=1e-6, atol=1e-7)
    twin.calls = None
    torch.testing.assert_close(y, twin(x))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


def test_the_ordinary_backward_pass_runs_the_kernels(monkeypatch):
    """No graph of it is asked for, so none is kept."""
    monkeypatch.setattr("normlab.norm.normalize.plain", lambda *_: pytest.fail("the definition ran"))
    layer = build("sn", C).double()
    x = images(4, C, 2, 3).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["sn", "brn"])
def test_a_transform_is_compiled(name):
    layer = layer_of(name, True)
    x = images(4, C, 2, 3)
    slope = func.grad(lambda x: layer(x).pow(3).sum())
    torch.testing.assert_close(torch.compile(slope, backend="aot_eager", fullgraph=True)(x), slope(x))


def test_statistics_of_several_ranks_are_refused_in_a_line(monkeypatch):
    """Their sums over ranks have first derivatives alone."""
    monkeypatch.setattr("normlab.norm.normalize.num_ranks", lambda: 2)
    layer = build("syncbn", C).double()
    with pytest.raises(RuntimeError, match=r"synchronized statistics over several ranks .* sync=False"):
        func.grad(lambda x: layer(x).sum())(images(4, C, 2, 3))


def test_jit_trace_is_refused_in_a_line() -> None:
    """It gave kernels tensors for sizes, and the process ended."""
    layer = Normalizer(4, mean=["bn"], var=["bn"]).eval()
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot follow this layer; torch\.export\.export can"):
        torch.jit.trace(layer, torch.randn(2, 4, 5, 5))


@pytest.mark.parametrize("deep", [False, True], ids=["alone", "in a network"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # scripting itself is old
def test_jit_script_is_refused_in_a_line(deep: bool) -> None:
    layer = Normalizer(4, mean=["bn"], var=["bn"])
    said = r"^torch\.jit\.script cannot compile this layer; torch\.compile and torch\.export\.export can$"
    with pytest.raises(RuntimeError, match=said):
        torch.jit.script(nn.Sequential(nn.ReLU(), nn.Sequential(layer)) if deep else layer)
