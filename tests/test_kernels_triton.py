"""The Triton kernels against the definition in float64: on a GPU if there is one, else in Triton's interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_files import NORMS, build, choosing, gradients, images, learned, randomize

pytest.importorskip("triton", reason="Triton is on Linux alone")

import triton
import triton.language as tl

from normlab.norm import kernels, ops
from normlab.norm.algebra import Algebra
from normlab.norm.kernels import Backend, triton_backend, triton_planes
from normlab.norm.kernels.triton_activations import Plan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = Backend("Triton kernels", triton_backend.kernels())
TORCH = Backend("torch operations", {})
ACTIVATIONS = ("moments", "affine", "sums", "input_gradient")

SHAPES = {
    "one position": (3, 5, 1),
    "odd length": (2, 3, 7),
    "odd map": (4, 3, 5, 6),
    "one by one": (4, 3, 1, 1),
    "volume": (2, 5, 2, 3, 4),
    "one sample, one channel": (1, 1, 3, 3),
    "aligned": (2, 16, 8, 8),
    "last stage": (2, 96, 7, 7),
    "several iterations": (2, 5, 20, 15),
    "few large planes": (2, 2, 120, 80),
}


def laid_out(x: torch.Tensor, last: bool) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.contiguous()


def close(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, terms: int = 1) -> None:
    """Within some roundings of the type, relative to the largest of the exact values; `terms`: how many were summed."""
    assert found.shape == exact.shape
    exact = exact.to(found.device)
    tolerance = 8 * torch.finfo(dtype).eps * terms**0.5
    error = (found.double() - exact).abs().max().item() if exact.numel() else 0.0
    assert error <= tolerance * max(1.0, exact.abs().max().item() if exact.numel() else 0.0)


def check_activations(shape: tuple[int, ...], last: bool, dtype: torch.dtype, mean: float = 3.0) -> None:
    x, dy = laid_out((images(*shape) + mean).to(dtype), last), images(*shape, seed=1).to(dtype)
    acc, size = ops.accumulation_dtype(x), x[0, 0].numel()
    rows = [images(*shape[:2], seed=seed).to(acc) for seed in range(2, 6)]
    rows[0] = ops.moments(x.double())[0].to(acc)
    exact = [t.double() for t in (x, dy, *rows)]
    x, dy, *rows = (t.to(DEVICE) for t in (x, dy, *rows))
    run = TRITON.kernels
    for found, right in zip(run["moments"](x), ops.moments(exact[0]), strict=True):
        assert found.dtype == acc
        close(found, right, acc, terms=size)
    y = run["affine"](x, *rows[:3])
    assert (y.dtype, y.stride()) == (dtype, torch.empty_like(x).stride())
    close(y, ops.affine(exact[0], *exact[2:5]), dtype)
    for found, right in zip(run["sums"](dy, x, rows[0]), ops.sums(exact[1], exact[0], exact[2]), strict=True):
        close(found / size, right / size, acc, terms=size)
    dx = run["input_gradient"](dy, x, *rows)
    assert (dx.dtype, dx.stride()) == (dtype, y.stride())
    close(dx, ops.input_gradient(exact[1], exact[0], *exact[2:]), dtype)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_class(shape, last):
    check_activations(shape, last, torch.float32)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40)),
    positions=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    last=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape_layout_and_type(shape, positions, last, dtype):
    check_activations((*shape, *positions), last, dtype)


def test_the_shape_classes_reach_each_way_of_cutting():
    """One iteration, several, and chunks that a second launch joins; in both layouts."""
    plans = [Plan.of(laid_out(torch.empty(shape), last)) for shape in SHAPES.values() for last in (False, True)]
    for last in (False, True):
        assert {
            (chunks > 1, iterations > 1) for p in plans if p.last == last for chunks, iterations in [p.chunks()]
        } >= {
            (False, False),
            (False, True),
            (True, True),
        }
    assert {p.align for p in plans} >= {1, 2, 8, 16}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_the_variance_survives_a_mean_of_ten_thousand_deviations(last):
    x = laid_out((images(2, 3, 70, 70) + 1e4).float(), last)
    exact = ops.moments(x.double())
    mean_NC, var_NC = (t.cpu().double() for t in TRITON.kernels["moments"](x.to(DEVICE)))
    torch.testing.assert_close(mean_NC, exact[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(var_NC, exact[1], rtol=1e-5, atol=0)


def test_a_constant_has_no_variance_and_what_is_not_finite_stays_in_its_plane():
    x = torch.full((2, 3, 9, 9), 0.1)
    x[0, 1, 2, 3], x[1, 2, 0, 0] = float("nan"), float("inf")
    mean_NC, var_NC = TRITON.kernels["moments"](x.to(DEVICE))
    bad = torch.zeros(2, 3, dtype=torch.bool)
    bad[0, 1] = bad[1, 2] = True
    assert torch.equal(~mean_NC.isfinite().cpu(), bad)
    assert torch.equal(var_NC.isnan().cpu(), bad)
    assert (var_NC.cpu()[~bad] == 0).all()
    assert (mean_NC.cpu()[~bad] == x[0, 0, 0, 0]).all()


def test_rows_of_stride_zero_and_another_layout_of_the_gradient():
    x, dy = laid_out(images(4, 6, 5, 3), True).to(DEVICE), images(4, 6, 5, 3, seed=1).to(DEVICE)
    row_NC = images(1, 6)[0].expand(4, 6).to(DEVICE)
    for name, args in {"affine": (x, row_NC, row_NC, row_NC), "sums": (dy, x, row_NC)}.items():
        torch.testing.assert_close(TRITON.kernels[name](*args), getattr(ops, name)(*args), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "x", [images(4, 6, 5, 6)[..., ::2], images(4, 6, 5)[:0], torch.ones(2, 3, 4, dtype=torch.int32)]
)
def test_what_is_not_served_goes_to_the_definition(x):
    rows = [images(*x.shape[:2])] * 4
    arguments = {"moments": (x,), "affine": (x, *rows[:3]), "sums": (x, x, rows[0]), "input_gradient": (x, x, *rows)}
    for name, args in arguments.items():
        assert TRITON.kernels[name](*args) is NotImplemented


@triton.jit
def origin(out_ptr, sample, plane, position, num_planes, num_positions, LAST: tl.constexpr):
    at = triton_planes._origin(sample + 0, plane + 0, position + 0, num_planes, num_positions, LAST)
    tl.store(out_ptr, at)


@pytest.mark.parametrize("place", [(0, 70000, 12, 70001, 50177), (4095, 2047, 195, 2048, 784)])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_tiles_begin_where_32_bits_do_not_reach(place, last):
    """All else counts from there; on a GPU test_more_elements_than_32_bits_count moves such a tensor."""
    sample, plane, position, planes, positions = place
    plane += 0 if last else sample * planes  # planes of all samples then, and a single sample
    out = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    origin[1,](out, sample, plane, position, planes, positions, last)
    expected = (sample * positions + position) * planes + plane if last else plane * positions + position
    assert out.item() == expected
    assert expected > 2**31 or (last and sample == 0)


# ---- the algebra -----------------------------------------------------------------------------------------------------


@st.composite
def algebras(draw):
    """An algebra, and the arguments of mix in float64."""
    C = draw(st.sampled_from([1, 2, 6, 20, 33]))
    R, N = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    divisors = [g for g in range(1, C + 1) if C % g == 0]
    scopes = draw(st.lists(st.tuples(st.booleans(), st.sampled_from(divisors)), min_size=1, max_size=4, unique=True))
    some = st.lists(st.integers(0, len(scopes) - 1), min_size=1, unique=True).map(tuple)
    across, widths = zip(*scopes, strict=True)
    algebra = Algebra(across, widths, draw(some), draw(some), draw(st.booleans()), draw(st.booleans()), 1e-5)
    stored = None
    if any(across) and draw(st.booleans()):
        R, sizes = 1, [2 * width for a, width in scopes if a]
        stored = images(1, sum(sizes), 1, seed=9).flatten().abs() + 0.1
    shape = (R, C) if draw(st.booleans()) else (C,)
    weight, bias = (images(1, *shape, seed=k)[0] if draw(st.booleans()) else None for k in (1, 2))
    K = draw(st.sampled_from([g for g in divisors if g <= 3]))
    mean_logits, var_logits = (
        None if len(mixed) == 1 else images(1, *(() if K == 1 else (K,)), len(mixed), seed=k)[0]
        for k, mixed in ((3, algebra.mean), (4, algebra.var))
    )
    mean_NC, var_NC = images(R * N, C, seed=5), images(R * N, C, seed=6).abs() + 0.1
    return (mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored), algebra, R


def on_device(*tensors):
    return [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in tensors]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(algebras())
def test_any_algebra_and_its_gradients(drawn):
    arguments, algebra, R = drawn
    (mean_NC, var_NC, *parameters, stored), mixed = arguments, ops.mix(*arguments, *algebra, R)
    for found, exact in zip(TRITON.kernels["mix"](*on_device(*arguments), *algebra, R), mixed, strict=True):
        torch.testing.assert_close(found.cpu(), exact, rtol=1e-11, atol=1e-11)
    dscale, dshift = images(2, *mean_NC.shape, seed=7)
    kept = (mixed.scale_NC, mixed.mu_NC, mixed.rstd_NC, mixed.statistics)
    back = (dscale, dshift, mean_NC, var_NC, *kept, *parameters, stored is not None)
    found = TRITON.kernels["mix_backward"](*on_device(*back), *algebra, R)
    for name, gradient, exact in zip(found._fields, found, ops.mix_backward(*back, *algebra, R), strict=True):
        torch.testing.assert_close(gradient.cpu(), exact, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_means_of_ten_thousand_deviations_are_mixed_in_float32():
    C, algebra = 8, Algebra((False, False, True), (8, 1, 8), (0, 1, 2), (0, 1, 2), False, False, 1e-5)
    mean_NC, var_NC = 1e4 + images(6, C), 1 + images(6, C, seed=1).abs()
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    arguments = [t if t is None else t.float() for t in (mean_NC, var_NC, None, None, logits, logits, None)]
    exact = ops.mix(*(t if t is None else t.double() for t in arguments), *algebra, 2)
    found = TRITON.kernels["mix"](*on_device(*arguments), *algebra, 2)
    torch.testing.assert_close(found.shift_NC.cpu().double(), exact.shift_NC, rtol=1e-5, atol=2e-3)
    torch.testing.assert_close(found.rstd_NC.cpu().double(), exact.rstd_NC, rtol=1e-5, atol=0)


# ---- whole layers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(monkeypatch):
    """Puts a backend in the place of all others."""
    return lambda backend: monkeypatch.setattr(kernels, "backend", lambda device: backend)


def run_layer(name: str, shape: tuple[int, ...], last: bool, training: bool, dtype: torch.dtype) -> dict:
    layer = randomize(build(name, shape[1])).to(DEVICE, dtype).train(training)
    layer.replicas = 2
    x = laid_out(images(*shape), last).to(DEVICE, dtype)
    return gradients(layer, x, learned(layer)) | {k: v for k, v in layer.named_buffers() if v.is_floating_point()}


@pytest.mark.parametrize("name", NORMS)
def test_every_normalizer_is_as_with_torch_operations(name, serve):
    for last, training in ((False, True), (True, False)):
        serve(TORCH)
        exact = run_layer(name, (4, 12, 5, 3), last, training, torch.float64)
        serve(TRITON)
        torch.testing.assert_close(
            run_layer(name, (4, 12, 5, 3), last, training, torch.float64), exact, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("mix", ["var", "std"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e19, 3e38])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter: values overflow, as they are to
def test_what_a_hard_ratio_leaves_out_is_left_out(bad, mix, serve):
    """The squares of the last values are beyond float32, and so are differences of the very last."""
    for scopes, untouched in ((("in", "ln"), 4), (("ln", "in"), 4), ((["in", "bn"], ["in", "bn"]), 2)):
        found = []
        for backend in (TORCH, TRITON):
            serve(backend)
            layer = choosing(*scopes, mix=mix, ratio_groups=4 // untouched).to(DEVICE)
            x = images(4, 4, 3, 5, dtype=torch.float32)
            x[0] = x[0].sign() * bad
            result = gradients(layer, x.to(DEVICE), learned(layer))
            found.append([result[name][1:, :untouched] for name in ("y", "x")])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
        assert all(t.isfinite().all() for t in found[0])


def test_a_compiled_layer_is_one_graph(serve):
    serve(TRITON)
    layer = randomize(build("sn", 6)).to(DEVICE, torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = images(4, 6, 5, 3).to(DEVICE)
    expected, found = (gradients(f, x, learned(layer)) for f in (layer, compiled))
    torch.testing.assert_close(found, expected)


CASES = [
    "80 8,64,112,112 contiguous bfloat16 sn",
    "90 256,2048,7,7 last float32 hn",
    "90 2,6,5,5 contiguous float64 group_sn",
    "100 64,256,14,14 last bfloat16 sn",
]


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_compile_for_gpus_with_wide_loads(case, tmp_path):
    """Without a GPU: what the interpreter accepts need not compile. 128 bits a load, unless rows end at odd places."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_compile.py")), *case.split()],
        capture_output=True,
        text=True,
        timeout=300,
        env={"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    widest = {line.split()[0]: int(line.split()[2]) for line in done.stdout.splitlines()}
    assert {"moments", "affine", "sums", "input_gradient", "mix_columns", "gradient_columns"} <= set(widest)
    if "5,5" not in case:
        assert {widest[name] for name in ACTIVATIONS} == {128}


# ---- on a GPU --------------------------------------------------------------------------------------------------------

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_gpu
def test_the_kernels_serve_the_gpu():
    assert kernels.status()["cuda"] == TRITON.name


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [(64, 64, 112, 112), (64, 256, 14, 14), (64, 2048, 7, 7), (1, 3, 1000, 1000)])
def test_large_activations(shape, last, dtype):
    check_activations(shape, last, dtype)


@pytest.mark.gpu
@on_gpu
def test_more_elements_than_32_bits_count():
    if torch.cuda.get_device_properties(0).total_memory < 30e9:
        pytest.skip("needs 30 GB")
    x = torch.zeros(9, 4, 2**26, dtype=torch.bfloat16, device="cuda")
    x[-1, -1] = torch.randn(x.shape[2], device="cuda") + 3
    mean_NC, var_NC = TRITON.kernels["moments"](x)
    exact = ops.moments(x[-1:, -1:].double())
    torch.testing.assert_close((mean_NC[-1:, -1:].double(), var_NC[-1:, -1:].double()), exact, rtol=1e-5, atol=0)
    assert not mean_NC[:-1].any()
    y = TRITON.kernels["affine"](x, mean_NC, torch.ones_like(var_NC), torch.zeros_like(var_NC))
    torch.testing.assert_close(y[-1, -1], (x[-1, -1] - mean_NC[-1, -1]).bfloat16())


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", NORMS)
def test_a_captured_step_repeats_bit_by_bit(name):
    layer = randomize(build(name, 64)).cuda()
    layer.replicas = 2
    x, dy = (images(8, 64, 14, 14, seed=seed).float().cuda() for seed in (0, 1))
    x.requires_grad_()
    parameters = [x, *learned(layer).values()]

    def step():
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, parameters, dy)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    layer.load_state_dict(state)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
@on_gpu
def test_a_step_takes_few_launches():
    """moments, mix (2), affine; sums, mix_backward (2), input_gradient; the rest is for the running statistics."""
    layer = build("sn", 64).cuda()
    layer.calls = []
    x, dy = (images(8, 64, 56, 56, seed=seed).float().cuda() for seed in (0, 1))
    x.requires_grad_()
    torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    launched = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    print(*launched, sep="\n")
    assert len(launched) <= 10
