"""W&B offline files are read back from their on-disk format: a LevelDB log of protobuf records."""

import json
import secrets
import struct
import subprocess
import time
from pathlib import Path

import pytest

from normlab.trackers.tracker import NoTracker
from normlab.trackers.wandb import WandB, _attempt_id


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No key of the developer's leaks into the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-config"))


def records(folder: Path):
    """All records of the one .wandb file of a finished run, which W&B's service closes just after `finish` returns."""
    deadline = time.monotonic() + 30
    while True:
        found = stored_records(folder)
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, f"{folder} was never closed"
        time.sleep(0.02)


def stored_records(folder: Path):
    """All records that are on disk: a 7-byte header, then blocks of 32 KiB that hold chunks, each with a
    checksum, a length and a type (1 whole, 2 first, 3 middle, 4 last)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data, position, payload, found = path.read_bytes(), 7, b"", []
    assert data[:4] in (b"", b":W&B")
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):
            break
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(payload))
            payload = b""
    return found


@pytest.fixture
def run_id():
    """Unlike any other test's: W&B's service, shared by the process, keeps ids whose start failed."""
    return secrets.token_hex(4)


@pytest.fixture
def warnings(caplog):
    """What the tracker said so far, W&B's own log left out."""
    return lambda: [r.getMessage() for r in caplog.records if r.name == "normlab.trackers.wandb"]


def history(folder: Path) -> dict[int, float]:
    """train/loss by step."""
    rows = [
        {key(i): json.loads(i.value_json) for i in r.history.item} for r in records(folder) if r.HasField("history")
    ]
    return {row["_step"]: row["train/loss"] for row in rows}


def write_rows(run: Path, steps) -> None:
    lines = [json.dumps({"step": step, "train/loss": float(step)}) + "\n" for step in steps]
    (run / "metrics.jsonl").write_text("".join(lines))


def key(item) -> str:
    return item.key or "/".join(item.nested_key)


def offline_folders(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


@pytest.fixture
def png(tmp_path):
    from matplotlib.figure import Figure

    path = tmp_path / "figure.png"
    Figure().savefig(path)
    return path


def test_an_offline_run_holds_all_that_was_logged(tmp_path, run_id, png, capfd):
    config = {"norm": {"name": "sn", "eps": 1e-5}, "batch": "8x2"}
    tracker = WandB(tmp_path, run_id, "resnet-sn", config, tags=("digits",))
    tracker.log({"train/loss": 1.5, "val/top1": 90.0}, step=10)
    tracker.log({"train/loss": 0.5, "ratios_rf/mean/bn/<49": 0.25}, step=20)
    tracker.image("ratios", png, step=20)
    tracker.finish({"status": "finished", "top1": 98.5})

    (folder,) = offline_folders(tmp_path)
    found = records(folder)
    (run,) = [r.run for r in found if r.HasField("run")]
    assert (run.run_id, run.display_name, run.project, list(run.tags)) == (
        run_id,
        "resnet-sn",
        "normlab",
        ["digits"],
    )
    logged = {key(u): json.loads(u.value_json) for u in run.config.update}
    assert logged["norm"] == {"name": "sn", "eps": 1e-5} and logged["batch"] == "8x2"

    history = [{key(i): json.loads(i.value_json) for i in r.history.item} for r in found if r.HasField("history")]
    steps = {row["_step"]: row for row in history}
    assert steps[10]["train/loss"] == 1.5 and steps[10]["val/top1"] == 90.0
    assert steps[20]["train/loss"] == 0.5 and steps[20]["ratios_rf/mean/bn/<49"] == 0.25
    assert (folder / "files" / steps[20]["ratios/path"]).read_bytes() == png.read_bytes()

    summary = {key(u): json.loads(u.value_json) for r in found for u in r.summary.update}
    assert summary["top1"] == 98.5 and summary["status"] == "finished"
    assert not list(folder.rglob("code/*"))
    assert capfd.readouterr() == ("", "")


def test_offline_attempts_do_not_share_an_id(tmp_path, run_id):
    for loss in (2.0, 1.0):
        tracker = WandB(tmp_path, run_id, "resnet-sn", {})
        tracker.log({"train/loss": loss}, step=int(10 / loss))
        tracker.finish({"status": "finished"})
    runs = [next(r.run for r in records(folder) if r.HasField("run")) for folder in offline_folders(tmp_path)]
    assert {(r.run_id, r.display_name, r.run_group) for r in runs} == {
        (run_id, "resnet-sn", ""),
        (f"{run_id}-2", "resnet-sn-2", run_id),
    }


@pytest.mark.parametrize(
    ("earlier", "online", "offline"),
    [
        ([], "x-1", "x-1"),
        (["offline-run-20250101_000000-x-1"], "x-1-2", "x-1-2"),
        (["run-20250101_000000-x-1", "latest-run"], "x-1", "x-1-2"),
        (["offline-run-20250101_000000-x-1", "run-20250102_000000-x-1-2"], "x-1-2", "x-1-3"),
        (["run-20250101_000000-x-1", "offline-run-20250102_000000-x-1-2"], "x-1", "x-1-3"),
    ],
)
def test_attempt_id(tmp_path, earlier, online, offline):
    for name in earlier:
        (tmp_path / name).mkdir()
    assert _attempt_id(tmp_path, "x-1", offline=False) == online
    assert _attempt_id(tmp_path, "x-1", offline=True) == offline


@pytest.mark.parametrize("api_key", ["malformed", "0123456789" * 4])
def test_what_cannot_start_online_is_kept_offline(tmp_path, run_id, monkeypatch, warnings, api_key):
    monkeypatch.setenv("WANDB_API_KEY", api_key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr("normlab.trackers.wandb._INIT_SECONDS", 1.0)
    tracker = WandB(tmp_path, run_id, "resnet-sn", {})
    tracker.log({"train/loss": 1.5}, step=10)
    tracker.finish({"status": "finished"})
    (folder,) = offline_folders(tmp_path)
    assert any(key(i) == "train/loss" for r in records(folder) for i in r.history.item)
    (warning,) = warnings()
    assert warning.startswith("W&B could not start, keeping its data offline: ")
    assert warning.endswith(f"; `wandb sync {folder}` uploads them")


def test_a_broken_wandb_stops_nothing(tmp_path, run_id, monkeypatch, warnings, png):
    import wandb

    def broken(**_):
        raise RuntimeError("the service is gone\nwith details")

    monkeypatch.setattr(wandb, "init", broken)
    tracker = WandB(tmp_path, run_id, "resnet-sn", {})
    tracker.log({"train/loss": 1.5}, step=10)
    tracker.image("ratios", png, step=10)
    tracker.finish({})
    assert warnings() == ["W&B could not start, going on without: the service is gone; the service is gone"]


def test_a_failure_while_training_starts_again_with_all_rows(tmp_path, run_id, monkeypatch, warnings):
    tracker = WandB(tmp_path, run_id, "resnet-sn", {}, mode="offline")
    first = tracker._run

    def broken(*_, **__):
        raise RuntimeError("no room")

    write_rows(tmp_path, range(1, 4))  # the engine writes first, and logs then
    monkeypatch.setattr(first, "log", broken)
    for step in (3, 4):
        tracker.log({"train/loss": float(step)}, step=step)
    tracker.finish({})
    (warning,) = warnings()
    again = tmp_path / "wandb" / Path(tracker._run.settings.sync_dir).name
    assert warning == f"W&B stopped, keeping its data offline: no room; `wandb sync {again}` uploads them"
    assert history(again) == {step: float(step) for step in range(1, 5)}
    first.finish()


def test_a_second_failure_while_training_is_the_last(tmp_path, run_id, monkeypatch, warnings):
    import wandb

    tracker = WandB(tmp_path, run_id, "resnet-sn", {}, mode="offline")

    def broken(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(wandb.Run, "log", broken)
    for step in range(4):
        tracker.log({"train/loss": 1.5}, step=step)
    tracker.finish({})
    assert [warning.partition(":")[0] for warning in warnings()] == [
        "W&B stopped, keeping its data offline",
        "W&B stopped again, going on without",
    ]


def test_wandb_mode_is_obeyed(tmp_path, run_id, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = WandB(tmp_path, run_id, "resnet-sn", {})
    tracker.log({"train/loss": 1.5}, step=10)
    tracker.finish({})
    assert offline_folders(tmp_path) == []


def layers(step: int) -> list[dict]:
    """Of three layers, two of them small, whose ratios move with the step."""
    share = step / 100
    common = {"part": None, "kernel_size": [3, 3], "shortcut": False}
    return [
        {"layer": f"conv{k}", "index": k, "receptive_field": 20 * k, **common,
         "mean": {"in": share, "bn": 1 - share}, "var": {"in": 1 - share, "bn": share}}
        for k in (1, 2, 3)
    ]  # fmt: skip


def write_ratios(run: Path, steps) -> None:
    rows = [{"step": step, "epoch": step / 10, "layers": layers(step)} for step in steps]
    (run / "ratios.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_ratios_are_few_charts_and_one_table(tmp_path, run_id):
    """Averages by receptive field are charts; those of each layer at each moment are a table at the end."""
    write_ratios(tmp_path, (10, 20))
    tracker = WandB(tmp_path, run_id, "resnet-sn", {})
    for step in (10, 20):
        tracker.ratios(layers(step), step / 10, step)
    tracker.finish({})
    (folder,) = offline_folders(tmp_path)
    found = [
        {key(i): json.loads(i.value_json) for i in r.history.item} for r in records(folder) if r.HasField("history")
    ]
    charts = {
        name for row in found for name in row if name.startswith("ratios") and not name.startswith("ratios_of_layers")
    }
    groups = ("<49", "49-99", "all")
    assert charts == {f"ratios_rf/{m}/{s}/{g}" for m in ("mean", "var") for s in ("in", "bn") for g in groups}
    (path,) = folder.glob("files/media/table/ratios_of_layers_*.json")
    table = json.loads(path.read_text())
    assert table["columns"] == [
        "epoch",
        "step",
        "layer",
        "index",
        "part",
        "receptive_field",
        "moment",
        "scope",
        "ratio",
    ]
    assert len(table["data"]) == 2 * 3 * 2 * 2
    assert [1.0, 10, "conv1", 1, None, 20, "mean", "in", 0.1] in table["data"]
    assert [2.0, 20, "conv3", 3, None, 60, "var", "in", 0.8] in table["data"]


def test_a_table_of_many_moments_has_the_last_one(tmp_path, run_id, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb.Table, "MAX_ARTIFACT_ROWS", 30)  # 12 a moment
    write_ratios(tmp_path, (10, 20, 30, 40, 50))
    tracker = WandB(tmp_path, run_id, "resnet-sn", {})
    tracker.finish({})
    (path,) = offline_folders(tmp_path)[0].glob("files/media/table/ratios_of_layers_*.json")
    assert sorted({row[1] for row in json.loads(path.read_text())["data"]}) == [20, 50]


def started(run: Path, run_id: str, **settings):
    """What W&B has of a run with these settings."""
    tracker = WandB(run, run_id, "resnet-sn", {}, mode="offline", **settings)
    tracker.finish({})
    return next(r.run for r in records(offline_folders(run)[-1]) if r.HasField("run"))


def test_a_run_is_called_as_settings_say(tmp_path, run_id):
    own = {
        "name": "first",
        "group": "ours",
        "job_type": "train",
        "notes": "a try",
        "tags": ["a", "b"],
        "id": f"own{run_id}",
    }
    found = started(tmp_path, run_id, **own)
    assert (found.run_id, found.display_name, found.run_group) == (f"own{run_id}", "first", "ours")
    assert (found.job_type, found.notes, list(found.tags)) == ("train", "a try", ["a", "b"])


def test_a_cell_is_of_its_sweep(tmp_path, run_id):
    """Unless it is told another group; an id that is given to all cells stays each one's own."""
    assert started(tmp_path, run_id, sweep="12345678").run_group == "12345678"
    found = started(tmp_path, run_id, sweep="12345678", group="ours", id="mine")
    assert (found.run_group, found.run_id) == ("ours", f"mine-{run_id}")


def test_it_measures_the_machine_and_notes_the_commit(tmp_path, run_id, monkeypatch):
    """Of the working folder, without its code."""
    for words in (
        ["init", "-q"],
        ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True)
    monkeypatch.chdir(tmp_path)
    for is_on in (True, False):
        run = tmp_path / str(is_on)
        run.mkdir()
        tracker = WandB(run, run_id, "resnet-sn", {}, mode="offline", git=is_on, system_metrics=is_on)
        assert tracker._run.settings.x_disable_stats != is_on
        tracker.finish({})
        found = records(offline_folders(run)[0])
        (commit_of,) = {r.run.git.commit for r in found if r.HasField("run")}
        assert (commit_of == commit.stdout.strip()) == is_on
        assert is_on or not any(r.HasField("stats") for r in found)  # where they are on, W&B's first comes when it may
        assert not list(run.rglob("*.patch")) and not list(run.rglob("code/*"))


def test_no_tracker_writes_nothing(tmp_path, run_id):
    tracker = NoTracker(tmp_path, run_id, "resnet-sn", {})
    tracker.log({"train/loss": 1.5}, step=10)
    tracker.image("ratios", tmp_path / "missing.png", step=10)
    tracker.finish({})
    assert list(tmp_path.iterdir()) == []
