"""Every file in conf/ in a real, small run through the command line."""

import os
import subprocess
import sys
from pathlib import Path

import data_files
import numpy as np
import pytest
from conf_pairs import companions, task_of
from PIL import Image

from normlab.cli import main
from normlab.config import GROUPS, choices, kinds_of, load
from normlab.engine.build import build_task
from normlab.runs.folder import RunFolder

QUICK = {
    "digits": ("model.width=4", "data.fraction=0.1"),
    "segmentation": ("data.length=16", "data.val_length=4", "model.width=4"),
    "detection": ("data.length=16", "data.val_length=4", "model.channels=8", "model.hidden=16"),
    "video": ("data.length=16", "data.val_length=4"),
    "points": ("data.length=16", "data.val_length=8", "data.points=16", "model.width=4", "model.k=4"),
    "search": ("data.fraction=0.2", "norm=bn", "parts.controller=ln", "phases.controller.updates=1"),
    "face": ("data.length=64", "data.identities=8", "data.probes=2", "data.distractors=8", "model.width=4"),
    "stylization": ("data.length=16", "data.val_length=4", "data.size=32", "model.blocks=2", "model.width=4"),
    "synthetic": ("data=synthetic", "data.length=16", "data.val_length=8", "iterations=1", "batch=2x2"),
}
RUN_BY_OTHER_TESTS = {"norm", "weight", "model", "data", "tracker"}  # groups with a test of their own below


def train(out: Path, *words: str) -> dict:
    overrides = ["tracker=none", f"out={out}", *words]
    assert main(["train", *overrides]) == 0
    summary = RunFolder.of(load(overrides)).summary()
    assert summary["status"] == "finished"
    return summary


@pytest.mark.parametrize("norm", choices("norm"))
def test_every_norm(tmp_path, norm):
    summary = train(tmp_path, f"norm={norm}", "batch=4x4", "epochs=1", *QUICK["digits"])
    assert summary["norm_layers"] == (0 if norm == "none" else 9)


@pytest.mark.parametrize("weight", choices("weight"))
def test_every_weight(tmp_path, weight):
    summary = train(tmp_path, "norm=gn", f"weight={weight}", "batch=4x4", "epochs=1", *QUICK["digits"])
    assert summary["weight"] == weight


LONG_MODELS = {"resnet101", "resnext101_32x4d"}  # as those of 50 layers, and slow


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name in LONG_MODELS))
        for name in choices("model")
        if task_of("model", name) == "classification"
    ],
)
def test_every_model(tmp_path, model):
    size = 96 if model == "inception_v3" else 16 if model.startswith("digits") or model.endswith("_small") else 64
    settings = ("data.num_classes=4", f"data.size={size}") if model not in ("mlp", "resnet20") else ()
    norm = "none" if model == "scenes_vgg" else "sn_ln_bn"  # VGG has no norm
    summary = train(tmp_path, f"model={model}", f"norm={norm}", *QUICK["synthetic"], *settings)
    assert (summary["norm_layers"] > 0) == (norm != "none")


@pytest.mark.parametrize("data", [name for name in choices("data") if task_of("data", name) == "classification"])
def test_every_dataset(tmp_path, data):
    root = tmp_path / "data" / data
    if data == "mnist":
        data_files.write_mnist(root)
    elif data == "cifar10":
        data_files.write_cifar10(root)
    elif data == "cifar100":
        data_files.write_cifar(root / "cifar-100-python", {"train": 40, "test": 10}, "fine_labels", 100)
    elif data == "caltech256":
        folders = [f"{k:03}.class" for k in range(1, 257)] + ["257.clutter"]
        data_files.write_class_folders(root / "256_ObjectCategories", folders, 5)
    elif data == "imagenet":
        for split in ("train", "val"):
            data_files.write_class_folders(root / split, ["n01440764", "n01443537"], 4, ".JPEG")
    on_disk = (f"data.root={root}",) if root.exists() else ()
    size = ("data.size=32",) if data in ("caltech256", "imagenet") else ()
    model = ("model=resnet20", "model.depth=8")
    summary = train(tmp_path / "runs", f"data={data}", *model, *on_disk, *size, "batch=2x2", "iterations=2")
    assert summary["updates"] == 2


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(name, marks=[pytest.mark.long] * ("101" in name))
        for name in choices("model")
        if task_of("model", name) == "segmentation"
    ],
)
def test_every_segmenter(tmp_path, model):
    size = ("data.size=64", "data.length=4", "data.val_length=2", "iterations=1", "batch=2x2", "norm=sn")
    summary = train(tmp_path, "task=segmentation", "data=synthetic_maps", f"model={model}", *size)
    assert summary["norm_layers"] > 0


MAPS = {  # data -> settings, classes, a prediction's file and the numbers that it may hold
    "ade20k": (["data.short_side=[24,40]"], 150, "ADE_val_00000001.png", set(range(150))),
    "cityscapes": ([], 19, "lindau_000000_000019_leftImg8bit.png", {*range(7, 9), *range(11, 14), 17, *range(19, 34)}),
    "voc": ([], 21, "2009_000032.png", set(range(21))),
}


@pytest.mark.parametrize("data", [name for name in choices("data") if "maps" in kinds_of("data", name)])
def test_every_dataset_of_maps(tmp_path, data):
    """Images of unequal sizes, at several scales, and their predictions as files."""
    own = ["task=segmentation", f"data={data}", "model.width=4", "norm=sn", "batch=1x2", "iterations=1"]
    if data in MAPS:
        settings, classes, file, numbers = MAPS[data]
        getattr(data_files, f"write_{data}")(tmp_path / "data")
        own += [f"data.root={tmp_path / 'data'}", "data.crop=32", "task.several=[0.5,1]", *settings]
    else:
        own += ["data.length=8", "data.val_length=4"]
    summary = train(tmp_path / "runs", *own)
    assert summary["updates"] == 1 and summary["metrics"]["batch_average"]["miou"] >= 0
    if data in MAPS:
        run = RunFolder.of(load([*own, "tracker=none", f"out={tmp_path / 'runs'}"]))
        test = ["split=test"] if data == "cityscapes" else []
        file = file.replace("lindau", "berlin") if test else file
        assert main(["predict", str(run.path), *test, f"out={tmp_path / 'maps'}"]) == 0
        assert len(list((tmp_path / "maps").iterdir())) == 3
        found = np.array(Image.open(tmp_path / "maps" / file))
        one_size = data == "cityscapes"  # others cannot be measured two at a time as they are
        assert main(["estimate", str(run.path), "samples=2", "augment=false"]) == (0 if one_size else 2)
        assert set(np.unique(found).tolist()) <= numbers and classes == len(load_classes(own))


@pytest.mark.parametrize("model", [name for name in choices("model") if task_of("model", name) == "detection"])
def test_every_detector(tmp_path, model):
    small = ("data.length=4", "data.val_length=2", "data.size=64", "model.min_size=64", "model.proposals=[50,50]")
    few = ("model.box_samples=8", "iterations=1", "batch=2x2", "norm=sn", "batch_average.samples=2")
    summary = train(tmp_path, "task=detection", f"model={model}", *small, *few)
    assert summary["norm_layers"] > 0 and "ap" in summary["metrics"]["moving_average"]


@pytest.mark.parametrize("data", [name for name in choices("data") if "boxes" in kinds_of("data", name)])
def test_every_dataset_of_boxes(tmp_path, data):
    own = ["data.length=8", "data.val_length=4"]
    if data == "coco":
        data_files.write_coco(tmp_path / "data")
        own = [f"data.root={tmp_path / 'data'}", "model.min_size=64"]
    small = ("model.channels=8", "model.hidden=16", "norm=sn", "batch=1x2", "iterations=1", "batch_average.samples=2")
    summary = train(tmp_path / "runs", "task=detection", f"data={data}", *small, *own)
    assert summary["updates"] == 1 and "ap" in summary["metrics"]["batch_average"]


FACES = ("task=face", "model.width=4", "model.features=8", "norm=sn", "batch=1x4", "iterations=1")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(name, marks=[pytest.mark.long] * ("100" in name))
        for name in choices("model")
        if task_of("model", name) == "face"
    ],
)
def test_every_embedding(tmp_path, model):
    few = ("data.size=16", "data.length=8", "data.identities=4", "data.probes=2", "data.distractors=8")
    summary = train(tmp_path, *FACES, f"model={model}", *few, "batch_average.samples=4")
    assert summary["norm_layers"] > 0 and "rank1" in summary["metrics"]["moving_average"]


@pytest.mark.parametrize("data", [name for name in choices("data") if "faces" in kinds_of("data", name)])
def test_every_dataset_of_faces(tmp_path, data):
    own = ["data.size=16", "data.length=8", "data.identities=4", "data.probes=2", "data.distractors=8"]
    if data == "faces":
        data_files.write_faces(tmp_path / "data")
        own = [f"data.root={tmp_path / 'data'}", "data.distractors=5"]
    summary = train(tmp_path / "runs", *FACES, f"data={data}", *own, "batch_average.samples=4")
    assert summary["updates"] == 1 and "tar" in summary["metrics"]["batch_average"]


@pytest.mark.parametrize("model", [name for name in choices("model") if task_of("model", name) == "video"])
def test_every_network_for_clips(tmp_path, model):
    small = ("data.length=8", "data.val_length=4", "batch=2x2", "iterations=1", "batch_average.samples=4")
    frames = ("data.frames=32",) if model.startswith("i3d") else ()
    summary = train(tmp_path, "task=video", f"model={model}", "norm=sn_ln_bn", *small, *frames)
    assert summary["norm_layers"] == (53 if "resnet50" in model else 12)


@pytest.mark.parametrize("data", [name for name in choices("data") if "clips" in kinds_of("data", name)])
def test_every_dataset_of_clips(tmp_path, data):
    own = ["data.length=8", "data.val_length=4"]
    if data != "moves":
        getattr(data_files, f"write_{data.removesuffix('_v1')}")(tmp_path / "data")
        own = [f"data.root={tmp_path / 'data'}", "data.size=32", "data.short_side=[32,36]", "data.test_side=32"]
        own += ["data.frames=4"]
    words = ("model=moves_tsm", "norm=sn", "batch=1x2", "iterations=1", "batch_average.samples=2")
    assert train(tmp_path / "runs", "task=video", f"data={data}", *words, *own)["updates"] == 1


@pytest.mark.parametrize("model", [name for name in choices("model") if task_of("model", name) == "search"])
def test_every_search_network(tmp_path, model):
    few = ("batch=1x4", "iterations=2", "phases.child.updates=1", "phases.controller.updates=1", "task.architectures=2")
    data = ("data=synthetic", "data.size=32", "data.length=24", "data.val_length=4", "task.held_out=0.3")
    summary = train(tmp_path, "task=search", f"model={model}", "norm=bn", "parts.controller=sn_ln_gn", *data, *few)
    assert summary["norm_layers"] > 3 and "random_accuracy" in summary["metrics"]["moving_average"]


CLOUDS = (
    "task=points",
    "data.points=24",
    "model.k=4",
    "norm=sn",
    "batch=1x4",
    "iterations=1",
    "batch_average.samples=4",
)


@pytest.mark.parametrize("model", [name for name in choices("model") if task_of("model", name) == "points"])
def test_every_classifier_of_clouds(tmp_path, model):
    summary = train(tmp_path, *CLOUDS, f"model={model}", "data.length=8", "data.val_length=8")
    assert summary["norm_layers"] > 0 and "class_accuracy" in summary["metrics"]["moving_average"]


@pytest.mark.parametrize("data", [name for name in choices("data") if "clouds" in kinds_of("data", name)])
def test_every_dataset_of_clouds(tmp_path, data):
    own = ["data.length=8", "data.val_length=8"]
    if data == "modelnet40":
        data_files.write_modelnet40(tmp_path / "data")
        own = [f"data.root={tmp_path / 'data'}"]
    summary = train(tmp_path / "runs", *CLOUDS, f"data={data}", "model.width=4", *own)
    assert summary["updates"] == 1 and "accuracy" in summary["metrics"]["batch_average"]


PICTURES = ("task=stylization", "norm=sn", "batch=1x4", "iterations=1", "batch_average.samples=4", "model.width=4")


@pytest.mark.parametrize("model", [name for name in choices("model") if task_of("model", name) == "stylization"])
def test_every_stylizer(tmp_path, model):
    few = ("data.length=8", "data.val_length=4")
    summary = train(tmp_path, *PICTURES, f"model={model}", *few)
    assert summary["norm_layers"] == 15 and "style" in summary["metrics"]["moving_average"]


@pytest.mark.parametrize("data", [name for name in choices("data") if "pictures" in kinds_of("data", name)])
def test_every_dataset_of_pictures(tmp_path, data):
    own = ["data.length=8", "data.val_length=4", "data.size=32"]
    if data == "coco_images":
        data_files.write_coco(tmp_path / "data")
        own = [f"data.root={tmp_path / 'data'}", "data.size=32", "data.val_size=48"]
    summary = train(tmp_path / "runs", *PICTURES, f"data={data}", "model.blocks=2", *own)
    assert summary["updates"] == 1 and "content" in summary["metrics"]["batch_average"]


def load_classes(words: list[str]) -> tuple[str, ...]:
    return build_task(load(words)).dataset("train").classes


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in GROUPS if g not in RUN_BY_OTHER_TESTS for n in choices(g)])
def test_every_other_file(tmp_path, group, name):
    quick = QUICK.get(name, QUICK["digits"])
    train(tmp_path, f"{group}={name}", *companions(group, name), "batch=4x4", "epochs=1", *quick)


@pytest.mark.parametrize("tracker", choices("tracker"))
def test_every_tracker(tmp_path, tracker):
    words = [f"tracker={tracker}", "batch=4x4", "epochs=1", f"out={tmp_path}", *QUICK["digits"]]
    command = [sys.executable, "-m", "normlab.cli", "train", *words]  # of its own: W&B keeps its state in the process
    subprocess.run(command, check=True, env=os.environ | {"WANDB_MODE": "offline"})
    assert RunFolder.of(load(words)).summary()["status"] == "finished"
    left = {path.parent.name for path in (*tmp_path.glob("*/wandb/offline-run-*"), *tmp_path.glob("*/*/*.csv"))}
    left |= {path.parent.name for path in tmp_path.glob("*/tensorboard/events.*")}
    assert left == {"none": set(), "several": {"wandb", "tensorboard", "csv"}}.get(tracker, {tracker})


def test_two_devices_through_the_elastic_launcher(tmp_path, capfd):
    """The ranks read the resolved run and never compose; the summary tells how many there were."""
    summary = train(tmp_path, "devices=2", "threads=1", "batch=4x4", "epochs=1", *QUICK["digits"])
    assert summary["devices"] == 2
    one = train(tmp_path / "one", "batch=4x4", "epochs=1", *QUICK["digits"])
    assert one["id"] == summary["id"]
    assert one["metrics"]["batch_average"] == pytest.approx(summary["metrics"]["batch_average"], abs=1.0)


def test_what_a_rank_finds_wrong_is_one_line(tmp_path, capfd):
    words = ["train", "devices=2", "batch=4x50", "tracker=none", f"out={tmp_path}", *QUICK["digits"]]
    assert main(words) == 2
    assert "needs 200 samples an update, and the training set has 143" in capfd.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*/"))


def test_a_finished_run_is_not_run_again(tmp_path, capsys):
    words = ["train", "batch=4x4", "epochs=1", "tracker=none", f"out={tmp_path}", *QUICK["digits"]]
    assert main(words) == 0
    run = next(tmp_path.iterdir())
    written = (run / "summary.json").stat().st_mtime_ns
    assert main(words) == 0
    assert "finished already" in capsys.readouterr().out
    assert (run / "summary.json").stat().st_mtime_ns == written
    assert main([*words, "rerun=true"]) == 0
    assert (run / "summary.json").stat().st_mtime_ns > written
    assert main(["show", run.name.rpartition("-")[2], f"out={tmp_path}"]) == 0
    assert "finished after 8 updates" in capsys.readouterr().out
    assert main(["estimate", run.name, f"out={tmp_path}", "samples=64", "variance=population"]) == 0
    assert main(["eval", str(run)]) == 0


def test_a_scope_that_cannot_work_is_one_line_and_leaves_nothing(tmp_path, capsys):
    """One sample a replica and maps of 1x1 under BN: known before the first update is done."""
    words = ["train", "norm=bn", "model=mlp", "batch=8x1", "tracker=none", f"out={tmp_path}"]
    assert main(words) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "scope 'bn' cannot give the mean" in errors[0]
    assert not list(tmp_path.iterdir())
