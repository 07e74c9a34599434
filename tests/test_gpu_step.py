"""What a training step asks of a GPU, seen without one: its launches, and that nothing waits for the device.

On a GPU torch.cuda.set_sync_debug_mode("error") says the same of a whole program (docs/gpu.md).
"""

from functools import wraps

import numpy as np
import pytest
import torch
from norm_files import NORMS, build, images, learned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normlab.config import load
from normlab.engine.phase import PhaseTraining
from normlab.launch.life import train
from normlab.norm import kernels, ops
from normlab.norm.kernels import Backend
from normlab.runs.folder import RunFolder

ONE_LAUNCH_OF_THE_ALGEBRA = {"bn", "bn_frozen", "brn", "in", "syncbn"}
TWO_OF_ITS_BACKWARD_ALONE = {"sn_in_bn"}  # nothing is pooled over channels, but there are ratios to learn


@pytest.fixture
def launched(monkeypatch):
    """The Triton kernels in the place of all others, and the names of those that are launched; none of them runs."""
    pytest.importorskip("triton", reason="Triton is on Linux alone")
    if torch.cuda.is_available():
        pytest.skip("tests/test_kernels_triton.py counts on the GPU")
    from triton.runtime import interpreter

    from normlab.norm.kernels import triton_backend

    names: list[str] = []
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda self, *_, **__: names.append(self.fn.__name__))
    monkeypatch.setattr(kernels, "backend", lambda device: Backend("Triton kernels", triton_backend.kernels()))
    return names


@pytest.mark.parametrize("name", [name for name in NORMS if name not in ("bn_mean", "bn_std")])  # in parts
def test_a_layer_takes_four_launches_forward_and_four_backward(name, launched):
    """Of each: sums over the activation, the algebra in one or two, the map to y or dx.

    Two, since what pools over channels needs whole rows, and what pools over samples whole columns: between them all
    programs of the first have to be done. Too few tiles to fill a GPU are cut into chunks, whose sums one more joins.
    """
    layer = build(name, 64)
    layer.calls = []  # as in a run, whose running statistics advance for all layers together
    forward = 3 if name in ONE_LAUNCH_OF_THE_ALGEBRA | TWO_OF_ITS_BACKWARD_ALONE else 4
    backward = 3 if name in ONE_LAUNCH_OF_THE_ALGEBRA else 4
    for size, joins in ((14, 0), (56, 1)):
        x, dy = (images(8, 64, size, size, seed=seed).float() for seed in (0, 1))
        launched.clear()
        y = layer(x.requires_grad_())
        assert len(launched) == forward + joins * (name != "bn_frozen") - (name == "bn_frozen"), launched
        launched.clear()
        torch.autograd.grad(y, [x, *learned(layer).values()], dy)
        assert len(launched) == backward + joins, launched


def test_a_layer_gives_the_device_no_other_work(launched):
    layer = build("sn", 64)
    layer.calls = []
    x, dy = (images(8, 64, 14, 14, seed=seed).float() for seed in (0, 1))
    x.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    names = {event.name for event in profile.events() if event.name.startswith("aten::")}
    allocate = {"empty", "empty_like", "empty_strided", "new_empty"}
    assert names <= {f"aten::{name}" for name in allocate | {"detach", "view", "as_strided", "select", "slice"}}


# ---- nothing waits ---------------------------------------------------------------------------------------------------


class NoAnswer(TorchDispatchMode):
    """Refuses what needs the values of a tensor on the host: item(), nonzero(), equal(), masks as indices, ..."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asks = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        assert not asks, f"{func} waits for the device"
        return func(*args, **kwargs or {})


def test_what_waits_is_noticed():
    for ask in (Tensor.item, torch.nonzero, lambda t: t[t > 0], lambda t: bool(t.sum()), lambda t: torch.equal(t, t)):
        with pytest.raises(AssertionError, match="waits for the device"), NoAnswer():
            ask(torch.ones(1))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("collected", [True, False])
def test_a_layer_waits_for_nothing(name, collected):
    """On a device without values, which can answer nothing; kernels there are shapes alone."""
    layer = build(name, 12).to("meta")
    layer.replicas = 2
    layer.calls = [] if collected else None
    x = torch.empty(4, 12, 5, 3, device="meta", requires_grad=True)
    y = layer(x)
    torch.autograd.grad(y, [x, *learned(layer).values()], torch.empty_like(y))
    layer.eval()(x)


@pytest.mark.parametrize("norm", ["sn", "brn", "syncbn"])
def test_an_update_of_a_run_waits_for_nothing(norm, tmp_path, monkeypatch):
    """Forward, backward, statistics and the optimizer; records are read every log_every updates."""
    calls = []

    def without_answers(step):
        @wraps(step)
        def run(*args):
            calls.append(step.__name__)
            with NoAnswer():
                return step(*args)

        return run

    for name in ("_backward", "_step"):
        monkeypatch.setattr(PhaseTraining, name, without_answers(getattr(PhaseTraining, name)))
    small = ("batch=4x4", "epochs=1", "model.width=4", "data.fraction=0.1", "tracker=none")
    settings = load([*small, f"norm={norm}", f"out={tmp_path}"])
    folder = RunFolder.of(settings)
    folder.create(settings)
    train(folder)
    assert calls == ["_backward", "_step"] * 8


# ---- beyond 2^31 elements --------------------------------------------------------------------------------------------


def test_the_kernels_of_the_cpu_count_in_64_bits():
    """Zeros that nobody wrote take no memory. (Those of Triton: tests/test_kernels_triton.py.)"""
    run = kernels.backend(torch.device("cpu")).kernels.get("moments")
    if run is None:
        pytest.skip(kernels.status()["cpu"])
    x = torch.from_numpy(np.zeros((33, 1, 2**26), np.int16)).view(torch.bfloat16)
    x[-1, -1, :1000] = 8.0
    mean_NC, var_NC = run(x)
    exact = ops.moments(x[-1:, -1:].double())
    torch.testing.assert_close((mean_NC[-1:, -1:].double(), var_NC[-1:, -1:].double()), exact, rtol=1e-5, atol=0)
    assert not mean_NC[:-1].any() and not var_NC[:-1].any()
