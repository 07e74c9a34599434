"""Sweeps and tables that are stopped, killed or out of room, one of 300 cells, one on a Slurm without accounting.

make test-long runs them; test_sweep.py, test_runs.py and test_checkpoint.py have the short ones.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from killing import use_up
from test_sweep import wait_until

from normlab.config import load
from normlab.doctor.compare import differences
from normlab.doctor.readers import REPRODUCE, words
from normlab.reading import read_jsonl
from normlab.runs.folder import RunFolder

pytestmark = pytest.mark.long
SETTINGS = (
    *("norm=sn", "batch=4x4", "model.width=4", "data.fraction=0.1", "epochs=40", "checkpoint.every=0.5"),  # 320 updates
    *("threads=1", "tracker=none", "figures=summary"),
)
COMMANDS = {"sweep": "train -m SETTINGS seed=0,1 jobs=2 out=OUT", "table": f"{REPRODUCE} seeds=2"}
RECORDS = Path("tables", "sn_inference-digits", "records.jsonl")


def typed(out: Path, command: str, **places: str) -> subprocess.Popen[str]:
    """A command on runs in out/runs and records in out/tables."""
    line = words(command, {"OUT": f"{out}/runs", "TABLES": f"{out}/tables"} | places, SETTINGS)
    return subprocess.Popen(
        [sys.executable, "-m", "normlab.cli", *line],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its status, and what it said; nothing that it started is left."""
    said = process.communicate(timeout=300)[1]
    wait_until(lambda: not session_of(process.pid), 60)
    return process.returncode, said


def session_of(leader: int) -> list[int]:
    """The processes of a session: a command, its cells and their server."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def cells(out: Path) -> list[RunFolder]:
    return [RunFolder.of(load([*SETTINGS, f"seed={seed}", f"out={out}/runs"])) for seed in (0, 1)]


def wait_for_updates(process: subprocess.Popen[str], out: Path, updates: int) -> None:
    """Of any cell: a table's run one after the other."""
    folders = cells(out)
    wait_until(lambda: process.poll() is not None or any(folder.updates_done() > updates for folder in folders), 180)
    assert process.poll() is None, process.communicate()


def records(out: Path) -> list[dict]:
    """Of a table, but for what measures time."""
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "finished")}
        for record in read_jsonl(out / RECORDS)
    ]


def assert_is_whole(whole: Path, out: Path, what: str) -> None:
    for expected, found in zip(cells(whole), cells(out), strict=True):
        assert differences(expected, found) == []
    if what == "table":
        assert records(out) == records(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """What is left where nothing disturbs: the runs of the table are those of the sweep."""
    out = tmp_path_factory.mktemp("whole")
    assert ended(typed(out, COMMANDS["table"]))[0] == 0
    assert len(records(out)) == 70
    return out


# ---- signals and kills ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("what", COMMANDS)
def test_one_that_is_stopped_or_killed_twice_goes_on(tmp_path, whole, what, number):
    updates = 40
    for _ in range(2):
        process = typed(tmp_path, COMMANDS[what])
        wait_for_updates(process, tmp_path, updates)
        process.send_signal(number)
        status, said = ended(process)
        if number == signal.SIGKILL:
            assert status == -signal.SIGKILL
        else:
            assert status == 128 + number and "the same command goes on from there" in said
        under_way = [folder for folder in cells(tmp_path) if folder.status()["status"] not in ("new", "finished")]
        assert [folder.status()["status"] for folder in under_way] == ["interrupted"] * len(under_way)
        updates = max(folder.updates_done() for folder in cells(tmp_path)) + 40
    assert ended(typed(tmp_path, COMMANDS[what]))[0] == 0
    assert_is_whole(whole, tmp_path, what)


@pytest.mark.parametrize("what", COMMANDS)
def test_a_cell_that_is_killed_costs_no_other(tmp_path, whole, what):
    process = typed(tmp_path, COMMANDS[what])
    wait_for_updates(process, tmp_path, 40)
    victim = max(cells(tmp_path), key=RunFolder.updates_done)
    os.kill(json.loads((victim.path / "lock").read_text())["pid"], signal.SIGKILL)
    status, said = ended(process)
    assert status == 1 and f"failed: {victim.path.name}: the process was killed by SIGKILL" in said
    assert Counter(folder.status()["status"] for folder in cells(tmp_path)) == {"finished": 1, "failed": 1}
    assert ended(typed(tmp_path, COMMANDS[what]))[0] == 0
    assert_is_whole(whole, tmp_path, what)


# ---- full disks ----------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_when_a_table_is_recorded_costs_nothing(tmp_path, small_disk, whole):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    shutil.copytree(whole / RECORDS.parent, small_disk / RECORDS.parent)
    path = small_disk / RECORDS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # the last one is still to be recorded
    before = path.read_bytes()
    filler = use_up(small_disk)
    for _ in range(2):
        status, said = ended(typed(tmp_path, COMMANDS["table"], TABLES=f"{small_disk}/tables"))
        assert status == 74 and said.splitlines()[-1].startswith(f"normlab: {path}: the disk is full; it needs")
        assert said.count("normlab: ") == 1 and "Traceback" not in said
        assert path.read_bytes() == before and not list(small_disk.rglob("*.tmp"))
    filler.unlink()
    assert ended(typed(tmp_path, COMMANDS["table"], TABLES=f"{small_disk}/tables"))[0] == 0
    assert records(small_disk) == records(whole)


def test_a_disk_that_is_full_while_cells_train_costs_nothing(small_disk, whole):
    process = typed(small_disk, COMMANDS["sweep"])
    wait_for_updates(process, small_disk, 40)
    filler = use_up(small_disk)
    status, said = ended(process)
    assert status == 74 and "Traceback" not in said, said
    assert said.splitlines()[-1] == "The disk is full; the same command goes on from there once there is room."
    filler.unlink()
    assert ended(typed(small_disk, COMMANDS["sweep"]))[0] == 0
    assert_is_whole(whole, small_disk, "sweep")


# ---- many cells ----------------------------------------------------------------------------------------------------


def test_three_hundred_cells(tmp_path, record_property):
    """All finish; the sweep holds no more files and memory at the end than when it had begun."""
    tiny = "norm=sn batch=4x4 model.width=4 data.fraction=0.05 iterations=2 batch_average.samples=16 tracker=none"
    began = time.monotonic()
    process = typed(tmp_path, f"train -m {tiny} seed=range(0,300) jobs=2 out=OUT")
    seen: list[tuple[int, int]] = []  # open files, memory in kB
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = int(status.partition("VmRSS:")[2].split()[0])
            seen.append((len(os.listdir(f"/proc/{process.pid}/fd")), memory))
        except (OSError, IndexError):  # it has just ended
            break
        time.sleep(1)
    status, said = ended(process)
    record_property("seconds", round(time.monotonic() - began))
    assert status == 0 and "300 finished" in said, said
    middle, last = (seen[len(seen) * part // 4 : len(seen) * (part + 1) // 4] for part in (1, 3))
    assert max(files for files, _ in last) <= max(files for files, _ in middle) + 4
    assert max(memory for _, memory in last) <= 1.05 * max(memory for _, memory in middle)
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 300


# ---- Slurm ---------------------------------------------------------------------------------------------------------

SBATCH = """#!/bin/bash
# A Slurm without accounting: runs the jobs of an array one after the other.
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "${@: -1}")
(
    sleep 5
    for task in $(seq 0 "${last:-0}"); do
        export SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_PROCID=0
        export SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1
        bash "${@: -1}"
    done
) > /dev/null 2>&1 &
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do
    [[ "$1" == --output || "$1" == --error ]] && shift
    shift
done
exec "$@"
"""


def test_without_sacct_submitit_warns_once(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install '.[slurm]' has submitit")
    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    status, said = ended(typed(tmp_path, "train -m SETTINGS epochs=1 seed=0,1 out=OUT hydra/launcher=submitit_slurm"))
    assert status == 0 and "2 finished" in said
    assert said.count("sacct") == 2, said  # in one line, which has the error too
