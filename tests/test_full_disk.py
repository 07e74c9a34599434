"""A disk that fills while W&B mirrors a run: reported once, and the run's own records say what came of it."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest

from normlab.errors import DiskFullError
from normlab.runs import folder as folder_module
from normlab.runs.folder import RunFolder
from normlab.trackers.wandb import WandB

WORDS = (
    "norm=bn batch=2x4 iterations=40 data.fraction=0.5 model.width=4 threads=1 batch_average.samples=64 "
    "tracker=wandb tracker.mode=offline"
)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"),
    reason="needs a disk of its own, as root",
)
@pytest.mark.parametrize("kilobytes", [200, 350])  # too small for the run; for W&B's copies of its figures
def test_a_small_disk(tmp_path, kilobytes):
    (tmp_path / "disk").mkdir()
    script = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs disk && {sys.executable} -m normlab.cli train {WORDS} "
        "out=disk/runs; echo status $?; cat disk/runs/*/status.json"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    command = ["unshare", "-m", "bash", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    if "mount:" in done.stderr:
        pytest.skip("no disk can be mounted here")
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2, done.stderr
    status = json.loads(done.stdout.partition("\nstatus ")[2].partition("\n")[2] or done.stdout.partition("\n")[2])
    assert status["status"] == {200: "failed", 350: "finished"}[kilobytes]
    assert ("W&B stopped, going on without" in done.stderr) == (kilobytes == 350)


def test_a_tracker_whose_disk_is_full_is_not_started_again(caplog):
    """A start takes room, and all rows so far are written again."""

    class Full:
        def log(self, *args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device", "x.png")

    tracker = WandB.__new__(WandB)
    tracker._run, tracker._restarted = Full(), False
    tracker._start = lambda mode: pytest.fail("it was started again")
    with caplog.at_level(logging.WARNING, logger="normlab.trackers.wandb"):
        for step in range(3):
            tracker.log({"loss": 1.0}, step)
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["W&B stopped, going on without"]


@pytest.mark.parametrize("after", [{"status": "finished"}, {"status": "failed", "error": "the disk is full"}])
def test_a_status_is_written_in_its_own_place_where_the_disk_is_full(tmp_path, monkeypatch, after):
    def full(path, value, **options):
        raise DiskFullError("no room")

    folder = RunFolder(tmp_path)
    folder.set_status("running", updates=40)
    monkeypatch.setattr(folder_module, "write_json", full)
    folder.set_status(**after)
    assert folder.status() == after
    folder.status_file.unlink()
    with pytest.raises(DiskFullError):
        folder.set_status("finished")
