"""How many threads a run computes with: few for small networks, never more than the cores it may use."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from normlab.dynamics.dry_run import multiply_adds
from normlab.processes import threads


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Flatten(), nn.Linear(width * 16 * 16, 10))


def test_multiply_adds_are_those_of_a_sample():
    assert multiply_adds(network(4), (3, 16, 16)) == 16 * 16 * 4 * 3 * 9 + 4 * 16 * 16 * 10


@pytest.mark.parametrize(("width", "rows", "expected"), [(4, 16, 1), (64, 256, 1), (64, 1024, 2), (512, 10_000, 8)])
def test_threads_follow_the_work_of_a_pass(width, rows, expected, eight_cores):
    assert threads.fitting(network(width), (3, 16, 16), rows) == expected


def test_a_network_that_cannot_be_counted_takes_all_cores(eight_cores):
    class Unusual(nn.Module):
        def forward(self, x):
            raise RuntimeError("takes lists of images of different sizes")

    assert threads.fitting(Unusual(), (3, 16, 16), 1) == 8
    assert threads.fitting(network(4), None, 1) == 8


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("99", 8), ("2,1", 2), ("", 8), ("many", 8), ("0", 8)])
def test_omp_num_threads_is_obeyed(given, expected, eight_cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads.cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_is_obeyed():
    own = min(os.sched_getaffinity(0))
    script = (
        f"import os; os.sched_setaffinity(0, {{{own}}}); from normlab.processes.threads import cores; print(cores())"
    )
    asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "1"


def test_waiting_threads_sleep():
    """Under the command line; whoever sets the policy is obeyed."""
    script = "import os; from normlab.cli.main import main; main(['--help']); print(os.environ['OMP_WAIT_POLICY'])"
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    for own, expected in ({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env | own, check=True)
        assert done.stdout.splitlines()[-1] == expected


def test_the_number_does_not_depend_on_what_torch_has(eight_cores):
    before = torch.get_num_threads()
    assert threads.fitting(network(4), (3, 16, 16), 16) == 1 and torch.get_num_threads() == before
