"""TensorBoard, CSV, and several trackers at once: what they keep is what was logged."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_tracker import layers

from normlab.cli import main
from normlab.config import load
from normlab.config.compose import recorded
from normlab.errors import UserError
from normlab.runs.folder import RunFolder
from normlab.schema import bind
from normlab.trackers.csv import CSV
from normlab.trackers.tensorboard import TensorBoard
from normlab.trackers.tracker import Several, in_sweep

SUMMARY = {"updates": 40, "metrics": {"moving_average": {"top1": 90.0}, "batch_average": {"top1": 91.5}}}
SMALL = ("model.width=4", "data.fraction=0.1", "batch=4x4", "epochs=1", "batch_average.samples=64", "threads=1")


def rows(run: Path, name: str) -> list[dict[str, str]]:
    with (run / "csv" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(tracker, steps) -> None:
    for step in steps:
        tracker.log({"epoch": step / 10, "batch/loss": 1 / step}, step)
    tracker.log({"epoch": steps[-1] / 10, "train/loss": 0.1, "val/top1": 50.0 + steps[-1]}, steps[-1])
    tracker.ratios(layers(steps[-1]), steps[-1] / 10, steps[-1])


def test_csv_files(tmp_path):
    tracker = CSV(tmp_path, "x", "name", {})
    log(tracker, [10, 20])
    tracker.finish(SUMMARY)
    assert rows(tmp_path, "updates") == [
        {"step": "10", "epoch": "1.0", "loss": "0.1"},
        {"step": "20", "epoch": "2.0", "loss": "0.05"},
    ]
    assert rows(tmp_path, "evaluations") == [{"step": "20", "epoch": "2.0", "train/loss": "0.1", "val/top1": "70.0"}]
    of_layers = rows(tmp_path, "ratios")
    assert len(of_layers) == 3 * 2 * 2
    assert of_layers[0] == {
        "step": "20", "epoch": "2.0", "layer": "conv1", "index": "1", "part": "", "receptive_field": "20",
        "moment": "mean", "scope": "in", "ratio": "0.2",
    }  # fmt: skip
    assert [(r["estimator"], r["value"]) for r in rows(tmp_path, "summary")] == [
        ("moving_average", "90.0"),
        ("batch_average", "91.5"),
    ]


def test_a_csv_of_a_run_that_goes_on_has_each_step_once(tmp_path):
    """The second attempt goes on from step 20, as its checkpoint does; a new column is empty above."""
    log(CSV(tmp_path, "x", "name", {}), [10, 20, 30])
    again = CSV(tmp_path, "x", "name", {})
    log(again, [30])
    log(again, [40])
    again.log({"epoch": 5.0, "train/loss": 0.1, "val/top5": 99.0}, 50)
    assert [row["step"] for row in rows(tmp_path, "updates")] == ["10", "20", "30", "40"]
    found = rows(tmp_path, "evaluations")
    assert [(row["step"], row["val/top1"], row["val/top5"]) for row in found] == [
        ("30", "80.0", ""),
        ("40", "90.0", ""),
        ("50", "", "99.0"),
    ]


def scalars(run: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    found.Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]} | {
        kind: dict.fromkeys(found.Tags()[kind]) for kind in ("images", "histograms", "tensors")
    }


def test_tensorboard(tmp_path):
    picture = tmp_path / "ratios.png"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(picture)
    tracker = TensorBoard(tmp_path, "x", "name", {"norm": {"eps": 1e-5}})
    log(tracker, [10, 20])
    tracker.image("figures/ratios", picture, 20)
    tracker.finish(SUMMARY)
    found = scalars(tmp_path)
    assert found["batch/loss"] == pytest.approx({10: 0.1, 20: 0.05}) and found["val/top1"] == {20: 70.0}
    assert found["ratios_rf/mean/in/all"] == pytest.approx({20: 0.2})
    assert found["summary/batch_average/top1"] == {40: 91.5}
    assert list(found["images"]) == ["figures/ratios"]
    assert set(found["histograms"]) == {f"ratios_of_layers/{m}/{s}" for m in ("mean", "var") for s in ("in", "bn")}
    assert list(found["tensors"]) == ["settings/text_summary"]


def test_tensorboard_of_a_run_that_goes_on(tmp_path):
    """What the first attempt logged behind its checkpoint is not shown."""
    first = TensorBoard(tmp_path, "x", "name", {})
    log(first, [10, 20, 30])
    first.finish({"status": "interrupted", "updates": 30})
    again = TensorBoard(tmp_path, "x", "name", {})
    again.log({"batch/loss": 7.0}, 20)
    again.finish(SUMMARY)
    assert scalars(tmp_path)["batch/loss"] == pytest.approx({10: 0.1, 20: 7.0})


def test_without_its_package_it_says_which_extra_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("normlab.trackers.tensorboard.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'normlab\[tensorboard\]'"):
        TensorBoard(tmp_path, "x", "name", {})


@pytest.mark.parametrize("kind", [CSV, TensorBoard])
def test_a_tracker_that_fails_says_so_once_and_stops_nothing(tmp_path, caplog, kind):
    (tmp_path / "csv").write_text("a file in the place of a folder")
    (tmp_path / "tensorboard").write_text("a file in the place of a folder")
    tracker = kind(tmp_path, "x", "name", {})
    with caplog.at_level(logging.WARNING, logger="normlab.trackers.tracker"):
        log(tracker, [10, 20])
        tracker.finish(SUMMARY)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{kind.__name__} stopped, going on without: ")


def test_several_keep_the_same(tmp_path):
    settings = load(["tracker=several", "tracker.of=[csv,tensorboard]"]).tracker
    tracker = bind(settings)(tmp_path, "x", "name", {})
    assert isinstance(tracker, Several) and tracker.shows_images
    log(tracker, [10, 20])
    tracker.finish(SUMMARY)
    assert [float(row["loss"]) for row in rows(tmp_path, "updates")] == [0.1, 0.05]
    assert scalars(tmp_path)["batch/loss"] == pytest.approx({10: 0.1, 20: 0.05})
    assert not bind(load(["tracker=several", "tracker.of=[csv]"]).tracker)(tmp_path, "x", "n", {}).shows_images


def test_several_have_settings_of_their_own():
    words = ["tracker=several", "tracker.of=[wandb,csv]", "tracker.settings.wandb.project=mine"]
    found = load(words).tracker["settings"]
    assert list(found) == ["wandb", "csv"] and found["wandb"]["project"] == "mine"
    assert found["wandb"]["_target_"] == "normlab.trackers.wandb.WandB"
    assert list(load(["tracker=several"]).tracker["settings"]) == ["wandb", "tensorboard", "csv"]


@pytest.mark.parametrize(("words", "message"), [
    ("tracker.of=[wandb,cvs]", "tracker.of=cvs: there is no such tracker; did you mean 'csv'?"),
    ("tracker.of=[csv,csv]", "tracker.of=[csv,csv]: expected one tracker or more, each once"),
    ("tracker.of=[]", "tracker.of=[]: expected one tracker or more, each once"),
    ("tracker.of=[several]", "tracker.of=several: several trackers are none of several"),
    ("tracker.settings.wand.project=x", "tracker.settings.wand: it is none of tracker.of; did you mean 'wandb'?"),
    ("tracker.settings.wandb.projct=x", "settings.wandb.projct: there is no such setting; did you mean 'project'"),
])  # fmt: skip
def test_what_several_cannot_be(words, message):
    with pytest.raises(UserError) as error:
        load(["tracker=several", *words.split()])
    assert message in str(error.value)


def test_runs_that_were_recorded_before_trackers_had_this_place():
    for old, new in {
        "WandB": "normlab.trackers.wandb.WandB",
        "NoTracker": "normlab.trackers.tracker.NoTracker",
    }.items():
        settings = load(["tracker=none"]).to_dict() | {"tracker": {"_target_": f"normlab.tracker.{old}"}}
        assert recorded(settings).tracker["_target_"] == new
    settings = load(["tracker=several", "tracker.of=[csv]"]).to_dict()
    assert recorded(settings).tracker == settings["tracker"]
    settings["tracker"]["settings"]["csv"]["_target_"] = "os.system"
    with pytest.raises(UserError, match=r"tracker\.settings\.csv\._target_=os\.system"):
        recorded(settings)


def test_cells_are_told_of_their_sweep():
    assert in_sweep(load(["tracker=wandb"]).tracker, "abc")["sweep"] == "abc"
    assert in_sweep(load(["tracker=several"]).tracker, "abc")["settings"]["wandb"]["sweep"] == "abc"
    assert "sweep" not in in_sweep(load(["tracker=csv"]).tracker, "abc")
    assert in_sweep(None, "abc") is None


def test_a_sweep_and_its_trackers(tmp_path, monkeypatch):
    """The cells of a sweep, in processes of their own, are of one group; their CSV files are those of their records."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["norm=sn", "seed=0,1", "tracker=several", "tracker.of=[wandb,csv]", f"out={tmp_path / 'runs'}", *SMALL]
    assert main(["train", "-m", *words, "figures=summary", "jobs=1"]) == 0
    runs = [RunFolder(file.parent) for file in sorted(tmp_path.glob("runs/*/run.json"))]
    (sweep,) = {run.config().tracker["settings"]["wandb"]["sweep"] for run in runs}
    assert (len(runs) == 2 and (tmp_path / "sweeps" / sweep).exists()) or sweep
    for run in runs:
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        losses = [line["batch/loss"] for line in lines if "batch/loss" in line]
        assert [float(row["loss"]) for row in rows(run.path, "updates")] == losses
        assert list(run.path.glob("wandb/offline-run-*"))


def test_csv_files_are_the_runs_own(tmp_path, caplog):
    """A stranger's run folder leads to no other file, by a link in the place of a file or of the folder."""
    other = tmp_path / "notes"
    other.write_text("mine\n")
    linked, run = tmp_path / "linked", tmp_path / "run"
    linked.mkdir()
    (run / "csv").mkdir(parents=True)
    (run / "csv" / "updates.csv").symlink_to(other)
    tracker = CSV(run, "id", "name", {})
    for step in (1, 2):
        tracker.log({"batch/loss": 1.0}, step)
    assert other.read_text() == "mine\n"
    assert (run / "csv" / "updates.csv").read_text().splitlines() == ["step,loss", "1,1.0", "2,1.0"]
    (linked / "csv").symlink_to(tmp_path)
    CSV(linked, "id", "name", {}).log({"batch/loss": 1.0}, 1)
    assert "is a symbolic link" in caplog.text and not (tmp_path / "updates.csv").exists()
