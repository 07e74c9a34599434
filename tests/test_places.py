"""Odd places to be typed in: threads, folders that are gone, machines without a home, other programs' launchers."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from killing import SMALL
from sealed import rewrite

from normlab.cli import main
from normlab.cli.commands import _without_tilde
from normlab.config import load
from normlab.console import PlainConsole
from normlab.errors import plain
from normlab.norm.kernels import UnavailableError, native
from normlab.runs.folder import RunFolder

QUICK = [*SMALL, "iterations=2"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "normlab", *words]


def test_python_m_normlab(tmp_path):
    done = subprocess.run(command("list", "weights"), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "Weight Standardization" in done.stdout


def test_a_thread_may_be_the_one_that_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended: list[int] = []
    for words in (["train", *QUICK], ["train", "-m", *QUICK, "seed=1,2"], ["list", "norms"]):
        thread = threading.Thread(target=lambda words=words: ended.append(main(words)))
        thread.start()
        thread.join()
    assert ended == [0, 0, 0]


def test_a_working_folder_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["train", *QUICK, f"out={tmp_path}"]) == 2
    assert "the working folder does not exist any more" in capsys.readouterr().err


def test_a_sweep_writes_beside_its_runs_alone(tmp_path, monkeypatch):
    """The working folder may be one that nothing can be written to."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["train", "-m", *QUICK, "seed=0,1", f"out={tmp_path / 'it is' / 'runs'}"]) == 0
    assert not list(here.iterdir())
    assert len(list((tmp_path / "it is" / "runs").glob("*/summary.json"))) == 2


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """`out=~/runs`, which a shell leaves as it is, plain and in quotes."""
    monkeypatch.setenv("HOME", str(tmp_path / "it's home"))
    for word in ("out=~/runs", "out='~/runs'", 'out="~/runs"'):
        assert load([_without_tilde(word)]).out == str(tmp_path / "it's home" / "runs")
    assert _without_tilde("norm=sn") == "norm=sn" and _without_tilde("~/x") == "~/x"


def test_torchrun_is_told_what_to_type(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert main(["train", *QUICK]) == 2
    assert "devices=N` without torchrun" in capsys.readouterr().err


def test_without_a_home_the_kernels_are_torchs(monkeypatch):
    for name in ("NORMLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UnavailableError, match="no home folder to keep them in; NORMLAB_CACHE=FOLDER names one"):
        native._cache()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes another user")
def test_a_user_without_a_home_and_a_name_can_train():
    other = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "NORMLAB_CACHE")}
    if subprocess.run([*other, sys.executable, "-c", "import torch"], env=environment, capture_output=True).returncode:
        pytest.skip("another user cannot read this environment")
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        Path(place).chmod(0o777)
        words = [*other, *command("train", *QUICK, f"out={place}/runs")]
        done = subprocess.run(words, env=environment, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("launcher", ["[1,2]", "{a:1}", "a,b"])
def test_a_launcher_that_is_none_is_one_line(capsys, launcher):
    assert main(["train", "-m", f"hydra/launcher={launcher}", "norm=bn"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "hydra/launcher=" in errors[0]


def test_a_sweep_that_sigterm_ends_says_so(tmp_path):
    """With the status of a run that it ends: 143, and not that of Ctrl-C."""
    words = command("train", "-m", *SMALL, "epochs=500", "seed=0,1", "jobs=1", f"out={tmp_path}")
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("*/metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM


def test_wandbs_own_variables_are_obeyed(tmp_path):
    """In a process of its own: W&B keeps what it was told first."""
    script = (
        "import sys; from pathlib import Path; from normlab.trackers.wandb import WandB\n"
        "for more in ({}, {'project': 'other'}):\n"
        "    tracker = WandB(Path(sys.argv[1]), '1a2b3c4d', 'name', {}, **more)\n"
        "    run = tracker._run\n"
        "    print(run.project, run.name, run.group, run.id, run.job_type, run.notes, *run.tags)\n"
        "    tracker.finish({})\n"
    )
    own = {"MODE": "offline", "PROJECT": "mine", "NAME": "called", "RUN_GROUP": "those", "RUN_ID": "5e6f7a8b"}
    own |= {"JOB_TYPE": "train", "NOTES": "why", "TAGS": "a,b"}
    words = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(
        words, env=os.environ | {f"WANDB_{k}": v for k, v in own.items()}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        "mine called those 5e6f7a8b train why a b",
        "other called those 5e6f7a8b-2 train why a b",
    ], done.stderr


# ---- what is printed is data ---------------------------------------------------------------------------------------

ESCAPES = "\x1b]0;owned\x07 \x1b[2J\x9b31m \u202egnp.exe"


def test_a_terminal_gets_no_commands_from_names(capsys):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", plain(ESCAPES))
    assert plain("über 3×3 µ\n\t[/b] 日本") == "über 3×3 µ\n\t[/b] 日本"
    PlainConsole(width=200).print(f"a [/b] [red]name[/red] {ESCAPES}")
    said = capsys.readouterr().out
    assert "[/b] [red]name[/red]" in said and "\x1b" not in said and "\\x1b]0;owned" in said
    assert main(["show", f"x{ESCAPES}"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_brackets_in_a_path_are_no_markup(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a[/b]c"
    small = [word for word in QUICK if not word.startswith("task.")]
    assert main(["train", "-m", *small, "seed=0,1", f'out="{out}"', "task._target_=toy_failing.Failing",
                 "task.how=raise", "task.at=1"]) == 1  # fmt: skip
    assert "failed: " in capsys.readouterr().err


def test_a_strangers_summary_is_shown_as_it_is(tmp_path, capsys):
    assert main(["train", *QUICK, f"out={tmp_path}"]) == 0
    folder = RunFolder.of(load([*QUICK, f"out={tmp_path}"]))
    rewrite(folder.summary_file, lambda summary: summary.update(norm="[/red]\x1b[31mX"))
    capsys.readouterr()
    assert main(["show", str(folder.path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "[/red]\\x1b[31mX" in said
