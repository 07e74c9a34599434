"""Without a GPU, Triton kernels run in Triton's interpreter, which must be chosen before anything imports Triton."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk; the limit on a file's size is tested all the same")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)
