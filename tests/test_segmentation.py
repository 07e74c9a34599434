"""Segmentation against numpy, against explicit loops, and against what synchronized norms must give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_replicas import TOLERANCE, engine, on_ranks
from torchmetrics.classification import MulticlassJaccardIndex

from normlab.cli import main
from normlab.config import load
from normlab.data.dataset import VOID
from normlab.data.handwriting import load_handwriting
from normlab.data.splits import held_out
from normlab.engine.build import build, build_task
from normlab.engine.evaluate import statistics
from normlab.engine.saved import open_run
from normlab.errors import UserError
from normlab.replicas import set_replicas
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder
from normlab.runs.records import Run
from normlab.tasks.segmentation import Maps

K = 4
SMALL = ("task=segmentation", "data=synthetic_maps", "data.size=16", "data.length=32", "data.val_length=12",
         f"data.num_classes={K}", "model.width=4", "tracker=none", "threads=1", "batch_average.samples=16")  # fmt: skip


def task_of(*more: str):
    return build_task(load([*SMALL, *more]))


def maps(rows: int, seed: int = 0, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels with another share of void in each row; the last has nothing else."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (rows, size, size), generator=draw)
    void = torch.rand(rows, size, size, generator=draw) < torch.linspace(0, 1, rows)[:, None, None]
    return torch.randn(rows, 3, size, size, generator=draw), labels.masked_fill(void, VOID)


# ---- losses --------------------------------------------------------------------------------------------------------


def test_each_replica_has_the_mean_over_its_own_pixels():
    experiment = build(load([*SMALL, "norm=gn", "precision=fp64", "task.auxiliary=0.3"]))
    model = experiment.model.double().train()
    images, labels = maps(6)
    images, replicas = images.double(), 3
    outcome = experiment.task.losses(model, Maps(images, labels, ()), replicas)
    for name, factor, logits in zip(("main", "auxiliary"), (1.0, 0.3), model(images), strict=True):
        enlarged = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
        log_p = enlarged.log_softmax(1).detach().numpy()
        for r in range(replicas):
            picked = [
                log_p[n, labels[n, y, x], y, x]
                for n in (2 * r, 2 * r + 1) for y in range(16) for x in range(16) if labels[n, y, x] != VOID
            ]  # fmt: skip
            assert outcome.losses[name][r].item() == pytest.approx(-factor * np.mean(picked), rel=1e-12)


def test_a_replica_without_a_pixel_that_counts_has_no_loss_and_no_gradient():
    experiment = build(load([*SMALL, "norm=gn"]))
    images, labels = maps(2)
    outcome = experiment.task.losses(experiment.model.train(), Maps(images, torch.full_like(labels, VOID), ()), 2)
    sum(outcome.losses.values()).sum().backward()
    assert outcome.losses["main"].tolist() == [0, 0] and outcome.measures["accuracy"].tolist() == [0, 0]
    assert all(p.grad is None or (p.grad == 0).all() for p in experiment.model.parameters())


def test_loss_at_the_logits_takes_the_nearest_labels():
    """As the code of the SN papers: every so many labels of the map, void or not."""
    experiment = build(load([*SMALL, "norm=gn", "task.loss_at=logits", "task.auxiliary=0"]))
    images, labels = maps(4)
    outcome = experiment.task.losses(experiment.model.train(), Maps(images, labels, ()), 1)
    logits = experiment.model(images)[0]
    every = labels[:, ::4, ::4]
    expected = torch.nn.functional.cross_entropy(logits, every, ignore_index=VOID)
    assert outcome.losses["main"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert outcome.losses.keys() == {"main"}


@pytest.mark.parametrize("norm", ["bn", "sn", "hn"])
def test_stacked_replicas_are_those_of_a_loop(norm):
    """Four replicas with other shares of void: gradients in one pass are the mean of those one by one."""
    gradients = []
    for together in (True, False):
        experiment = build(load([*SMALL, f"norm={norm}", "precision=fp64"]))
        model = experiment.model.double().train()
        images, labels = maps(8)
        blocks = [slice(None)] if together else [slice(k, k + 2) for k in range(0, 8, 2)]
        for rows in blocks:
            replicas = 4 if together else 1
            set_replicas(model, replicas, [0] * replicas)
            outcome = experiment.task.losses(model, Maps(images[rows].double(), labels[rows], ()), replicas)
            (sum(outcome.losses.values()).sum() / 4).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("sync", "plain"), [("syncbn", "bn"), ("syncsn", "sn")])
def test_synchronized_replicas_are_one_large_one_without_void(tmp_path, sync, plain):
    common = [*SMALL, "data.void=0", "precision=fp64", "iterations=4", "optim=sgd", "optim.lr_batch=8"]
    many = engine(load([*common, f"norm={sync}", "batch=4x2", f"out={tmp_path / 'many'}"]))
    one = engine(load([*common, f"norm={plain}", "batch=1x8", f"out={tmp_path / 'one'}"]))
    for name, tensor in one.items():
        if "num_batches" not in name:
            torch.testing.assert_close(many[name], tensor, rtol=1e-9, atol=1e-11)


# ---- metrics -------------------------------------------------------------------------------------------------------


def measured(task, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    metric = task.metric("val")
    for predicted, labels in batches:
        task.update(metric, predicted, Maps(torch.empty(0), labels, ()), range(len(labels)))
    return task.results(metric)


def test_mean_iou_is_numpys():
    """Of all images together, not a mean over images; against torchmetrics' Jaccard index too."""
    task = task_of()
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.randint(K, (3, 16, 16), generator=draw), maps(3, seed)[1]) for seed in range(4)]
    counts = np.zeros((K, K))
    for predicted, labels in batches:
        kept = (labels != VOID).numpy()
        np.add.at(counts, (labels.numpy()[kept], predicted.numpy()[kept]), 1)
    iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    found = measured(task, batches)
    assert found["miou"] == pytest.approx(100 * iou.mean(), rel=1e-12)
    assert found["accuracy"] == pytest.approx(100 * np.trace(counts) / counts.sum(), rel=1e-12)
    assert found["class_accuracy"] == pytest.approx(100 * (np.diag(counts) / counts.sum(1)).mean(), rel=1e-12)
    assert [found[f"iou.{k}"] for k in range(K)] == pytest.approx(100 * iou, rel=1e-12)
    theirs = MulticlassJaccardIndex(K, ignore_index=VOID, average="macro")
    for predicted, labels in batches:
        theirs.update(predicted, labels)
    assert found["miou"] == pytest.approx(100 * theirs.compute().item(), rel=1e-6)


def test_classes_that_are_nowhere_do_not_count():
    labels = torch.tensor([[[0, 1], [1, VOID]]])
    found = measured(task_of(), [(torch.tensor([[[0, 1], [0, 3]]]), labels)])
    assert found["miou"] == pytest.approx(50.0) and "iou.2" not in found and "iou.3" not in found
    with pytest.raises(UserError, match="no pixel of the split has a label"):
        measured(task_of(), [(labels.clamp(max=K - 1), torch.full_like(labels, VOID))])


# ---- predictions ---------------------------------------------------------------------------------------------------


def test_one_scale_is_the_plain_forward_pass():
    for more in ([], ["task.scales=[1]"], ["task.unit=pixels", "task.scales=[16]"]):
        experiment = build(load([*SMALL, "norm=gn", *more]))
        batch = experiment.task.prepare(maps(2), "val")
        logits = experiment.model.eval()(batch.images)
        enlarged = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
        assert torch.equal(experiment.task.predict(experiment.model, batch), enlarged.argmax(1))


def test_several_scales_and_mirrors_are_means_of_probabilities():
    given = ["norm=gn", "task.several=[0.5,1,1.5]", "task.flip=true"]
    experiment = build(load([*SMALL, *given]))
    model, task = experiment.model.eval(), experiment.task
    batch = task.prepare(maps(1), "val_scales")
    expected = torch.zeros(1, K, 16, 16)
    for side in (8, 16, 24):
        images = batch.images
        if side != 16:
            images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        for mirrored in (False, True):
            logits = model(images.flip(3)).flip(3) if mirrored else model(images)
            enlarged = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear")
            expected += enlarged.softmax(1) / 6
    torch.testing.assert_close(task.probabilities(model, batch), expected)
    assert task.prepare(maps(1), "val").scales == []


def test_scales_in_pixels_are_of_the_shorter_side():
    """ADE20K in the SN papers: 300 to 600 pixels, no side beyond 1000."""
    task = task_of("task.unit=pixels", "task.several=[300,400,500,600]", "task.longest=1000")
    assert task._size(torch.empty(1, 3, 450, 600), 300) == (300, 400)
    assert task._size(torch.empty(1, 3, 1024, 512), 600) == (1000, 500)
    factors = task_of("task.several=[1.25]")
    assert factors._size(torch.empty(1, 3, 1024, 2048), 1.25) == (1280, 2560)


def test_images_of_unequal_sizes_are_no_batch():
    samples = [(torch.zeros(3, 4, size), torch.zeros(4, size, dtype=torch.uint8)) for size in (4, 5)]
    with pytest.raises(UserError, match="images of 4x4 and 4x5 pixels cannot be in one batch"):
        task_of().collate(samples, "train")


# ---- runs ----------------------------------------------------------------------------------------------------------


def run(out: Path, *more: str) -> dict:
    words = [*SMALL, "batch=4x2", "iterations=2", f"out={out}", *more]
    assert main(["train", *words]) == 0
    return RunFolder.of(load(words)).summary()


def test_a_second_evaluation_at_several_scales(tmp_path):
    summary = run(tmp_path, "norm=sn", "task.several=[0.5,1]")
    found = summary["metrics"]["batch_average"]
    assert {"miou", "val_scales/miou", "val_scales/iou.0"} <= found.keys()
    assert found["miou"] != found["val_scales/miou"]
    assert summary["headline"]["value"] == found["miou"]


def test_predictions_are_kept_and_drawn(tmp_path, capsys):
    """By the weights and statistics of the headline, and refused once they are damaged."""
    run(tmp_path, "norm=sn")
    config = load([*SMALL, "batch=4x2", "iterations=2", "norm=sn", f"out={tmp_path}"])
    folder = RunFolder.of(config)
    kept = Run.load(folder).predictions
    session = open_run(folder)
    task, model = session.experiment.task, session.experiment.model.eval()
    with statistics(model, load_tensors(folder.batch_average)):
        for place, sample in zip((0, 1, 3, 4, 6, 7, 9, 10), kept, strict=True):
            image, labels = task.dataset("val")[None, place]
            batch = task.prepare((image[None], labels[None]), "val")
            assert np.array_equal(sample["truth"], labels.numpy())
            assert np.array_equal(sample["predicted"], task.predict(model, batch)[0].numpy())
            np.testing.assert_allclose(sample["image"], image.numpy(), atol=5e-3)
    assert main(["figure", "predictions", str(folder.path), str(folder.path), f"out={tmp_path / 'two.png'}"]) == 0
    folder.predictions.write_bytes(folder.predictions.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert main(["figure", "predictions", str(folder.path)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_predictions_as_files(tmp_path, capsys):
    """A PNG for each image; of classification a table."""
    run(tmp_path, "norm=bn")
    folder = RunFolder.of(load([*SMALL, "batch=4x2", "iterations=2", "norm=bn", f"out={tmp_path}"]))
    assert main(["predict", str(folder.path), f"out={tmp_path / 'maps'}"]) == 0
    files = sorted((tmp_path / "maps").iterdir())
    assert [file.name for file in files] == [f"{k:06}.png" for k in range(12)]
    kept = Run.load(folder).predictions
    assert np.array_equal(np.array(Image.open(files[0])), kept[0]["predicted"])
    words = ["model.width=4", "data.fraction=0.1", "batch=4x4", "iterations=1", "tracker=none", f"out={tmp_path}"]
    assert main(["train", *words]) == 0
    capsys.readouterr()
    folder = RunFolder.of(load(words))
    assert main(["predict", str(folder.path), f"out={tmp_path / 'table'}"]) == 0
    rows = np.loadtxt(tmp_path / "table" / "predictions.csv", delimiter=",", skiprows=1, dtype=int)
    labels_N = load_handwriting()[1]
    labels_N = labels_N[held_out(labels_N, "val", train_share=0.8)]
    assert rows[:, 0].tolist() == list(range(359))
    headline = folder.summary()["headline"]
    assert (rows[:, 1] == labels_N).mean() * 100 == pytest.approx(headline["value"])


def test_it_begins_from_a_classifier(tmp_path):
    """All of the backbone, whatever the norm of each part: SyncSN from SN."""
    words = ["data=synthetic", "data.size=16", "data.length=32", "data.val_length=8", "data.num_classes=3", "norm=sn",
             "model=scenes_resnet", "model.width=4", "batch=4x2", "iterations=2", "tracker=none"]  # fmt: skip
    assert main(["train", *words, f"out={tmp_path}"]) == 0
    classifier = RunFolder.of(load([*words, f"out={tmp_path}"]))
    summary = run(tmp_path, "norm=syncsn", f"init={classifier.path}", "iterations=1", "optim.lr=1e-30")
    assert summary["not_used_of_init"] == ["fc.bias", "fc.weight"]


def test_predictors_keep_their_weights(tmp_path):
    """Weight Standardization is for convolutions that a norm follows."""
    model = build(load([*SMALL, "norm=gn", "weight=ws"])).model
    standardized = {name for name, m in model.named_modules() if hasattr(m, "parametrizations")}
    assert len(standardized) == 14 and not {"decoder.3", "auxiliary.3"} & standardized


def test_receptive_fields_are_the_backbones():
    sites = {site.name: site.receptive_field for site in build(load([*SMALL, "norm=sn"])).sites}
    assert sites["backbone.bn1"] == 3 and sites["decoder.1"] is None
    assert max(filter(None, sites.values())) == sites["backbone.layer4.0.bn2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=digits"], "data=digits: this is for images, and task=segmentation takes maps"),
        (["model=resnet50"], "model=resnet50: this is for classifier, and task=segmentation takes segmenter"),
        (["task.unit=inches"], "task.unit=inches"),
        (["task.scales=[0]"], "task.scales"),
        (
            ["model=deeplabv3_resnet101", "model.multi_grid=[1,2]"],
            "model.multi_grid=[1,2]: expected a factor for",
        ),
    ],
)
def test_what_does_not_go_together(capsys, words, message):
    assert main(["plan", "task=segmentation", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("norm", ["gn", "hn", "syncbn", "syncsn", "sn_hard"])
def test_every_kind_of_norm_trains(tmp_path, norm):
    """BN and SN do so in the tests above; hard ratios need what they are chosen by."""
    if norm == "sn_hard":
        run(tmp_path, "norm=sn")
        first = RunFolder.of(load([*SMALL, "batch=4x2", "iterations=2", "norm=sn", f"out={tmp_path}"]))
        norm_words = [f"norm={norm}", f"init={first.path}"]
    else:
        norm_words = [f"norm={norm}"]
    summary = run(tmp_path, *norm_words)
    assert summary["status"] == "finished" and summary["norm_layers"] == 14


def test_synchronized_norms_on_two_devices(tmp_path):
    """SyncSN on two devices is SyncSN on one."""
    words = [*SMALL, "norm=syncsn", "batch=4x2", "iterations=2", "precision=fp64"]
    one = engine(load([*words, f"out={tmp_path / 'one'}"]))
    two = on_ranks(2, synchronized, tmp_path / "two", words)
    for name, tensor in one.items():
        assert (tensor.double() - two[name].double()).abs().max().item() <= TOLERANCE["fp64"], name


def synchronized(out: Path, words: list[str]) -> dict[str, torch.Tensor]:
    return engine(load([*words, f"out={out}"]))
