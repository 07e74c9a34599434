"""Kernels are tried before they serve a device: what is wrong or fails there gives a warning, and torch operations."""

import warnings

import pytest
import torch
from norm_files import build, gradients, images, learned

from normlab.doctor import software
from normlab.norm import kernels, ops
from normlab.norm.kernels import Backend, trial

CPU = torch.device("cpu")
DEFINITIONS = {
    name: getattr(ops, name) for name in ("moments", "affine", "sums", "input_gradient", "mix", "mix_backward")
}


def perturbed(name, change):
    """The definitions as kernels, one of which is wrong."""
    return DEFINITIONS | {name: lambda *args: change(DEFINITIONS[name](*args))}


def bend(result):
    """The last value of each result is off by a tenth of the largest."""
    for t in result if isinstance(result, tuple) else (result,):
        t[(-1,) * t.ndim] += t.abs().max() / 10
    return result


def spoil(result):
    """One value of the last result is no number."""
    last = result[-1] if isinstance(result, tuple) else result
    last[(-1,) * last.ndim] = torch.nan
    return result


def test_the_definitions_and_the_kernels_of_this_machine_pass():
    assert trial.fault(DEFINITIONS, DEFINITIONS, CPU) is None
    assert trial.fault(kernels.backend(CPU).kernels, DEFINITIONS, CPU) is None


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_triton_kernels_pass(device):
    pytest.importorskip("triton", reason="Triton is on Linux alone")
    from normlab.norm.kernels import triton_backend

    if (device == "cuda") != torch.cuda.is_available():
        pytest.skip("in the interpreter without a GPU, on it with one")
    assert trial.fault(triton_backend.kernels(), DEFINITIONS, torch.device(device)) is None


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_wrong_kernel_is_named(name):
    said = trial.fault(perturbed(name, bend), DEFINITIONS, CPU)
    assert said is not None
    assert said.startswith(f"{name} differs from its definition by ")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_what_is_not_a_number_is_wrong(name):
    said = trial.fault(perturbed(name, spoil), DEFINITIONS, CPU)
    assert said == f"{name} differs from its definition by nan of the largest value"


def test_a_kernel_that_fails_is_named_with_the_first_line_of_the_reason():
    def fails(*args):
        raise RuntimeError("PassManager::run failed\nand a page of code")

    assert trial.fault(DEFINITIONS | {"sums": fails}, DEFINITIONS, CPU) == "sums fails here: PassManager::run failed"


def test_a_wrong_kernel_leaves_the_work_to_torch_with_one_warning_and_a_line_of_the_doctor(monkeypatch):
    wrong = Backend("Triton kernels", perturbed("sums", bend))
    monkeypatch.setattr("normlab.norm.kernels.native.load", lambda device: wrong)
    kernels.backend.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            layer = build("sn", 6)
            found = gradients(layer, images(4, 6, 5, 3), learned(layer))
            gradients(layer, images(4, 6, 5, 3), learned(layer))
            line = next(software.kernels())
        said = [str(w.message) for w in seen]
        assert len(said) == 1, said
        assert said[0].startswith("Triton kernels are left out on cpu, and layers are slower: sums differs from its")
        assert (line.name, line.level) == ("kernels, cpu", "warn")
        assert line.result.startswith("torch operations: sums differs from its definition by ")
    finally:
        kernels.backend.cache_clear()
    fresh = build("sn", 6)
    torch.testing.assert_close(found, gradients(fresh, images(4, 6, 5, 3), learned(fresh)))


def test_a_trial_leaves_the_random_numbers_of_the_program_alone(monkeypatch):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    kernels.backend.cache_clear()
    with torch.device("meta"):  # and does not care where a program makes its tensors
        kernels.backend(CPU)
    assert torch.equal(torch.rand(3), expected)
