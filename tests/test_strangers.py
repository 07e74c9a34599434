"""What others on the machine, and run folders of strangers, cannot do."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import SMALL

from normlab.cli import main
from normlab.config import load
from normlab.errors import UserError
from normlab.launch import elastic
from normlab.processes.lifetimes import LAUNCHER
from normlab.reading import read_json
from normlab.runs.folder import RunFolder
from normlab.runs.lock import locked
from normlab.writing import append_jsonl, cut

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")


def command(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "normlab.cli", "train", *SMALL, *words, f"out={out}"]


def ranks(out: Path) -> list[int]:
    """Processes of normlab.launch.rank on runs in `out`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"normlab.launch.rank" in words and str(out).encode() in words:
                found.append(int(entry.name))
    return found


def wait_for(what, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def listening(pids: list[int]) -> set[str]:
    """Addresses on which processes listen, in the kernel's hexadecimal; "0" of any length stands for all of them."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                found.add(words[1].partition(":")[0])
    return found


@linux
def test_on_one_machine_nothing_listens_but_on_the_loopback(tmp_path):
    process = subprocess.Popen(command(tmp_path, "devices=2", "epochs=200"), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(tmp_path.glob("*/metrics.jsonl")))
        addresses = listening([process.pid, *ranks(tmp_path)])
        assert addresses == {"0100007F"}  # gloo's, between the ranks; 127.0.0.1, its bytes as the kernel has them
    finally:
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not ranks(tmp_path)


def test_launcher_and_ranks_meet_in_a_folder_of_the_users_alone():
    settings = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "rdzv_backend": "c10d", "rdzv_configs": {}}
    with elastic._meeting_here(settings) as config:
        folder = Path(config.rdzv_endpoint).parent
        assert config.rdzv_configs["store_type"] == "file" and os.environ[elastic.MEETING] == str(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists() and elastic.MEETING not in os.environ and LAUNCHER not in os.environ


def test_nodes_know_each_other_by_a_secret_of_the_run(tmp_path):
    folders = [RunFolder(tmp_path), RunFolder(tmp_path)]
    one, other = (elastic._secret(folder) for folder in folders)
    assert one == other and len(one) == 32
    assert stat.S_IMODE((tmp_path / ".rendezvous").stat().st_mode) == 0o600


@linux
def test_ranks_that_still_import_die_with_their_launcher(tmp_path):
    """kill -9 of the launcher's group, while its ranks have not come as far as torch."""
    process = subprocess.Popen(command(tmp_path, "devices=2"), stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: len(ranks(tmp_path)) == 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not ranks(tmp_path), 10)


@linux
def test_a_rank_whose_launcher_is_gone_already_does_not_begin(tmp_path):
    """Its parent is another by the time that it asks."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    words = [sys.executable, "-m", "normlab.launch.rank", str(tmp_path), "5"]
    done = subprocess.run(words, env=os.environ | {LAUNCHER: str(gone.pid)}, timeout=60)
    assert done.returncode == -signal.SIGKILL


# ---- folders of strangers ------------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path) -> Path:
    file = tmp_path / "mine.txt"
    file.write_text("my notes\nlast line")
    return file


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "ratios.jsonl", "estimates.jsonl"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_a_run_folder_is_never_followed(tmp_path, victim, name, dangling):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to("/nonexistent/x" if dangling else victim)
    with pytest.raises(UserError, match=rf"{name} is a symbolic link"):
        if name == "lock":
            with locked(run):
                pass
        else:
            append_jsonl(run / name, [{"step": 1}])
    if not dangling:
        with pytest.raises(UserError, match="symbolic link"):
            cut(run / name, 3)
    assert victim.read_text() == "my notes\nlast line"


def test_folders_behind_links_are_neither_pruned_nor_cleared(tmp_path, victim, capsys):
    own = tmp_path / "checkpoints of another run"
    own.mkdir()
    for updates in range(5):
        (own / f"{updates:06d}.pt").write_text("mine")
    config = load([*SMALL, "iterations=2", f"out={tmp_path / 'runs'}"])
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    folder.checkpoints.symlink_to(own)
    words = ["train", *SMALL, "iterations=2", f"out={tmp_path / 'runs'}"]
    assert main(words) == 2
    assert "checkpoints is a symbolic link" in capsys.readouterr().err
    assert len(list(own.iterdir())) == 5
    assert main([*words, "rerun=true"]) == 0  # the link goes, and not what it leads to
    assert len(list(own.iterdir())) == 5 and not folder.checkpoints.is_symlink()


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A device has no end, and a pipe is waited for."""
    (tmp_path / "device").symlink_to(os.devnull)
    os.mkfifo(tmp_path / "pipe")
    for name in ("device", "pipe"):
        with pytest.raises(UserError, match=f"{name}: this is no file"):
            read_json(tmp_path / name)


def test_no_file_of_a_run_is_executable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *SMALL, "iterations=2", "seed=0,1", f"out={tmp_path / 'runs'}"]) == 0
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any(path.name == "log.txt" for path in files)
    assert not [path for path in files if path.stat().st_mode & 0o111]


@linux
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs unshare, as root")
def test_a_machine_whose_name_has_no_address(tmp_path):
    words = " ".join(f"'{word}'" for word in command(tmp_path, "devices=2", "iterations=2"))
    script = f"hostname no-such-host-xyz && exec {words}"
    done = subprocess.run(["unshare", "-u", "bash", "-c", script], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
