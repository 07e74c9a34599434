"""`normlab doctor`: what it says of this machine, and of one where something is wrong."""

import json
import os
import resource
import shutil
from collections import namedtuple

import pytest
import torch

from normlab.cli import main
from normlab.doctor import collectives, hardware, software, storage
from normlab.doctor.check import Check
from normlab.doctor.diagnose import checks, doctor, examine

Memory = namedtuple("Memory", "f_bavail f_frsize")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def only(check) -> Check:
    (result,) = check()
    return result


def test_the_doctor_finds_this_machine_well_enough(tmp_path, capsys):
    """All checks, the two processes that meet over loopback among them; the table has all, and so has the file."""
    report = tmp_path / "doctor.json"
    assert main(["doctor", "--json", str(report), f"out={tmp_path / 'not' / 'there'}"]) == 0
    results = {result["name"]: result for result in json.loads(report.read_text())}
    wanted = {"Python", "packages", "torchvision", "CPU", "memory", "gloo", "W&B", "disk", "datasets", "open files"}
    assert wanted <= results.keys()
    assert results["gloo"] == {
        "name": "gloo",
        "result": "2 processes added up their numbers",
        "level": "ok",
        "advice": "",
    }
    assert "digits" in results["datasets"]["result"]
    assert all(result["advice"] for result in results.values() if result["level"] != "ok")
    printed = capsys.readouterr().out
    assert all(name in printed for name in results) and "0 fail" in printed
    assert not (tmp_path / "not").exists()


def test_what_fails_is_the_exit_status(tmp_path, monkeypatch, capsys):
    def collapse():
        yield Check("before", "fine")
        raise ValueError("of\nno use")

    assert examine("collapse", collapse) == [
        Check("before", "fine"),
        Check("collapse", "could not be checked: of no use", "fail", "repair what the message names"),
    ]
    monkeypatch.setattr("normlab.doctor.diagnose.checks", lambda out: {"collapse": collapse})
    assert doctor(tmp_path) == 1
    assert "1 ok, 0 warn, 1 fail" in capsys.readouterr().out
    assert "disk" in checks(tmp_path)


def test_packages_that_do_not_fit(monkeypatch):
    wanted = ["torch>=99", "no-such-package>=1", "numpy>=1.0", 'never; extra == "dev"']
    monkeypatch.setattr(software.importlib.metadata, "requires", lambda name: wanted)
    newer, absent, rest = software.packages()
    assert (newer.name, newer.level, newer.advice) == ("torch", "fail", "pip install 'torch>=99'")
    assert (absent.name, absent.result, absent.level) == ("no-such-package", "not installed", "fail")
    assert rest.result.startswith("numpy ") and rest.level == "ok"
    monkeypatch.setattr(software.platform, "python_version", lambda: "3.9.1")
    assert only(software.python).level == "fail"


def test_little_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: Memory(64, 1_000_000))  # docker's default
    result = only(hardware.shared_memory)
    assert (result.level, result.result) == ("warn", "0.06 GB free in /dev/shm") and "--shm-size" in result.advice
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    assert (only(hardware.open_files).level, only(hardware.open_files).result) == ("warn", "256 (up to 4096)")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    assert only(lambda: storage.disk(tmp_path)).level == "warn"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(path, *pieces):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(storage, "write_bytes", refuse)
    result = only(lambda: storage.disk(tmp_path))
    assert result.level == "fail" and "Permission denied" in result.result and not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    assert only(lambda: storage.disk(tmp_path / "file")).level == "fail"


def test_processes_that_cannot_meet(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such_interface")
    result = only(collectives.gloo)
    assert result.level == "fail" and "GLOO_SOCKET_IFNAME" in result.advice


def test_wandb(monkeypatch):
    monkeypatch.setattr("normlab.trackers.wandb.usable_mode", lambda mode: None)
    assert only(software.wandb).result == "online: there is a key"
    monkeypatch.setattr("normlab.trackers.wandb.usable_mode", lambda mode: "offline")
    assert only(software.wandb).result.startswith("offline")


@pytest.mark.gpu
@on_gpu
def test_gpus_and_nccl():
    assert [result.level for result in hardware.gpus()] == ["ok"] * torch.cuda.device_count()
    assert only(collectives.nccl).level == "ok"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--choas"], "did you mean '--chaos'?"),
        (["kills=3"], "kills=3"),
        (["--chaos", "kill=3"], "did you mean 'kills'?"),
        (["--chaos", "kills=many"], "kills=many"),
        (["--chaos", "ranks=0"], "ranks=0"),
        (["--chaos", "ranks=5"], "ranks=5: expected one of 1, 2, 3, 4"),
        (["--json"], "--json: expected a file"),
    ],
)
def test_words_that_the_doctor_does_not_know(words, message, capsys):
    assert main(["doctor", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
