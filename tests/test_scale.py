"""Beyond one process: nodes that meet, the end by a signal, and the launchers of others."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from killing import Told
from test_engine import config, records, run

from normlab.cli import main
from normlab.config import load
from normlab.errors import UserError
from normlab.launch.elastic import launch, num_devices
from normlab.launch.life import train
from normlab.progress import silent
from normlab.reading import read_jsonl
from normlab.runs.folder import RunFolder
from normlab.sweeps import multirun

SMALL = ("batch=4x4", "model.width=4", "data.fraction=0.1", "tracker=none", "threads=1")
COMMAND = (sys.executable, "-m", "normlab.cli", "train", *SMALL, "devices=2", "launch.timeout=60")


@pytest.fixture
def start():
    """Starts commands beside each other; none outlives the test."""
    started = []

    def start(*words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*COMMAND, *words], stdout=pipe, stderr=pipe, text=True, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def meeting_point() -> tuple[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "launch.nodes=2", f"launch.rendezvous=127.0.0.1:{free.getsockname()[1]}"


def folder_of(out: Path, *words: str) -> RunFolder:
    return RunFolder.of(load([*SMALL, f"out={out}", *words]))


def assert_same_run(folder: RunFolder, other: RunFolder) -> None:
    """The same rows, each written once, and the same numbers up to the order of sums."""
    rows, others = read_jsonl(folder.metrics), read_jsonl(other.metrics)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, expected in zip(rows, others, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_the_command_on_two_nodes_is_one_run(tmp_path, start):
    words = (*meeting_point(), "epochs=2", f"out={tmp_path}")
    nodes = [start(*words), start(*words)]
    for node in nodes:
        output, errors = node.communicate(timeout=120)
        assert node.returncode == 0, errors
        assert "finished after 16 updates" in output
    folder = folder_of(tmp_path, "epochs=2")
    assert folder.summary()["devices"] == 2
    assert sorted(path.name for path in folder.path.glob(".*")) == []
    assert_same_run(folder, run(config(tmp_path / "one")))


@pytest.mark.long
def test_nodes_that_do_not_share_the_folder_are_told(tmp_path, start):
    point = meeting_point()
    nodes = [start(*point, "epochs=1", f"out={tmp_path / name}") for name in ("a", "b")]
    for node, name in zip(nodes, ("a", "b"), strict=True):
        _, errors = node.communicate(timeout=120)
        assert node.returncode == 2
        assert errors.splitlines()[-1].startswith(f"normlab: out={tmp_path / name}: nodes of a run share this folder")
        assert not list((tmp_path / name).iterdir())


@pytest.mark.long  # test_processes.py signals all processes of a run every day
def test_sigterm_to_two_processes_saves_and_one_resumes(tmp_path, start):
    words = ("epochs=12", f"out={tmp_path}")
    process, folder = start(*words), folder_of(tmp_path, "epochs=12")
    while len(read_jsonl(folder.metrics)) < 9:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    status = folder.status()
    assert status["status"] == "interrupted" and 8 <= status["updates"] < 96
    assert f"Interrupted after {status['updates']} updates" in errors and "Traceback" not in errors

    assert main(["train", *SMALL, *words]) == 0  # on one process
    assert_same_run(folder, run(config(tmp_path / "one", "epochs=12")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 3, "rendezvous": "a:1"}, "devices=2 cannot be shared by launch.nodes=3"),
        ({"nodes": 2}, "nodes meet at launch.rendezvous=host:port"),
        ({"nodes": 2, "rendezvous": "node1"}, "launch.rendezvous=node1: expected host:port"),
        ({"nodes": 2, "rendezvous": "node1:99999"}, "launch.rendezvous=node1:99999: expected host:port"),
    ],
)
def test_nodes_that_cannot_meet_are_one_line(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        launch(RunFolder(tmp_path), 2, silent, **options)


def test_a_node_alone_gives_up(tmp_path, capsys):
    words = ["train", *SMALL, "devices=2", *meeting_point(), "launch.timeout=1", f"out={tmp_path}"]
    assert main(words) == 2
    assert "launch.nodes=2: they did not all meet at" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_nodes_do_not_start_a_run_over(tmp_path, capsys):
    run(config(tmp_path, "epochs=1"))
    assert main(["train", *SMALL, "epochs=1", "rerun=true", "devices=2", *meeting_point(), f"out={tmp_path}"]) == 2
    assert "rerun=true is for one node" in capsys.readouterr().err


def test_automatic_devices_count_all_nodes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    point = "launch.rendezvous=node1:29500"
    assert num_devices(load(["batch=8x2"])) == 4
    assert num_devices(load(["batch=8x2", "launch.nodes=2", point])) == 8
    assert num_devices(load(["batch=6x2", "launch.nodes=2", point])) == 6
    with pytest.raises(UserError, match="cannot share the 3 replicas"):
        num_devices(load(["batch=3x2", "launch.nodes=2", point]))


def test_the_signal_before_a_jobs_time_is_over_saves(tmp_path):
    """Submitit's SIGUSR2: the update is finished, saved, and the records are those of the run that was not stopped."""

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("training", 5):
            os.kill(os.getpid(), signal.SIGUSR2)

    folder = run(config(tmp_path / "stopped"), Told(stop))
    assert folder.status() == {"status": "interrupted", "updates": 5, "signal": signal.SIGUSR2}
    assert train(folder) == "finished"
    assert records(folder) == records(run(config(tmp_path / "whole")))


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_stopped_cell_ends_as_its_scheduler_expects(tmp_path, monkeypatch, number):
    """SIGUSR2 goes on to the handler that queues the cell again; after SIGTERM the process ends."""
    settings = config(tmp_path)

    def interrupted(config: object, folder: RunFolder) -> str:
        folder.create(settings)
        folder.set_status("interrupted", updates=5, signal=number)
        return "interrupted"

    heard: list[int] = []
    previous = {n: signal.signal(n, lambda n, frame: heard.append(n)) for n in (signal.SIGUSR2, signal.SIGTERM)}
    composed = SimpleNamespace(
        overrides=SimpleNamespace(task=[*SMALL, f"out={tmp_path}"]),
        runtime=SimpleNamespace(cwd=str(tmp_path)),
        sweep=SimpleNamespace(dir=str(tmp_path / "sweeps" / "1a2b3c4d")),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("normlab.launch.start.start", interrupted)
    monkeypatch.setattr(multirun.HydraConfig, "get", lambda: composed)
    try:
        with pytest.raises(SystemExit) as end:
            multirun._run_cell(None)
    finally:
        for n, handler in previous.items():
            signal.signal(n, handler)
    assert end.value.code == 128 + number
    assert heard == ([number] if number == signal.SIGUSR2 else [])


def test_another_launcher_runs_all_cells_and_tells_what_failed(tmp_path, monkeypatch, capsys):
    """Hydra's own, in this process; 4x50 needs more samples than there are."""
    monkeypatch.chdir(tmp_path)
    words = ["model.width=4", "data.fraction=0.1", "tracker=none", "epochs=1", "out=runs", "hydra/launcher=basic"]
    assert main(["train", "-m", *words, "batch=4x50,4x4"]) == 1
    told = capsys.readouterr().err
    assert "1 failed, 1 finished" in told and "needs 200 samples an update" in told

    assert main(["train", "-m", *words, "batch=4x4,4x0"]) == 2
    assert "batch=4x0: expected replicas x samples" in capsys.readouterr().err
