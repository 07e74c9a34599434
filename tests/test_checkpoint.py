"""Checkpoints: whole or not there, told from damaged ones, kept in number, harmless; and disks that are full."""

import errno
import os
import pickle
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from killing import SHORT, SMALL, Told, attempt, config, differences, outcome, use_up

from normlab import writing
from normlab.cli import main
from normlab.config import Config
from normlab.errors import BusyError, DiskFullError, UserError
from normlab.launch.start import start
from normlab.progress import silent
from normlab.runs import checkpoint
from normlab.runs.folder import RunFolder, checkpoint_files
from normlab.runs.lock import locked

WEIGHT = torch.arange(6.0)
STATE = {"id": "1a2b3c4d", "updates": 7, "phases": {}, "rows": {}, "evaluated": 0, "model": {"weight": WEIGHT}}


def steps(folder: Path) -> list[int]:
    return [int(file.stem) for file in checkpoint_files(folder)]


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path, STATE, keep=1)
    loaded = checkpoint.load(tmp_path / "000007.pt", "1a2b3c4d")
    assert loaded["updates"] == 7 and torch.equal(loaded["model"]["weight"], torch.arange(6.0))


def test_the_last_ones_are_kept(tmp_path):
    for updates in (8, 9, 10, 1_000_001):
        checkpoint.save(tmp_path, STATE | {"updates": updates}, keep=3)
    assert steps(tmp_path) == [9, 10, 1_000_001]


def test_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    """The file is flushed, then renamed within its folder, then the folder is flushed."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        calls.append(("rename", f"{source} {target}"))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    checkpoint.save(tmp_path, STATE, keep=1)
    (_, temporary), rename, folder = calls
    assert Path(temporary).parent == tmp_path and rename == ("rename", f"{temporary} {tmp_path / '000007.pt'}")
    assert folder == ("fsync", str(tmp_path))


def test_rows_reach_the_disk_before_the_checkpoint_behind_them(tmp_path, monkeypatch):
    synced: list[str] = []
    fsync = os.fsync

    def note_fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_fsync)
    settings = config(tmp_path, "iterations=4")
    start(settings, RunFolder.of(settings), silent)
    saves = [i for i, name in enumerate(synced) if name.startswith(".0000")]
    assert len(saves) == 2
    for i in saves:
        assert {"metrics.jsonl", "ratios.jsonl"} <= set(synced[i - 4 : i])


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_every_damage_is_seen(tmp_path, damage):
    checkpoint.save(tmp_path, STATE, keep=1)
    file, chance = tmp_path / "000007.pt", random.Random(0)
    whole = file.read_bytes()
    for _ in range(200):
        at, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
        file.write_bytes(
            whole[:at] if damage == "truncated" else whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
        )
        with pytest.raises(checkpoint.DamagedError, match="is damaged"):
            checkpoint.load(file, "1a2b3c4d")


def stopped(out: Path) -> Config:
    settings = config(out)
    assert attempt(settings, ("training", 7)) == -signal.SIGKILL
    assert steps(RunFolder.of(settings).checkpoints) == [4, 6]
    return settings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    settings = config(tmp_path_factory.mktemp("whole"))
    assert attempt(settings) == 0
    return outcome(settings)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_goes_on_from_the_last_good_one(tmp_path, caplog, whole, damaged):
    settings = stopped(tmp_path)
    files = checkpoint_files(RunFolder.of(settings).checkpoints)[-damaged:]
    for file in files:
        os.truncate(file, 1000)
    done: list[int] = []
    start(settings, RunFolder.of(settings), Told(lambda what, n, total: done.append(n) if what == "training" else None))
    for file in files:
        assert f"{file} is damaged" in caplog.text
    assert done[0] == (5 if damaged == 1 else 1)
    assert ("starting from the beginning" in caplog.text) == (damaged == 2)
    assert differences(outcome(settings), whole) == []


def test_one_of_another_run_is_refused(tmp_path, capsys):
    checkpoint.save(tmp_path, STATE, keep=1)
    settings = stopped(tmp_path)
    file = checkpoint_files(RunFolder.of(settings).checkpoints)[-1]
    shutil.copy(tmp_path / "000007.pt", file)
    assert main(["train", *SMALL, *SHORT, f"out={tmp_path}"]) == 2
    assert "belongs to run 1a2b3c4d, not to" in capsys.readouterr().err
    assert file.is_file()


class _Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_nothing_in_one_is_executed(tmp_path, monkeypatch):
    """Even if its digest is right."""
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE, "bomb": _Bomb()}, "bomb")
    data = Path("bomb").read_bytes()
    writing.write_bytes(
        tmp_path / "000007.pt", checkpoint._HEADER % checkpoint.hashlib.sha256(data).hexdigest().encode(), data
    )
    with pytest.raises(UserError, match=r"000007\.pt is no checkpoint of normlab"):
        checkpoint.load(tmp_path / "000007.pt", "1a2b3c4d")
    assert not Path("exploded").exists()
    pickle.loads(pickle.dumps(_Bomb()))  # it would have worked
    assert Path("exploded").exists()


def test_what_killed_writes_left_is_removed(tmp_path):
    settings = stopped(tmp_path)
    folder = RunFolder.of(settings)
    left = [folder.path / ".status.json.aa.tmp", folder.checkpoints / ".000008.pt.bb.tmp"]
    for file in left:
        file.write_text("half of i")
    assert attempt(settings) == 0
    assert not any(file.exists() for file in left)


# ---- full disks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [("training", 5), ("evaluating", 256), ("measuring statistics", 8)])
def test_a_disk_that_is_full_ends_the_run_in_one_line_and_costs_nothing(small_disk, capfd, whole, when):
    settings, filler = config(small_disk), small_disk / "filler"
    folder = RunFolder.of(settings)

    def fill(what: str, done: float, total: int) -> None:
        if (what, done) == when and not filler.exists():
            use_up(small_disk)

    with pytest.raises(DiskFullError) as error:
        start(settings, folder, Told(fill))
    assert error.value.exit_status == 74
    assert str(error.value).startswith(str(folder.path)) and "the disk is full; it needs" in str(error.value)
    assert not list(folder.path.rglob(".*"))
    before = steps(folder.checkpoints)
    assert main(["train", *SMALL, *SHORT, f"out={small_disk}"]) == 74  # still full
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "the disk is full" in said[0]
    assert steps(folder.checkpoints) == before
    filler.unlink()
    assert main(["train", *SMALL, *SHORT, f"out={small_disk}"]) == 0
    assert differences(outcome(settings), whole) == []


def test_a_full_disk_keeps_nobody_from_a_lock(small_disk):
    (small_disk / "run").mkdir()
    use_up(small_disk)
    with locked(small_disk / "run"), pytest.raises(BusyError), locked(small_disk / "run"):
        pass


def test_a_folder_that_a_full_disk_has_no_room_for(monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results")

    monkeypatch.setattr("normlab.launch.start.start", full)
    assert main(["train", *SMALL, *SHORT, "out=nowhere"]) == DiskFullError.exit_status
    assert capsys.readouterr().err == "normlab: results: No space left on device\n"


def test_a_file_over_the_limit_is_one_line_too(tmp_path):
    file = tmp_path / "file"
    writing.write_text(file, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"over the limit on the size of a file .* needs 0\.002 MB"):
            writing.write_text(file, "after" * 400)
        with pytest.raises(DiskFullError):
            writing.append_jsonl(file, [{"step": i} for i in range(200)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text().startswith("before") or file.read_text().startswith('{"step": 0}')
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("missing", ["phases", "rows", "evaluated"])
def test_one_of_an_older_version_is_named_as_such(tmp_path, missing):
    """Before there were phases, digests of rows, or evaluations at any update; a run cannot go on from it."""
    old = {key: value for key, value in STATE.items() if key != missing}
    checkpoint.save(tmp_path, old, keep=1)
    with pytest.raises(UserError, match=r"000007\.pt was written by an older version of normlab; rerun=true starts"):
        checkpoint.load(tmp_path / "000007.pt", "1a2b3c4d")
