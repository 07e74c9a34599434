"""What is installed: Python, packages, compilers, and what stands around a run: W&B, Slurm."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil

import torch
from packaging.requirements import Requirement

from normlab.doctor.check import Check, Checks


def python() -> Checks:
    """Against what pyproject.toml asks for."""
    wanted = importlib.metadata.metadata("normlab")["Requires-Python"]
    fits = Requirement(f"python{wanted}").specifier.contains(platform.python_version())
    advice = "" if fits else "PYTHON=python3.12 make setup picks another"
    yield Check("Python", f"{platform.python_version()} (wanted: {wanted})", "ok" if fits else "fail", advice)


def packages() -> Checks:
    """Against what pyproject.toml asks for, the optional ones left out; a line for each that does not fit."""
    wanted = [Requirement(line) for line in importlib.metadata.requires("normlab") or []]
    fitting = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(requirement.name, "not installed", "fail", f"pip install '{requirement}'")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fitting.append(f"{requirement.name} {version}")
        else:
            result = f"{version} (wanted: {requirement.specifier})"
            yield Check(requirement.name, result, "fail", f"pip install '{requirement}'")
    yield Check("packages", f"{fitting[0]} and {len(fitting) - 1} others fit" if fitting else "none")


def torchvision() -> Checks:
    """Its compiled operators (nms, roi_align) load only beside the build of torch that they were made for."""
    try:
        import torchvision
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError) as error:
        reason = f"does not load beside torch {torch.__version__}: {' '.join(str(error).split())[:200]}"
        yield Check("torchvision", reason, "fail", "install both from one place, as constraints.txt pins them")
        return
    yield Check("torchvision", f"{torchvision.__version__}, with its compiled operators")


def compiler() -> Checks:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found:
        yield Check("C++ compiler", found)
    else:
        yield Check("C++ compiler", "none", "warn", "compile=true and fast kernels need one: install g++")


def kernels() -> Checks:
    """Who computes the normalization, by device."""
    from normlab.norm import kernels

    for device, name in kernels.status().items():
        if device == "cuda" and not torch.cuda.is_available():
            continue
        slower = name.startswith("torch") and "NORMLAB_KERNELS" not in os.environ
        advice = "the same, slower: repair what the reason names" if slower else ""
        yield Check(f"kernels, {device}", name, "warn" if slower else "ok", advice)


def triton() -> Checks:
    if not torch.cuda.is_available():
        return
    there = importlib.util.find_spec("triton") is not None
    result = importlib.metadata.version("triton") if there else "none"
    yield Check(
        "Triton", result, "ok" if there else "warn", "" if there else "compile=true needs it: pip install triton"
    )


def wandb() -> Checks:
    """How runs would start; nobody is asked over the network."""
    from normlab.trackers.wandb import usable_mode

    try:
        mode = usable_mode("auto")
    except Exception as error:  # W&B's own, for a malformed key
        yield Check("W&B", str(error).partition("\n")[0], "warn", "wandb login --relogin, or WANDB_MODE=offline")
        return
    if mode is None or mode == "online":
        yield Check("W&B", "online: there is a key")
    else:
        yield Check("W&B", f"{mode}: kept in the run folders", "ok", "wandb login, to see runs in the browser")


def slurm() -> Checks:
    if not shutil.which("sbatch") and "SLURM_JOB_ID" not in os.environ:
        return
    there = importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is not None
    job = f", in job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    advice = "" if there else "pip install 'normlab[slurm]' to submit sweeps (docs/scale.md)"
    yield Check("Slurm", ("launcher installed" if there else "no launcher") + job, "ok" if there else "warn", advice)
