"""W&B whose server refuses, hangs, fails or dies: training goes on, and all that was logged can be uploaded later."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_tracker import history, no_account, records, run_id, stored_records, warnings, write_rows  # noqa: F401
from wandb_server import FAULTS, fake_server

from normlab.trackers.wandb import WandB

KEY = "0123456789" * 4
ROWS = {step: float(step) for step in range(1, 41)}
NEVER_BLOCKS = 60  # seconds that a wait for a server would exceed by far


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("normlab.trackers.wandb._INIT_SECONDS", 1.0)
    monkeypatch.setattr("normlab.trackers.wandb._FINISH_SECONDS", 2.0)


@pytest.fixture
def server(no_account, monkeypatch):  # noqa: F811
    import wandb

    wandb.teardown()  # it keeps the address of the server that it knew first
    with fake_server() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        wandb.teardown()


def log(tracker: WandB, steps) -> None:
    for step in steps:
        tracker.log({"train/loss": ROWS[step]}, step=step)


def folders(run: Path) -> list[Path]:
    return sorted(path for path in (run / "wandb").glob("*run-2*") if any(path.glob("*.wandb")))


def received(server) -> dict[int, float]:
    return {row["_step"]: row["train/loss"] for row in server.rows}


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sync_command(warning: str) -> list[str]:
    """What the warning tells the user to type."""
    return [sys.executable, "-m", *warning.split("`")[1].split()]


def sync(warning: str, url: str) -> None:
    environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    command = sync_command(warning)
    subprocess.run(command, cwd=command[-1], env=environment, check=True, capture_output=True, timeout=60)


def test_a_healthy_server_gets_all_rows(server, tmp_path, run_id, warnings):  # noqa: F811
    tracker = WandB(tmp_path, run_id, "name", {"norm": "sn"})
    log(tracker, ROWS)
    tracker.finish({"status": "finished"})
    wait_for(lambda: received(server) == ROWS)
    assert "UpsertBucket" in server.asked and "upload" in server.asked
    assert warnings() == []


@pytest.mark.parametrize("fault", ["refused", "no such host", *FAULTS])
def test_a_server_that_fails_at_the_start(server, tmp_path, run_id, warnings, monkeypatch, fault):  # noqa: F811
    if fault == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    elif fault == "no such host":
        monkeypatch.setenv("WANDB_BASE_URL", "http://nowhere.invalid")
    else:
        server.fault = fault
    start = time.monotonic()
    tracker = WandB(tmp_path, run_id, "name", {})
    log(tracker, ROWS)
    tracker.finish({"status": "finished"})
    assert time.monotonic() - start < NEVER_BLOCKS
    (warning,) = warnings()
    (folder,) = [folder for folder in folders(tmp_path) if folder.name.startswith("offline")]
    assert history(folder) == ROWS
    assert warning.startswith("W&B could not start, keeping its data offline: ") and "\n" not in warning
    assert warning.endswith(f"; `wandb sync {folder}` uploads them")


@pytest.mark.parametrize("fault", ["dies", *FAULTS])
def test_a_server_that_fails_while_training(server, tmp_path, run_id, warnings, fault):  # noqa: F811
    tracker = WandB(tmp_path, run_id, "name", {})
    log(tracker, range(1, 21))
    if fault == "dies":
        server.stop()
    else:
        server.fault = fault
    start = time.monotonic()
    log(tracker, range(21, 41))
    tracker.finish({"status": "finished"})
    assert time.monotonic() - start < NEVER_BLOCKS
    (folder,) = folders(tmp_path)
    wait_for(lambda: any(record.HasField("exit") for record in stored_records(folder)))
    assert history(folder) == ROWS
    (warning,) = warnings()
    told = "W&B's server refused data" if fault == "401" else "W&B's server did not take all data within 2 s"
    assert warning == f"{told}; `wandb sync --include-online {folder}` uploads them"
    with fake_server() as later:
        sync(warning, later.url)
        assert received(later) == ROWS


def test_what_was_kept_offline_can_be_uploaded(server, tmp_path, run_id, warnings):  # noqa: F811
    server.fault = "500"
    tracker = WandB(tmp_path, run_id, "name", {})
    log(tracker, ROWS)
    tracker.finish({"status": "finished"})
    server.fault = None
    sync(warnings()[0], server.url)
    assert received(server) == ROWS


def service_of(process: int) -> int:
    """The process id of wandb-core, which a process started."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(") ")[2].split()
            if int(fields[1]) == process and b"wandb-core" in (status.parent / "cmdline").read_bytes():
                return int(status.parent.name)
        except OSError:
            pass  # it ended meanwhile
    raise AssertionError("no wandb-core")


@pytest.mark.parametrize("online", [True, False])
def test_a_killed_service_is_replaced_by_one_with_all_rows(
    server, tmp_path, run_id, warnings, monkeypatch, online  # noqa: F811
):  # fmt: skip
    if not online:
        monkeypatch.delenv("WANDB_API_KEY")
    tracker = WandB(tmp_path, run_id, "name", {})
    write_rows(tmp_path, range(1, 21))
    log(tracker, range(1, 21))
    service = service_of(os.getpid())
    os.kill(service, signal.SIGKILL)
    wait_for(lambda: b"wandb-core" not in Path(f"/proc/{service}/cmdline").read_bytes())
    for step in range(21, 41):
        write_rows(tmp_path, range(1, step + 1))
        log(tracker, [step])
        time.sleep(0.01)  # the connection's end is noticed a moment later
    tracker.finish({"status": "finished"})
    (warning,) = warnings()
    folder = folders(tmp_path)[0 if online else -1]
    assert warning.startswith("W&B stopped, keeping its data offline: ")
    assert warning.endswith(f"; `wandb sync {folder}` uploads them") and folder.name.startswith("offline")
    assert history(folder) == ROWS

    after = WandB(tmp_path / "next", f"{run_id}-next", "name", {}, mode="offline")
    log(after, ROWS)
    after.finish({"status": "finished"})
    assert history(folders(tmp_path / "next")[0]) == ROWS


TRAIN = """
import normlab.trackers.wandb as tracker
tracker._INIT_SECONDS = tracker._FINISH_SECONDS = 2.0
import sys
from normlab.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""


def train(url: str, out: Path, updates: int = 5) -> tuple[subprocess.CompletedProcess, Path]:
    words = [
        "data=digits",
        "model.width=4",
        "norm=bn",
        f"iterations={updates}",
        "log_every=1",
        f"out={out}",
        "threads=1",
    ]
    environment = os.environ | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *words], env=environment, capture_output=True, text=True, timeout=120
    )
    return done, next(out.glob("*/run.json")).parent


def check_train(done: subprocess.CompletedProcess, run: Path, updates: int = 5) -> str:
    """It finished, its records are whole, one line on stderr is about W&B; that line."""
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "batch/loss" in row] == list(range(1, updates + 1))
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "W&B" in line]
    return line


def logged_steps(folder: Path) -> set[int]:
    return {
        json.loads(item.value_json)
        for record in records(folder)
        for item in record.history.item
        if (item.key or "/".join(item.nested_key)) == "_step"
    }


@pytest.mark.parametrize("fault", ["hang", pytest.param("500", marks=pytest.mark.long)])
def test_normlab_train_without_a_server(server, tmp_path, fault):
    server.fault = fault
    done, run = train(server.url, tmp_path)
    line = check_train(done, run)
    assert "W&B could not start, keeping its data offline" in line
    (folder,) = [folder for folder in folders(run) if folder.name.startswith("offline")]
    assert f"`wandb sync {folder}`" in line
    assert logged_steps(folder) >= {1, 2, 3, 4, 5}


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_normlab_train_with_a_server_that_fails_midway(server, tmp_path, fault):
    server.fault_after_rows = (1, fault)
    done, run = train(server.url, tmp_path, updates=1000)
    line = check_train(done, run, updates=1000)
    (folder,) = folders(run)
    assert f"`wandb sync --include-online {folder}` uploads them" in line
    assert logged_steps(folder) >= set(range(1, 1001))
