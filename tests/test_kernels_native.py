"""The C++ kernels against the definition of each operation in float64, on every shape class, layout and type."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_files import NORMS, build
from torch.utils._python_dispatch import TorchDispatchMode

from normlab.bench.norm import kept_bytes
from normlab.norm import kernels, ops
from normlab.norm.algebra import Algebra
from normlab.norm.layer import Normalizer

KERNELS = kernels.backend(torch.device("cpu")).kernels
if not KERNELS:
    pytest.skip(kernels.status()["cpu"], allow_module_level=True)

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = st.sampled_from(list(TOLERANCE))
SHAPES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 70)),
    st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
    st.sampled_from([(1, 3, 150, 150), (2, 129, 33, 17), (1, 2, 20000), (1, 600, 9, 9), (2, 5, 1, 1)]),
)
NAMES = ("moments", "affine", "sums", "input_gradient")


def draw(shape, seed, dtype=torch.float64, offset=3.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset).to(dtype)


def lay_out(x, last):
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def arguments(shape, dtype, last, offset=3.0):
    """Those of each activation operation, the (N, C) tensors as views of a single row for the anchor."""
    x, dy = (lay_out(draw(shape, seed, dtype, offset), last) for seed in (0, 1))
    wide = ops.accumulation_dtype(x)
    anchor, *rows = (draw(shape[:2], seed, wide) for seed in range(2, 6))
    anchor = (anchor[:1] + offset - 3).expand(shape[:2])
    return {
        "moments": (x,),
        "affine": (x, anchor, *rows[:2]),
        "sums": (dy, x, anchor),
        "input_gradient": (dy, x, anchor, *rows),
    }


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tuple_of(result):
    return result if isinstance(result, tuple) else (result,)


def assert_near(found, exact, tolerance, what=""):
    scale = exact.abs().max() if exact.numel() else 0
    assert ((found.double() - exact).abs() <= tolerance * (scale + 1)).all(), what


@settings(max_examples=80, deadline=None)
@given(SHAPES, DTYPES, st.booleans())
def test_activations_as_defined(shape, dtype, last):
    for name, args in arguments(shape, dtype, last).items():
        exact = tuple_of(getattr(ops, name)(*(t.double() for t in args)))
        for found, expected in zip(tuple_of(KERNELS[name](*args)), exact, strict=True):
            assert_near(found, expected, TOLERANCE[dtype], name)
            if found.ndim > 2:
                assert found.dtype == dtype
                assert found.stride() == torch.empty_like(args[0]).stride()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 33), (2, 40, 60, 60)])
def test_a_mean_of_ten_thousand_deviations(shape, last):
    x = arguments(shape, torch.float32, last, offset=1e4)["moments"][0]
    mean, var = KERNELS["moments"](x)
    exact_mean, exact_var = ops.moments(x.double())
    assert (mean - exact_mean).abs().max() <= 1e4 * torch.finfo(torch.float32).eps  # its own rounding, twice
    assert (var / exact_var - 1).abs().max() <= 1e-5


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_what_is_not_finite_stays_where_the_definition_has_it(dtype, bad, last):
    args = arguments((3, 20, 70, 70), dtype, last)
    args["moments"][0][1, 7, 2, 5] = bad
    for name in NAMES:
        pairs = zip(tuple_of(KERNELS[name](*args[name])), tuple_of(getattr(ops, name)(*args[name])), strict=True)
        for found, expected in pairs:
            assert torch.equal(found.isnan(), expected.isnan())
            assert torch.equal(found.isinf(), expected.isinf())


def test_narrow_types_round_as_torch_does():
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        x = values.view(dtype).view(1, 1, -1)
        anchor, scale = torch.zeros(1, 1), torch.full((1, 1), 1.001)
        found, expected = KERNELS["affine"](x, anchor, scale, anchor), ops.affine(x, anchor, scale, anchor)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_other_layouts_and_nothing_are_left_to_the_definition():
    x = draw((2, 4, 6, 6), 0)
    for other in (x.transpose(0, 1), x[..., ::2], x[:0], x.to(torch.int64)):
        assert KERNELS["moments"](other) is NotImplemented


def test_a_gradient_of_another_layout():
    args = arguments((2, 5, 4, 3), torch.float32, True)
    dy, *rest = args["input_gradient"]
    for other in (dy.contiguous(), dy[:1].expand_as(dy)):
        expected = ops.input_gradient(other.double(), *(t.double() for t in rest))
        assert_near(KERNELS["input_gradient"](other, *rest), expected, 1e-5)


# ---- the algebra ----------------------------------------------------------------------------------------------------


@st.composite
def algebras(draw_, C=12):
    scopes = st.tuples(st.booleans(), st.sampled_from([1, 3, C]))
    pairs = draw_(st.lists(scopes, min_size=1, max_size=4, unique=True))
    numbers = st.lists(st.sampled_from(range(len(pairs))), min_size=1, max_size=len(pairs), unique=True)
    across, widths = zip(*pairs, strict=True)
    mean, var = draw_(numbers), draw_(numbers)
    return Algebra(across, widths, tuple(mean), tuple(var), draw_(st.booleans()), draw_(st.booleans()), 1e-3)


@settings(max_examples=80, deadline=None)
@given(
    *(algebras(), st.sampled_from([1, 2, 3]), st.integers(1, 4), st.sampled_from([1, 2, 4])),
    *(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.float64])),
)
def test_the_algebra_as_defined(algebra, replicas, N, groups, affine, own_rows, stored, dtype):
    rows, C = replicas * N, 12
    shape_RC = (replicas, C) if own_rows else (C,)
    weight, bias = (draw(shape_RC, seed, dtype) if affine else None for seed in (0, 1))
    logits = [
        None if len(k) == 1 else draw((len(k),) if groups == 1 else (groups, len(k)), seed, dtype)
        for seed, k in ((2, algebra.mean), (3, algebra.var))
    ]
    size = sum(2 * width for across, width in zip(algebra.across, algebra.widths, strict=True) if across)
    own = draw((size,), 4, dtype).abs() if stored and size else None
    mean, var, dscale, dshift = (draw((rows, C), seed, dtype) for seed in range(5, 9))
    var = var.abs()
    exact = [None if t is None else t.double() for t in (mean, var, weight, bias, *logits, own)]
    tolerance = 30 * TOLERANCE[dtype]
    found = KERNELS["mix"](mean, var, weight, bias, *logits, own, *algebra, replicas)
    expected = ops.mix(*exact, *algebra, replicas)
    for name, a, b in zip(expected._fields, found, expected, strict=True):
        assert a.shape == b.shape
        assert_near(a, b, tolerance, name)
    scale, _, mu, rstd, statistics = expected
    saved = (mean, var, *(t.to(dtype) for t in (scale, mu, rstd, statistics)), weight, bias, *logits)
    found = KERNELS["mix_backward"](dscale, dshift, *saved, own is not None, *algebra, replicas)
    wide = [None if t is None else t.double() for t in (dscale, dshift, *saved)]
    expected = ops.mix_backward(*wide, own is not None, *algebra, replicas)
    for name, a, b in zip(expected._fields, found, expected, strict=True):
        assert a.shape == b.shape
        assert_near(a, b, tolerance, name)


# ---- whole passes ---------------------------------------------------------------------------------------------------

SN = Algebra((False, False, True), (12, 1, 12), (0, 1, 2), (0, 1, 2), False, False, 1e-3)


def passes(x, dy, parameters, stored, algebra, replicas):
    """The passes as single calls, and as the operations they are made of: results of both, in the same order."""
    y, mean, var, statistics = KERNELS["forward"](x, None, None, *parameters, stored, algebra, replicas)
    back = KERNELS["backward"](dy, x, mean, var, *parameters, stored, algebra, replicas, True)
    whole = (y, mean, var, statistics, *back)
    mean, var = KERNELS["moments"](x)
    scale, shift, mu, rstd, statistics = KERNELS["mix"](mean, var, *parameters, stored, *algebra, replicas)
    saved = (mean, var, scale, mu, rstd, statistics, *parameters, stored is not None)
    first, second = KERNELS["sums"](dy, x, mean)
    dmean, dvar, *gradients = KERNELS["mix_backward"](second, first, *saved, *algebra, replicas)
    dx = KERNELS["input_gradient"](dy, x, mean, scale, dmean, dvar)
    return whole, (KERNELS["affine"](x, mean, scale, shift), mean, var, statistics, dx, *gradients)


@pytest.mark.parametrize("with_parameters", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("last", [False, True])
def test_a_pass_is_its_operations_bit_by_bit_for_any_number_of_threads(threads, last, dtype, with_parameters):
    x, dy = (lay_out(draw((12, 12, 31, 17), seed, dtype), last) for seed in (0, 1))
    wide = ops.accumulation_dtype(x)
    shapes = ((12,), (12,), (3,), (3,))
    parameters = [draw(shape, seed, wide) if with_parameters else None for seed, shape in enumerate(shapes)]
    algebra = SN if with_parameters else Algebra((True,), (12,), (0,), (0,), False, False, 1e-3)
    for replicas in (1, 3, 12):
        results = []
        for count in (1, 2, 5):
            threads(count)
            results += passes(x, dy, parameters, None, algebra, replicas)
        for other in results[1:]:
            for found, expected in zip(other, results[0], strict=True):
                if found is None or expected is None or not expected.numel():
                    continue
                assert torch.equal(found, expected)


def test_a_pass_takes_the_moments_and_the_stored_statistics_it_is_given():
    x = draw((4, 12, 5, 3), 0)
    row, stored = draw((1, 12), 1).expand(4, 12), torch.cat([draw((12,), 2), draw((12,), 3).abs()])
    algebra = Algebra((True,), (12,), (0,), (0,), False, False, 1e-3)
    y, mean, *_ = KERNELS["forward"](x, row, row, None, None, None, None, stored, algebra, 1)
    assert torch.equal(mean, row)
    expected = torch.nn.functional.batch_norm(x, stored[:12], stored[12:], eps=1e-3)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 64, 7, 7), (512, 64)])
@pytest.mark.parametrize(
    "name", [name for name in NORMS if name not in ("in", "brn", "bn_frozen", "bn_mean", "bn_std")]
)
def test_little_beside_x_is_kept_for_the_backward_pass(name, shape, dtype):
    """The moments, float32: 2 values a map. Those of a single position are not kept: x has them.

    (brn, bn_mean, bn_std and bn_frozen take no moments here: the first three have them before, the last is given
    stored ones.)
    """
    layer = build(name, 64)
    layer.replicas = 4
    x = draw(shape, 0, dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        kept = kept_bytes(layer, x)
    moments = 2 * 4 * shape[0] * shape[1] if len(shape) == 4 else 0
    assert kept <= x.numel() * x.element_size() + moments


def test_an_average_advances_as_defined():
    measured = draw((3, 7), 0, torch.float32)
    running = draw((7,), 1, torch.float32)
    expected = running.double() * 0.7 + measured.double().mean(0) * (10 / 9) * 0.3
    ops.advance(running, measured, 0.3, 10 / 9)
    torch.testing.assert_close(running.double(), expected, rtol=1e-6, atol=1e-6)
    assert KERNELS["advance"](running.half(), measured, 0.3, 1.0) is NotImplemented
    narrow = running.half()
    ops.advance(narrow, measured, 0.0, 1.0)
    assert torch.equal(narrow, running.half())


def test_what_watches_torch_sees_the_operators_and_the_same_bits():
    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(str(func))
            return func(*args, **kwargs or {})

    x = draw((4, 12, 5, 3), 0, torch.float32).requires_grad_()
    results, seen = [], Seen()
    for watch in (contextlib.nullcontext(), seen):
        layer = Normalizer(12, mean=["in", "ln", "bn"], var=["in", "ln", "bn"])
        layer.replicas = 2
        with watch:
            y = layer(x)
            gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        results.append((y, *gradients, *layer.buffers()))
    names = {"moments", "mix", "affine", "sums", "mix_backward", "input_gradient"}
    assert {f"normlab.{name}.default" for name in names} <= seen.names
    for direct, watched in zip(*results, strict=True):
        torch.testing.assert_close(direct, watched, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results[0][:6], results[1][:6], strict=True))


# ---- threads, processes and the build -------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_the_number_of_threads_changes_no_bit(threads, last):
    args = arguments((5, 72, 33, 31), torch.float32, last)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append([t for name in NAMES for t in tuple_of(KERNELS[name](*args[name]))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def run(code, **env):
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, timeout=100, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


USE = """
import torch
from normlab.norm import kernels, ops
x = torch.randn(8, 32, 32, 32)
torch.ops.normlab.moments(x)
"""


def test_torchs_openmp_threads_are_shared():
    tasks = "print(len(os.listdir('/proc/self/task')))\n"
    code = f"import os\n{USE}{tasks}x.exp()\n{tasks}torch.ops.normlab.moments(x)\n{tasks}"
    ours, with_torch, later = map(int, run(code, OMP_NUM_THREADS="3").split())
    assert ours == with_torch == later
    assert ours >= 3


def test_processes_forked_before_the_first_use_have_threads():
    code = (
        "import os, torch; from normlab.norm import kernels, ops; kernels.backend(torch.device('cpu'))\n"
        "children = []\n"
        "for _ in range(3):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        torch.ops.normlab.moments(torch.randn(8, 32, 32, 32)); os._exit(0)\n"
        "    children.append(os.waitpid(pid, 0)[1])\n"
        "print(children)"
    )
    assert run(code, OMP_NUM_THREADS="2") == "[0, 0, 0]"


@pytest.mark.long
def test_processes_that_build_at_once_all_succeed(tmp_path):
    env = os.environ | {"NORMLAB_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = USE + "print(kernels.status()['cpu'])"
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate(timeout=200)[0].strip() for process in started] == ["C++ kernels"] * 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


@pytest.mark.parametrize("case", ["no compiler", "failing compiler", "no folder", "torch"])
def test_without_kernels_the_definition_serves_and_status_says_why(tmp_path, case):
    (tmp_path / "bin").mkdir()
    (tmp_path / "file").write_text("")
    env = {"NORMLAB_CACHE": str(tmp_path / "cache")}
    if case == "torch":
        env["NORMLAB_KERNELS"] = "torch"
    elif case == "no folder":
        env["NORMLAB_CACHE"] = str(tmp_path / "file" / "cache")
    else:
        env["PATH"] = str(tmp_path / "bin")
    if case == "failing compiler":
        compiler = tmp_path / "bin" / "c++"
        compiler.write_text("#!/bin/sh\necho 'native.cpp:1: error: no such instruction' >&2\nexit 1\n")
        compiler.chmod(0o755)
    said = run(USE + "print(kernels.status()['cpu'])", **env)
    reason = {
        "no compiler": "no C++ compiler",
        "failing compiler": "c++ failed: native.cpp:1: error: no such instruction",
        "no folder": "Not a directory",
        "torch": "NORMLAB_KERNELS=torch",
    }[case]
    assert said.startswith("torch operations: ")
    assert reason in said


def test_an_unknown_choice_is_refused():
    code = "from normlab.norm import kernels\ntry: kernels.status()\nexcept Exception as e: print(e)"
    assert run(code, NORMLAB_KERNELS="fast") == "NORMLAB_KERNELS=fast: expected auto or torch"
