"""Runs from beginning to end: records, determinism, estimators, divergence, precision."""

from pathlib import Path

import data_files
import pytest
import torch
from safetensors.torch import load_file
from test_replicas import on_ranks

from normlab.config import BatchAverage, Config, load
from normlab.engine import saved
from normlab.engine.batch_average import measure
from normlab.engine.build import build
from normlab.engine.evaluate import evaluate, statistics
from normlab.engine.session import open_session
from normlab.errors import UserError
from normlab.launch.life import train
from normlab.progress import silent
from normlab.reading import read_jsonl
from normlab.replicas import normalizers, permutation
from normlab.runs.folder import RunFolder, checkpoint_files
from normlab.seeding import mix_seed

SMALL = ("model.width=4", "data.fraction=0.1", "tracker=none")  # 143 digits: 8 updates of 16 an epoch


def config(out: Path, *more: str) -> Config:
    return load(["batch=4x4", "epochs=2", *SMALL, f"out={out}", *more])


def run(settings: Config, progress=silent) -> RunFolder:
    folder = RunFolder.of(settings)
    folder.create(settings)
    train(folder, progress)
    return folder


def records(folder: RunFolder) -> dict[str, bytes]:
    names = (
        "metrics.jsonl",
        "ratios.jsonl",
        "checkpoints/weights.safetensors",
        "checkpoints/batch_average.safetensors",
    )
    return {name: (folder.path / name).read_bytes() for name in names if (folder.path / name).exists()}


def test_the_records_of_a_run(tmp_path):
    folder = run(config(tmp_path))
    summary, rows = folder.summary(), read_jsonl(folder.metrics)
    updates = [row for row in rows if "batch/loss" in row]
    epochs = [row for row in rows if "val/top1" in row]
    assert [row["step"] for row in updates] == list(range(1, 17))
    assert [row["step"] for row in epochs] == [8, 16] and [row["epoch"] for row in epochs] == [1, 2]
    assert epochs[0]["train/loss"] == pytest.approx(sum(row["batch/loss"] for row in updates[:8]) / 8)
    assert [row["step"] for row in read_jsonl(folder.ratios)] == [0, 8, 16]

    status = folder.status()
    assert (status["status"], status["updates"]) == ("finished", 16)
    assert {"metrics.jsonl", "checkpoints/weights.safetensors"} <= status["files"].keys()
    assert summary["metrics"].keys() == {"moving_average", "batch_average"}
    assert summary["metrics"]["moving_average"]["top1"] == epochs[-1]["val/top1"]
    assert summary["headline"] == {
        "metric": "top1",
        "estimator": "batch_average",
        "value": summary["metrics"]["batch_average"]["top1"],
    }
    assert summary["id"] in folder.path.name and summary["norm"] == "sn" and summary["batch"] == "4x4"
    assert {"versions", "commit", "seconds", "seed", "parameters"} <= summary.keys()
    assert load_file(folder.weights).keys() == build(config(tmp_path)).model.state_dict().keys()
    assert [file.name for file in checkpoint_files(folder.checkpoints)] == ["000008.pt", "000016.pt"]
    for name in ("config.yaml", "run.json", "learning_curves.png", "ratios.png"):
        assert (folder.path / name).stat().st_size > 0


def test_the_same_command_gives_the_same_bytes(tmp_path):
    first, second = (records(run(config(tmp_path / name))) for name in ("a", "b"))
    assert first == second and len(first) == 4
    assert records(run(config(tmp_path / "c", "seed=1")))["metrics.jsonl"] != first["metrics.jsonl"]


def test_a_loss_that_is_not_finite_ends_as_diverged(tmp_path):
    folder = run(config(tmp_path, "norm=none", "optim.lr=1e8"))
    summary = folder.summary()
    assert summary["status"] == "diverged" == folder.status()["status"]
    assert summary["headline"]["value"] is None and summary["metrics"] == {}
    rows = read_jsonl(folder.metrics)
    assert rows[-1]["step"] == summary["diverged_at"] <= 16


def test_norms_without_stored_statistics_need_no_estimate(tmp_path):
    metrics = run(config(tmp_path, "norm=gn")).summary()["metrics"]
    assert metrics["moving_average"] == metrics["batch_average"]


def test_too_large_a_batch_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs 160 samples an update, and the training set has 143"):
        run(config(tmp_path, "batch=4x40"))


# ---- estimators ----------------------------------------------------------------------------------------------------


def first_layer_outputs(settings: Config, session, iterations: int) -> torch.Tensor:
    """What reaches the first norm layer, of the samples that the estimate uses, augmented, in float64."""
    data = session.experiment.task.dataset("train")
    order = permutation(mix_seed(settings.seed, *b"batch average"), 0, len(data))
    images = torch.stack([data[0, i][0] for i in order[: iterations * 16]]).double()
    return session.experiment.model.conv1(images).detach()


@pytest.mark.parametrize(("variance", "samples"), [("mean", "all"), ("population", "all"), ("mean", "40")])
def test_batch_average_is_the_average_of_the_batches(tmp_path, variance, samples):
    """The first layer's statistics do not depend on any other's: they are averages of conv1's outputs."""
    settings = config(tmp_path, "precision=fp64", "norm=bn", f"batch_average.variance={variance}",
                      f"batch_average.samples={samples}")  # fmt: skip
    folder = RunFolder.of(settings)
    folder.create(settings)
    session = open_session(folder)
    before = {k: v.clone() for k, v in session.experiment.model.state_dict().items()}
    state = measure(session)
    iterations = 8 if samples == "all" else 2
    x_BNCHW = first_layer_outputs(settings, session, iterations).unflatten(0, (-1, 4))  # minibatches of 4
    mean_BC, var_BC = x_BNCHW.mean((1, 3, 4)), x_BNCHW.var((1, 3, 4), correction=0)
    whole_C = x_BNCHW.flatten(0, 1).var((0, 2, 3), correction=0)
    torch.testing.assert_close(state["bn1.running_mean"], mean_BC.mean(0), rtol=1e-12, atol=1e-12)
    expected = var_BC.mean(0) if variance == "mean" else whole_C
    torch.testing.assert_close(state["bn1.running_var"], expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[k], v) for k, v in session.experiment.model.state_dict().items())
    assert all(name.rpartition(".")[2].startswith("running_") for name in state)


def test_population_variance_does_not_depend_on_the_split(tmp_path):
    def measured(batch: str) -> torch.Tensor:
        settings = config(tmp_path / batch, "precision=fp64", "norm=bn", "batch_average.variance=population",
                          f"batch={batch}")  # fmt: skip
        folder = RunFolder.of(settings)
        folder.create(settings)
        return measure(open_session(folder))["bn1.running_var"]

    torch.testing.assert_close(measured("8x2"), measured("1x16"), rtol=1e-12, atol=1e-14)


def measure_and_evaluate(out: Path, *more: str) -> dict:
    settings = config(out, "precision=fp64", "norm=sn", *more)
    folder = RunFolder(out / "shared")
    folder.create(settings)
    session = open_session(folder)
    state = measure(session)
    with statistics(session.experiment.model, state):
        return {"state": state, "val": evaluate(session), "train": evaluate(session, "train")}


def test_estimates_and_evaluation_on_two_ranks_equal_one(tmp_path):
    """359 validation images cannot be shared equally: each counts once all the same."""
    one = measure_and_evaluate(tmp_path)
    two = on_ranks(2, measure_and_evaluate, tmp_path / "run", "replicas_per_pass=1")
    assert two["val"] == pytest.approx(one["val"], abs=1e-4) and two["train"] == pytest.approx(one["train"], abs=1e-4)
    for name, tensor in one["state"].items():
        torch.testing.assert_close(two["state"][name], tensor, rtol=1e-12, atol=1e-13)


def test_estimates_on_a_finished_run(tmp_path):
    folder = run(config(tmp_path))
    summary = folder.summary()["metrics"]
    assert saved.evaluate_run(folder, "val") == ("validation", summary)
    words, again = saved.estimate_run(folder, BatchAverage("50k", "mean", True))
    assert words == "validation" and list(again.values()) == [summary["batch_average"]]
    saved.estimate_run(folder, BatchAverage(32, "population", False))
    rows = read_jsonl(folder.path / "estimates.jsonl")
    assert [(row["samples"], row["variance"], row["augment"]) for row in rows] == [
        ("50k", "mean", True),
        (32, "population", False),
    ]


# ---- how it computes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [("precision=bf16",), ("precision=fp16",), ("channels_last=true",), ("threads=1",)])
def test_precision_and_layout(tmp_path, more):
    folder = run(config(tmp_path, *more))
    assert folder.summary()["status"] == "finished"
    plain = read_jsonl(run(config(tmp_path / "plain")).metrics)[0]["batch/loss"]
    assert read_jsonl(folder.metrics)[0]["batch/loss"] == pytest.approx(plain, rel=0.05)


def test_dropout_does_not_depend_on_how_replicas_are_stacked(tmp_path):
    settings = ("precision=fp64", "task.dropout=0.5", "norm_dropout=0.2", "norm=bn")
    whole = read_jsonl(run(config(tmp_path / "whole", *settings)).metrics)
    parts = read_jsonl(run(config(tmp_path / "parts", *settings, "replicas_per_pass=1")).metrics)
    without = read_jsonl(run(config(tmp_path / "without", "precision=fp64", "norm=bn")).metrics)
    losses = [[row["batch/loss"] for row in rows if "batch/loss" in row] for rows in (whole, parts, without)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert abs(losses[0][0] - losses[2][0]) > 1e-3


def test_ratios_every_so_many_updates(tmp_path):
    rows = read_jsonl(run(config(tmp_path, "ratios_every=5")).ratios)
    assert [row["step"] for row in rows] == [0, 5, 10, 15]
    layer = rows[-1]["layers"][0]
    assert layer["layer"] == "bn1" and layer["kernel_size"] == [3, 3] and layer["receptive_field"] == 3
    assert sum(layer["mean"].values()) == pytest.approx(1)


def test_evaluations_every_so_many_updates(tmp_path):
    """In the place of those of epochs, with means over the updates in between; all else is as without."""
    words = ("iterations=10", "record.estimators=true")
    plain, often = (
        run(config(tmp_path / name, *words, *more)) for name, more in (("a", ()), ("b", ["evaluate_every=3"]))
    )
    rows = read_jsonl(often.metrics)
    updates = [row for row in rows if "batch/loss" in row]
    evaluated = [row for row in rows if "val/top1" in row]
    assert [row["step"] for row in evaluated] == [3, 6, 9, 10] and evaluated[0]["epoch"] == 3 / 8
    for first, row in zip((0, 3, 6, 9), evaluated, strict=True):
        losses = [update["batch/loss"] for update in updates[first : row["step"]]]
        assert row["train/loss"] == pytest.approx(sum(losses) / len(losses))
        assert "val_batch_average/top1" in row
    assert [row["step"] for row in read_jsonl(plain.metrics) if "val/top1" in row] == [8, 10]
    assert [row["step"] for row in read_jsonl(often.ratios)] == [0, 8, 10]
    assert updates == [row for row in read_jsonl(plain.metrics) if "batch/loss" in row]
    weights, other = (records(folder)["checkpoints/weights.safetensors"] for folder in (plain, often))
    assert weights == other


def test_evaluations_amid_the_phases_of_an_epoch(tmp_path, monkeypatch):
    """A phase's measures are means over its own updates; one that had none in between has none."""
    monkeypatch.setenv("NORMLAB_PACKAGES", "toy_search")
    folder = run(load(["task._target_=toy_search.Search", "norm=bn", "batch=2x4", "epochs=2", "evaluate_every=3",
                       "optim=sgd", "tracker=none", f"out={tmp_path}"]))  # fmt: skip
    rows = read_jsonl(folder.metrics)
    updates = {row["step"]: row for row in rows if any(key.startswith("batch/") for key in row)}
    evaluated = [row for row in rows if "val/error" in row]
    assert [row["step"] for row in evaluated] == [3, 6, 9, 12, 14]  # an epoch is 5 updates of the child, then 2
    for first, row in zip((0, 3, 6, 9, 12), evaluated, strict=True):
        for name in ("loss", "controller/loss"):
            there = [updates[step][f"batch/{name}"] for step in range(first + 1, row["step"] + 1)
                     if f"batch/{name}" in updates[step]]  # fmt: skip
            expected = pytest.approx(sum(there) / len(there)) if there else None
            assert row.get(f"train/{name}") == expected, (row["step"], name)
    assert "train/controller/loss" not in evaluated[0] and "train/loss" not in evaluated[-1]


def test_learning_rate_scales_with_the_samples_of_an_update(tmp_path):
    """0.1 for 128 samples (sgd_128): 16 an update get an eighth, two iterations twice that; sgd has it for 256."""
    variants = ((), ("accumulate=2",), ("optim.lr=0.2",), ("optim=sgd",))
    rates = [read_jsonl(run(config(tmp_path, *more)).metrics)[0]["batch/lr"] for more in variants]
    assert rates == pytest.approx([0.1 * 16 / 128, 0.1 * 32 / 128, 0.2 * 16 / 128, 0.1 * 16 / 256])


def test_decay_spares_norm_parameters_on_request(tmp_path):
    from normlab.engine.optim import rmsprop, sgd

    model = build(config(tmp_path)).model
    for make in (sgd, rmsprop):
        everything = make(model, 256, weight_decay=0.1).param_groups
        assert [g["weight_decay"] for g in everything] == [0.1]
        plain, norms = make(model, 256, weight_decay=0.1, decay="not_norm").param_groups
        assert (plain["weight_decay"], norms["weight_decay"]) == (0.1, 0.0)
        assert len(norms["params"]) == 4 * len(normalizers(model))
        assert len(plain["params"]) + len(norms["params"]) == len(everything[0]["params"])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_data_refuse_is_one_line_from_workers_too(tmp_path, workers):
    root = tmp_path / "imagenet"
    for split in ("train", "val"):
        data_files.write_class_folders(root / split, ["n01440764", "n01443537"], 4, ".JPEG")
    broken = sorted((root / "train").rglob("*.JPEG"))[3]
    broken.write_bytes(broken.read_bytes()[:40])
    settings = load(["data=imagenet", f"data.root={root}", "data.size=32", "model=resnet20", "batch=2x2", "epochs=1",
                     "tracker=none", f"workers={workers}", f"out={tmp_path}/runs"])  # fmt: skip
    with pytest.raises(UserError) as error:
        run(settings)
    assert str(broken) in str(error.value) and "\n" not in str(error.value)


def test_a_part_whose_norm_replaces_nothing_is_named(tmp_path, caplog):
    build(config(tmp_path, "parts.backbone=gn", "parts.head=none"))
    assert not caplog.messages
    build(config(tmp_path, "parts.head=gn"))
    assert caplog.messages == ["parts.head.norm: the part has no batch, instance or group norm that it could replace"]
