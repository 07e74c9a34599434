"""Sweeps: a cell is a process, finished cells are skipped, what happens to one costs no other."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from normlab.cli import main
from normlab.config import load
from normlab.console import PlainConsole
from normlab.errors import DiskFullError
from normlab.launch.start import _clear, start
from normlab.reading import read_json, read_jsonl
from normlab.runs.folder import RunFolder
from normlab.runs.lock import locked
from normlab.sweeps.multirun import _once, expand
from normlab.sweeps.pool import LOG, Cell, _Job, _Pool, conclude, plan

SMALL = ["batch=4x4", "epochs=1", "model.width=4", "data.fraction=0.1", "tracker=none"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Hydra leaves its own record of a sweep in results/sweeps of the working folder."""
    monkeypatch.chdir(tmp_path)


def sweep(capsys, *words: str) -> tuple[int, str]:
    code = main(["train", "-m", *SMALL, *words])
    return code, capsys.readouterr().err


def statuses(*words: str) -> list[str]:
    return [RunFolder.of(config).status()["status"] for config in expand([*SMALL, *words])]


def test_a_sweep_runs_every_cell_once(capsys):
    words = ("norm=bn,sn", "seed=0,1", "jobs=2")
    code, said = sweep(capsys, *words)
    assert code == 0 and "4 cells: 0 finished already, 4 to run" in said and "4 finished" in said
    assert statuses(*words) == ["finished"] * 4
    written = {file: file.stat().st_mtime_ns for file in Path("results/runs").glob("*/*.json")}

    code, said = sweep(capsys, *words)
    assert code == 0 and "4 cells: 4 finished already, 0 to run" in said
    assert written == {file: file.stat().st_mtime_ns for file in Path("results/runs").glob("*/*.json")}

    code, said = sweep(capsys, "norm=bn,sn", "seed=0,1", "optim.lr=0.1,0.05")  # a value more: its cells alone
    assert code == 0 and "8 cells: 4 finished already, 4 to run" in said


def test_cells_are_the_runs_of_single_commands(capsys, tmp_path):
    """The same command alone gives the same bytes, whatever runs beside it."""
    assert sweep(capsys, "norm=sn", "seed=0,1", "jobs=2")[0] == 0
    cell = RunFolder.of(load([*SMALL, "norm=sn", "seed=1"]))
    alone = ["train", *SMALL, "norm=sn", "seed=1", f"out={tmp_path}/alone", "threads=1"]
    subprocess.run([sys.executable, "-m", "normlab.cli", *alone], check=True, capture_output=True)
    assert (tmp_path / "alone" / cell.path.name / "metrics.jsonl").read_bytes() == cell.metrics.read_bytes()


def test_what_happens_to_one_cell_costs_no_other(capsys):
    words = ("task._target_=toy_failing.Failing", "task.how=no,kill,exit,raise,memory", "jobs=2")
    code, said = sweep(capsys, *words)
    assert code == 1
    assert statuses(*words) == ["finished", "failed", "failed", "failed", "failed"]
    errors = dict(re.findall(r"^failed: \S+-(\w{8}): (.*) \(log: ", said, re.MULTILINE))
    names = {config.task["how"]: RunFolder.of(config).run()["id"] for config in expand([*SMALL, *words])}
    assert errors == {
        names["kill"]: "the process was killed by SIGKILL",
        names["exit"]: "SystemExit: 7",
        names["raise"]: "RuntimeError: the third pass fails",
        names["memory"]: errors[names["memory"]],
    }
    assert errors[names["memory"]].startswith("out of memory (no room); replicas_per_pass=2 ")
    log = next(Path("results/runs").glob(f"*-{names['raise']}")) / LOG
    assert "RuntimeError: the third pass" in log.read_text()


def test_failed_cells_run_again_and_finished_ones_do_not(capsys):
    words = ("task._target_=toy_failing.Failing", "task.how=raise,no")
    assert sweep(capsys, *words)[0] == 1
    code, said = sweep(capsys, *words)
    assert code == 1 and "1 finished already, 1 to run" in said


def test_stopping_at_the_first_failure(capsys):
    words = ("task._target_=toy_failing.Failing", "task.how=raise,no", "seed=0,1", "jobs=1")
    code, _ = sweep(capsys, *words, "on_failure=stop")
    assert code == 1
    assert statuses(*words) == ["failed", "new", "new", "new"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("norm=bn,gnn",), "norm=gnn: there is no such norm; did you mean 'gn'?"),
        (("norm.mix=var,sdt",), "did you mean 'std'?"),
        (("batch=8x2,8by4",), "did you mean '8x4'?"),
        (("sede=0,1",), "did you mean 'seed'?"),
        (("norm=bn,gn", "on_failure=retry"), "on_failure=retry: expected continue or stop"),
        (("norm=bn,gn", "jobs=-1"), "jobs=-1: expected a whole number"),
        (("norm=bn,gn", "jobs=two"), "jobs=two: expected a whole number"),
        (("norm=bn,gn", "jobs=2", "hydra/launcher=basic"), "jobs=2 is for normlab's own launcher"),
    ],
)
def test_one_bad_cell_and_none_starts(capsys, words, message):
    assert main(["train", "-m", "tracker=none", *words]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and message in said
    assert not Path("results/runs").exists()


@pytest.mark.parametrize("whom", ["the sweep", pytest.param("all its processes", marks=pytest.mark.long)])
def test_a_stopped_sweep_goes_on(whom):
    """SIGTERM: cells finish their update and save; the same command goes on from there."""
    command = [sys.executable, "-m", "normlab.cli", "train", "-m", *SMALL, "epochs=300", "norm=bn,gn", "jobs=2"]
    folders = [RunFolder.of(config) for config in expand([*SMALL, "epochs=300", "norm=bn,gn"])]
    before = [0, 0]
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        targets = [(folder, done + 8) for folder, done in zip(folders, before, strict=True)]
        wait_until(lambda targets=targets: all(folder.updates_done() > target for folder, target in targets))
        if whom == "the sweep":
            process.send_signal(signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + signal.SIGTERM and "the same command goes on from there" in said
        assert [folder.status()["status"] for folder in folders] == ["interrupted", "interrupted"]
        before = [folder.status()["updates"] for folder in folders]
    steps = [row["step"] for row in read_jsonl(folders[0].metrics) if "batch/loss" in row]
    assert steps == list(range(1, before[0] + 1))


def wait_until(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_same_experiment_twice_is_one_cell():
    configs = [load([*SMALL, "norm=sn"]), load([*SMALL, "norm=bn", "norm.mean=[in,ln,bn]", "norm.var=[in,ln,bn]"])]
    assert len(plan(configs)) == 1


def test_each_cell_is_a_plain_run_folder(capsys):
    assert sweep(capsys, "norm=bn,gn")[0] == 0
    for folder in (RunFolder.of(config) for config in expand([*SMALL, "norm=bn,gn"])):
        assert read_json(folder.run_file)["id"] == folder.path.name.rpartition("-")[2]
        assert folder.summary()["status"] == "finished"


# ---- several commands at once --------------------------------------------------------------------------------------


def test_a_run_that_another_command_has_finished_is_left_alone(tmp_path):
    """Between a command's look at a run and its lock on it."""
    config = load([*SMALL, "epochs=1", f"out={tmp_path}"])
    folder = RunFolder.of(config)
    assert start(config, folder) == "finished"
    written = {file: file.stat().st_mtime_ns for file in folder.path.rglob("*") if file.is_file()}
    assert start(config, folder) == "finished"
    assert written == {file: file.stat().st_mtime_ns for file in folder.path.rglob("*") if file.is_file()}


def test_the_same_sweep_typed_twice_at_once(tmp_path):
    """Whichever command runs a cell, nothing is said to have failed."""
    words = [sys.executable, "-m", "normlab.cli", "train", "-m", *SMALL, "norm=bn,gn", "jobs=1"]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert not [line for text in said for line in text.splitlines() if "failed" in line], said
    assert statuses("norm=bn,gn") == ["finished"] * 2
    assert 0 in [process.returncode for process in both]


def test_a_process_that_ended_beside_another_command_is_no_failure(tmp_path):
    config = load([*SMALL, f"out={tmp_path}"])
    folder = RunFolder.of(config)
    folder.create(config)
    ended = SimpleNamespace(join=lambda: None, exitcode=0)
    pool = _Pool([Cell(config, folder)], 1, "stop")
    with locked(folder.path):
        pool._note_end(_Job(pool.cells[0], ended, None))
    assert folder.status() == {"status": "new"} and not pool.stopping
    pool._note_end(_Job(pool.cells[0], ended, None))
    assert folder.status() == {"status": "failed", "error": "the process ended with status 0"} and pool.stopping


def test_no_cell_is_started_on_a_full_disk(tmp_path, capsys):
    config = load([*SMALL, f"out={tmp_path}"])
    folder = RunFolder.of(config)
    folder.create(config)
    pool = _Pool([Cell(config, folder)], 1, "continue")
    pool._note_end(_Job(pool.cells[0], SimpleNamespace(join=lambda: None, exitcode=DiskFullError.exit_status), None))
    assert pool.stopping and folder.status() == {"status": "new"}
    assert conclude(pool.cells, PlainConsole(stderr=True), disk_is_full=pool.disk_is_full) == 74
    assert "The disk is full; the same command goes on" in capsys.readouterr().err


def test_a_warning_of_another_launcher_is_said_once(capsys):
    """submitit's, at every look at its jobs where Slurm has no sacct; test_long_sweeps.py has it in full."""
    logger = logging.Logger("submitit")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.addFilter(_once(set()))
    for call in range(3):
        logger.warning(f"Call #{call} - Bypassing sacct error")
    logger.warning("Another")
    assert capsys.readouterr().err == "submitit: Bypassing sacct error\nsubmitit: Another\n"


def test_a_run_killed_while_it_is_cleared_says_nothing_that_is_gone(tmp_path, monkeypatch):
    config = load([*SMALL, "rerun=true", f"out={tmp_path}"])
    folder = RunFolder.of(config)
    folder.create(config)
    for name in ("status.json", "summary.json", "metrics.jsonl"):
        (folder.path / name).write_text("{}")

    def killed(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        if len(removed) == 3:
            raise KeyboardInterrupt

    removed: list[str] = []
    monkeypatch.setattr(Path, "unlink", killed)
    monkeypatch.setattr("shutil.rmtree", lambda path: removed.append(path.name))
    with pytest.raises(KeyboardInterrupt):
        _clear(folder)
    assert removed[:2] == ["status.json", "summary.json"]


def test_hydras_own_folders_for_jobs_do_not_move_the_runs(capsys, tmp_path):
    """hydra.job.chdir=true changes the working folder; `out` is meant where the words were typed."""
    code, said = sweep(capsys, "hydra/launcher=basic", "hydra.job.chdir=true", "seed=0,1")
    assert code == 0 and "2 finished" in said
    assert len(list((tmp_path / "results" / "runs").glob("*/summary.json"))) == 2


@pytest.mark.parametrize("launcher", ["normlab", "basic"])
def test_a_search_ends_with_the_status_of_its_cells(launcher: str, capsys) -> None:
    """Whoever runs them: a search goes on where a cell failed, and Optuna says nothing of it in the end."""
    search = (f"hydra/launcher={launcher}", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "iterations=2")
    # In an order by chance: in three of four the last cell fails.
    code, said = sweep(capsys, *search, "accumulate=choice(1,1000,2000,3000)")
    assert code == 1
    assert re.search(r"failed: .*needs 16000 samples an update", said)
    (found,) = Path("results/sweeps").glob("*/optimization_results.yaml")
    assert "accumulate: 1\n" in found.read_text()

    code, said = sweep(capsys, *search, "accumulate=choice(1,2)")
    assert code == 0 and "failed" not in said

    code, said = sweep(capsys, *search, "accumulate=choice(1000,2000)")  # Optuna has no best cell, and raises
    assert code == 1
    assert said.splitlines()[-1].startswith("normlab: hydra/sweeper=optuna: ")
