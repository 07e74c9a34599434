"""Processes that die, are signalled together, or meet on one run."""

import fcntl
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import SHORT, SMALL, Told, config, differences, outcome
from test_scale import meeting_point

from normlab.cli import main
from normlab.errors import RunError
from normlab.figures import draw
from normlab.launch import life
from normlab.launch.start import start
from normlab.progress import silent
from normlab.runs import lock
from normlab.runs.folder import RunFolder

SOME, MANY = ("epochs=16", "checkpoint.every=0.5"), ("epochs=40", "checkpoint.every=0.5")  # 128 and 320 updates


def command(out: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "normlab.cli", "train", *SMALL, *words, f"out={out}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def wait_for(folder: RunFolder, updates: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while folder.updates_done() < updates:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_of(out: Path) -> list[int]:
    """Those whose command line names the folder, and their children."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            is_zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(out) in line and "normlab" in line and not is_zombie:
            found.append(int(entry.name))
    return found


def assert_gone(out: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(out):
        assert time.monotonic() < deadline, processes_of(out)
        time.sleep(0.1)


def ranks_of(out: Path) -> list[int]:
    return [p for p in processes_of(out) if b"normlab.launch.rank" in Path(f"/proc/{p}/cmdline").read_bytes()]


# ---- one command a run ---------------------------------------------------------------------------------------------


def test_a_second_command_is_told_who_is_at_work(tmp_path, capsys):
    settings = config(tmp_path)
    folder = RunFolder.of(settings)
    with lock.locked(folder.path):
        assert main(["train", *SMALL, *SHORT, f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"host {socket.gethostname()}, process {os.getpid()}, since 20" in said[0]
    assert not list(folder.path.iterdir())


def test_what_a_killed_command_left_locks_nothing(tmp_path):
    (tmp_path / lock.NAME).write_text('{"host": "elsewhere", "pid": 1, "since": "long ago"}')
    with lock.locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / lock.NAME).read_text()
    assert not list(tmp_path.iterdir())


def test_nodes_of_one_run_share_its_lock(tmp_path):
    with lock.locked(tmp_path, "node1:29500"):
        with lock.locked(tmp_path, "node1:29500"):
            pass
        for other in ("node1:29501", None):
            with pytest.raises(lock.BusyError), lock.locked(tmp_path, other):
                pass
        assert (tmp_path / lock.NAME).exists()
    with lock.locked(tmp_path):
        pass


def test_a_lock_that_was_removed_is_no_lock(tmp_path):
    """Its holder ended between another's look at the file and the other's lock on it."""
    stale = os.open(tmp_path / lock.NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(stale, fcntl.LOCK_EX)
    (tmp_path / lock.NAME).unlink()
    with lock.locked(tmp_path):
        pass
    os.close(stale)


# ---- signals where nothing can be saved ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "where"), [(life, "open_session"), (life, "_tracker"), (life, "summarize"), (draw, "draw")]
)
def test_a_signal_anywhere_interrupts(tmp_path, monkeypatch, module, where):
    """While the model is built, W&B starts, the outcome is written."""
    original = getattr(module, where)

    def signalled(*arguments: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    words = ["train", *SMALL, "iterations=2", f"out={tmp_path}"]
    folder = RunFolder.of(config(tmp_path, "iterations=2"))
    monkeypatch.setattr(module, where, signalled)
    assert main(words) == 128 + signal.SIGTERM
    updates = 0 if where in ("open_session", "_tracker") else 2
    assert folder.status() == {"status": "interrupted", "updates": updates, "signal": signal.SIGTERM}
    monkeypatch.setattr(module, where, original)
    assert main(words) == 0


def test_a_signal_to_all_processes_of_a_run_saves(tmp_path):
    """Schedulers signal loader workers too, and more than once."""
    words = (*SOME, "workers=2")
    process, folder = command(tmp_path, *words), RunFolder.of(config(tmp_path, *words))
    wait_for(folder, 12, process)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 25, errors
    status = folder.status()
    assert status["status"] == "interrupted" and status["updates"] == folder.updates_done()
    assert "Traceback" not in errors and f"Interrupted after {status['updates']} updates" in errors
    assert_gone(tmp_path)


# ---- processes that die --------------------------------------------------------------------------------------------


def test_a_loader_worker_that_is_killed_is_named(tmp_path):
    settings = config(tmp_path, "workers=2")
    folder = RunFolder.of(settings)

    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == ("training", 5):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(RunError, match=r"a loader worker( \(process [0-9]+\))? was killed.*workers=0"):
        start(settings, folder, Told(kill))
    assert folder.status()["status"] == "failed" and "loader worker" in folder.status()["error"]
    assert re.search("RuntimeError: DataLoader worker|ConnectionResetError|EOFError", folder.traceback.read_text())
    assert main(["train", *SMALL, *SHORT, f"out={tmp_path}"]) == 0
    assert not folder.traceback.exists()


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_so_is_one_that_is_killed_while_it_sends(tmp_path, monkeypatch, error):
    def lost(*_: object) -> None:
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data", lost)
    settings = config(tmp_path, "workers=1")
    with pytest.raises(RunError, match=r"a loader worker was killed; .*workers=0"):
        start(settings, RunFolder.of(settings), silent)


@pytest.mark.parametrize(
    ("how", "line"), [("raise", "RuntimeError: the third pass fails"), ("memory", "out of memory")]
)
def test_a_failure_is_one_line_and_its_traceback_a_file(tmp_path, capsys, how, line):
    words = ["batch=4x4", "model.width=4", "data.fraction=0.1", "tracker=none", "epochs=1", "threads=1"]
    assert main(["train", *words, "task._target_=toy_failing.Failing", f"task.how={how}", f"out={tmp_path}"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    file = next(tmp_path.glob("*/error.txt"))
    assert len(said) == 1 and said[0].startswith(f"normlab: the run failed: {line}") and str(file) in said[0]
    assert "Traceback" in file.read_text()
    if how == "memory":
        assert "replicas_per_pass=2 (now 4 at a time)" in said[0] and "does not change the result" in said[0]


def undisturbed(out: Path, *words: str) -> dict[str, object]:
    """What a run leaves that nothing stops."""
    process = command(out, *words)
    assert process.communicate(timeout=120) and process.returncode == 0
    return outcome(config(out, *words))


def test_a_rank_that_is_killed_ends_the_run_or_restarts_it(tmp_path_factory):
    """Each rank once; the first time it ends the run, the second time the launcher starts all again."""
    tmp_path, words = tmp_path_factory.mktemp("killed"), ("epochs=8", "checkpoint.every=0.5", "devices=2")
    folder = RunFolder.of(config(tmp_path, *words))
    for rank, restarts in ((1, 0), (0, 1)):
        process = command(tmp_path, *words, f"launch.max_restarts={restarts}")
        wait_for(folder, folder.updates_done() + 20, process)
        killed = next(
            p
            for p in ranks_of(tmp_path)
            if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{p}/environ").read_bytes()
        )
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        _, errors = process.communicate(timeout=120)
        if restarts:
            assert process.returncode == 0, errors
        else:
            assert process.returncode == 1 and time.monotonic() - began < 30, errors
            assert errors.splitlines()[-1].startswith("normlab: the run failed: rank 1 was killed by SIGKILL")
            assert folder.status() == {"status": "failed", "error": "rank 1 was killed by SIGKILL"}
        assert_gone(tmp_path)
    assert differences(outcome(config(tmp_path, *words)), undisturbed(tmp_path_factory.mktemp("whole"), *words)) == []


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_killed_or_signalled_again_and_again(tmp_path_factory, workers):
    """The launcher killed: its ranks end with it. A signal to the launcher, thrice: all save."""
    tmp_path, words = tmp_path_factory.mktemp("killed"), (*MANY, "devices=2", f"workers={workers}")
    folder = RunFolder.of(config(tmp_path, *words))
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGUSR2):
        process = command(tmp_path, *words)
        wait_for(folder, folder.updates_done() + 30, process)
        began = time.monotonic()
        for _ in range(3):
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < 25
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + number, errors
            assert folder.status() | {"updates": 0} == {"status": "interrupted", "updates": 0, "signal": number}
            assert folder.status()["updates"] == folder.updates_done()
        assert_gone(tmp_path)
    process = command(tmp_path, *words)
    process.communicate(timeout=120)
    assert differences(outcome(config(tmp_path, *words)), undisturbed(tmp_path_factory.mktemp("whole"), *words)) == []


@pytest.mark.long
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_node_ends_the_run_on_both(tmp_path, told):
    words = (*MANY, "devices=2", *meeting_point(), "launch.timeout=60")
    nodes, folder = [command(tmp_path, *words) for _ in range(2)], RunFolder.of(config(tmp_path, *MANY))
    wait_for(folder, 20, nodes[0])
    assert main(["train", *SMALL, *MANY, f"out={tmp_path}"]) == 2  # both hold it
    nodes[told].send_signal(signal.SIGTERM)
    for node in nodes:
        _, errors = node.communicate(timeout=25)
        assert node.returncode == 128 + signal.SIGTERM
        assert f"Interrupted after {folder.updates_done()} updates" in errors
    assert not (folder.path / lock.NAME).exists()
    assert_gone(tmp_path)
