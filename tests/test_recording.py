"""What a run records beside its metrics: that training is the same with it, what the rows are, on any ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from killing import outcome
from safetensors.torch import load_file
from test_engine import config, run
from test_replicas import on_ranks

from normlab.engine.loop import Loop
from normlab.engine.session import open_session
from normlab.figures.draw import draw
from normlab.reading import read_jsonl
from normlab.replicas import permutation
from normlab.runs import checkpoint
from normlab.runs.folder import RunFolder
from normlab.trackers.tracker import NoTracker

RECORDED = ("record.statistics=3", "record.gradients=true", "record.estimators=true", "snapshots=[0.25,0.5]")
PARTS = {"part": ["record.validation=10"], "whole": []}


@pytest.mark.parametrize("more", [("norm=sn", "weight=ws", "precision=fp64"), ("norm=brn", "weight=ws")])
def test_training_is_the_same_with_and_without(tmp_path, more):
    settings = (*more, "task.dropout=0.3", "accumulate=2")
    plain, recorded = (config(tmp_path / str(i), *settings, *words) for i, words in enumerate(((), RECORDED)))
    folder = run(recorded)
    run(plain)
    one, other = outcome(plain), outcome(recorded)
    added = other.keys() - one.keys()
    assert added == {"statistics.jsonl", "gradients.jsonl", "snapshots/0.25.safetensors", "snapshots/0.5.safetensors"}
    differing = {name for name in one if one[name] != other[name]}
    counted = {name for name in one if name.startswith("checkpoint.rows")}
    assert differing <= {"files", "status", "metrics.jsonl", *counted}
    rows, expected = read_jsonl(folder.metrics), read_jsonl(RunFolder.of(plain).metrics)
    assert [{k: v for k, v in row.items() if not k.startswith("val_batch_average")} for row in rows] == expected
    last = folder.summary()["metrics"]["batch_average"]
    assert {name: rows[-1][f"val_batch_average/{name}"] for name in last} == last
    assert sum("val_batch_average/top1" in row for row in rows) == 2


def test_a_part_of_the_validation_each_epoch_and_all_at_the_end(tmp_path):
    """Of 359 digits every 35.9th: each epoch's accuracy is a multiple of a tenth; the headline is of all."""
    part, whole = (config(tmp_path, "norm=gn", "out=" + str(tmp_path / name), *words) for name, words in PARTS.items())
    folder = run(part)
    run(whole)
    epochs = [row["val/top1"] for row in read_jsonl(folder.metrics) if "val/top1" in row]
    assert len(epochs) == 2 and all(value % 10 == 0 for value in epochs)
    assert folder.summary()["metrics"] == RunFolder.of(whole).summary()["metrics"]
    assert folder.summary()["id"] == RunFolder.of(whole).summary()["id"]
    session = open_session(folder)
    state = load_file(folder.weights)
    session.experiment.model.load_state_dict(state)
    task, model = session.experiment.task, session.experiment.model.eval()
    images_N, labels_N = task.prepare(
        task.collate([task.dataset("val")[None, k * 359 // 10] for k in range(10)], "val"), "val"
    )
    with torch.no_grad():
        correct_N = model(images_N).argmax(1) == labels_N
    assert epochs[-1] == 10 * correct_N.sum().item()


def test_norms_of_one_estimator_have_nothing_to_add(tmp_path):
    folder = run(config(tmp_path, "norm=gn", *RECORDED))
    assert not any("val_batch_average/top1" in row for row in read_jsonl(folder.metrics))
    assert not folder.gradients.exists()  # no weight is standardized
    assert [row["step"] for row in read_jsonl(folder.statistics)] == [14, 15, 16]


def test_statistics_are_those_of_the_first_replica(tmp_path):
    """The first layer's input at the last update: conv1, as the update before left it, of the first four digits."""
    folder = run(config(tmp_path, "norm=bn", "precision=fp64", "snapshots=[0.9375]", *RECORDED[:1]))
    row = read_jsonl(folder.statistics)[-1]
    assert (row["step"], row["epoch"]) == (16, 2.0)
    session = open_session(folder)
    data, model = session.experiment.task.dataset("train"), session.experiment.model
    model.load_state_dict(load_file(folder.weights_at(0.9375)))
    order = permutation(session.config.seed, 1, len(data))
    x_NCHW = model.conv1(torch.stack([data[1, i][0] for i in order[7 * 16 : 7 * 16 + 4]]).double())
    layer = row["layers"][0]
    assert (layer["layer"], layer["index"]) == ("bn1", 1)
    assert layer["bn_mean"] == pytest.approx(x_NCHW.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert layer["en_std"] == pytest.approx(x_NCHW.std(correction=0).item(), rel=1e-5)


def rows_of(out: Path, *more: str) -> dict:
    words = ("norm=gn", "weight=ws", "precision=fp64", "epochs=1", "accumulate=2", "record.statistics=2")
    settings = config(out, *words, "record.gradients=true", *more)
    folder = RunFolder.of(settings)
    if not dist.is_initialized() or dist.get_rank() == 0:
        folder.create(settings)
    if dist.is_initialized():
        dist.barrier()
    Loop(open_session(folder), NoTracker(folder.path, "", "", {})).run()
    return {file.name: read_jsonl(file) for file in (folder.statistics, folder.gradients)}


def test_records_do_not_depend_on_how_replicas_are_shared(tmp_path):
    """One process; two ranks, each replica in a pass of its own."""
    one = rows_of(tmp_path)
    two = on_ranks(2, rows_of, tmp_path / "run", "replicas_per_pass=1")
    assert [row["step"] for row in one["statistics.jsonl"]] == [3, 4]
    assert [row["step"] for row in one["gradients.jsonl"]] == [1]
    for name, rows in one.items():
        for row, other in zip(rows, two[name], strict=True):
            for layer, same in zip(row["layers"], other["layers"], strict=True):
                assert layer["layer"] == same["layer"]
                for key in layer.keys() - {"layer", "index"}:
                    assert same[key] == pytest.approx(layer[key], rel=2e-5, abs=1e-9), (name, key)


def test_snapshots_are_the_weights_at_that_time(tmp_path):
    """Update 8 of 16 has a checkpoint too."""
    folder = run(config(tmp_path, "checkpoint.keep=2", "snapshots=[0.5,0.01]"))
    state = checkpoint.load(folder.checkpoints / "000008.pt", folder.run()["id"])["model"]
    kept = load_file(folder.weights_at(0.5))
    assert kept.keys() == state.keys() and all(torch.equal(kept[name], state[name]) for name in state)
    first, final = load_file(folder.weights_at(0.01)), load_file(folder.weights)
    assert not torch.equal(first["fc.weight"], final["fc.weight"])
    assert int(first["bn1.num_batches_tracked"]) == 1  # after the first update


# ---- the figures at the end ----------------------------------------------------------------------------------------


def test_what_the_records_can_show_is_drawn(tmp_path, monkeypatch, caplog):
    """And a figure that fails costs no more than itself."""
    folder = run(config(tmp_path, "norm=sn", "weight=ws", *RECORDED))
    names = ("run_divergence", "evolution", "fluctuation", "gradient_reduction", "estimators", "ratio_ranges")

    def broken(runs, **settings):
        raise ValueError("no such thing")

    monkeypatch.setattr("normlab.figures.curves.ratio_ranges", broken)
    drawn = [path.stem for path in draw(folder, names)]
    assert drawn == ["evolution", "fluctuation", "gradient_reduction", "estimators"]
    assert all((folder.path / f"{name}.png").stat().st_size > 0 for name in drawn)
    assert caplog.messages == ["figure ratio_ranges cannot be drawn: ValueError: no such thing"]


@pytest.mark.parametrize(
    ("figures", "expected"), [("auto", {"learning_curves", "geometry"}), ("summary", {"learning_curves"})]
)
def test_a_tracker_shows_them(tmp_path, figures, expected):
    words = ("norm=bn", "tracker=wandb", "tracker.mode=offline", f"figures={figures}")
    folder = run(config(tmp_path, *words))
    images = folder.path.glob("wandb/*/files/media/images/figures/*.png")
    assert {image.name.partition("_16_")[0] for image in images} == expected
    assert {path.stem for path in folder.path.glob("*.png")} == expected
