"""A process that trains on the CPU keeps the memory of its tensors: it is not mapped anew for each."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from normlab.config import load
from normlab.processes import devices
if sys.argv[1] == "keeps":
    devices.prepare(load([]), torch.device("cpu"))
def faults():
    torch.zeros(8 * 2**20)  # 32 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
before = faults()
for _ in range(10):
    after = faults()
print(after - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_is_given_back_is_taken_again_without_a_fault():
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keeps") < faults("plain") / 4  # once the heap may grow
