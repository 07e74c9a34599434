"""COCO's layout on disk against pycocotools, and in a run."""

import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_coco
from PIL import Image
from pycocotools import coco as theirs_of

from normlab.cli import main
from normlab.config import load
from normlab.data.coco import COCO
from normlab.data.dataset import SampleError
from normlab.datasets import prepare, verify
from normlab.errors import UserError
from normlab.runs.folder import RunFolder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder)
    return folder


@pytest.fixture
def copy(root, tmp_path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))


def annotations(root: Path, split: str = "val") -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def test_samples_are_those_of_pycocotools(root):
    """Images by number, whatever the order of the file; labels without gaps; crowds and empty images among them."""
    dataset, theirs = COCO("val", 0, root=str(root)), theirs_of.COCO(str(annotations(root)))
    assert [dataset.image_id(k) for k in range(len(dataset))] == sorted(theirs.imgs) == [900 + 7 * k for k in range(6)]
    assert dataset.category_ids == sorted(theirs.getCatIds()) == [3, 18, 90] and dataset.num_classes == 3
    assert dataset.classes == ("background", "car", "dog", "toothbrush")
    crowds = 0
    for k in range(6):
        image, target = dataset.take(None, k, k)
        rows = theirs.imgToAnns[dataset.image_id(k)]
        name = theirs.imgs[dataset.image_id(k)]["file_name"]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(root / "val2017" / name)))
        assert len(target["boxes"]) == len(rows) and target["image_id"] == dataset.image_id(k)
        for n, row in enumerate(rows):
            left, top, width, height = row["bbox"]
            right, bottom = min(left + width, image.shape[2]), min(top + height, image.shape[1])
            assert target["boxes"][n].tolist() == pytest.approx([left, top, right, bottom])
            assert np.array_equal(target["masks"][n].numpy(), theirs.annToMask(row).astype(bool))
            assert dataset.category_ids[target["labels"][n] - 1] == row["category_id"]
            assert (target["area"][n], target["iscrowd"][n]) == (row["area"], row["iscrowd"])
            crowds += row["iscrowd"]
    assert crowds == 2 and len(dataset.take(None, 2, 2)[1]["boxes"]) == 0


def test_training_images_with_nothing_in_them(root, copy):
    """Are left out, as are those with crowds alone; `empty` keeps them. Boxes without an area are no objects."""
    assert len(COCO("train", 0, root=str(root))) == 5 and len(COCO("train", 0, root=str(root), empty=True)) == 6
    content = json.loads(annotations(copy, "train").read_text())
    for row in content["annotations"]:
        if row["image_id"] == 9:
            row["bbox"][2] = 0
        if row["image_id"] == 9 + 7 * 4:
            row["iscrowd"] = 1
    annotations(copy, "train").write_text(json.dumps(content))
    left = COCO("train", 0, root=str(copy))
    assert [left.image_id(k) for k in range(len(left))] == [9 + 7 * k for k in (1, 3, 5)]


@pytest.mark.parametrize("side", [1e-7, 1e-4])
def test_boxes_that_rounding_would_empty_are_no_objects(copy, side):
    """A detector refuses a box without an area, and these would have none in float32, or after the image is resized."""
    content = json.loads(annotations(copy, "train").read_text())
    for row in content["annotations"]:
        row["bbox"] = [20.0, 20.0, side, 5.0] if row["id"] % 2 else [20.0, 20.0, 0.5, 0.5]
    annotations(copy, "train").write_text(json.dumps(content))
    dataset = COCO("train", 0, root=str(copy), empty=True)
    boxes = torch.cat([dataset.take(epoch, k, k)[1]["boxes"] for epoch in range(4) for k in range(len(dataset))])
    assert len(boxes) and (boxes[:, 2:] - boxes[:, :2] > 0.4).all()


def test_augmentation_is_a_function_of_seed_epoch_and_index(root):
    dataset = COCO("train", 3, root=str(root))
    flips = set()
    for epoch in range(8):
        image, target = dataset.take(epoch, 0, 0)
        again, same = dataset.take(epoch, 0, 0)
        plain, before = dataset.take(None, 0, 0)
        assert torch.equal(image, again) and torch.equal(target["boxes"], same["boxes"])
        flipped = not torch.equal(image, plain)
        flips.add(flipped)
        assert torch.equal(image.flip(2) if flipped else image, plain)
        for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"], strict=True):
            rows, columns = torch.where(mask)
            assert columns.min() >= left.floor() and columns.max() < right.ceil()
            assert rows.min() >= top.floor() and rows.max() < bottom.ceil()
        assert torch.equal(target["masks"].flip(2) if flipped else target["masks"], before["masks"])
    assert flips == {True, False}
    still = COCO("train", 3, root=str(root), flip=False)
    assert all(torch.equal(still.take(epoch, 0, 0)[0], plain) for epoch in range(8))


def test_groups_are_wide_images_and_others(root):
    dataset = COCO("train", 0, root=str(root))
    assert dataset.groups == [int(p.width > p.height) for p in dataset.pictures] and set(dataset.groups) == {0, 1}
    assert COCO("train", 0, root=str(root), group=False).groups is None
    assert COCO("val", 0, root=str(root)).groups is None


@pytest.mark.parametrize(("more", "kinds"), [((), 1), (("model.mask=true",), 2)])
def test_a_run_and_its_predictions(root, tmp_path, more, kinds):
    """Unequal images padded among those of a replica, AP at their own sizes, results with COCO's numbers."""
    words = ["task=detection", "data=coco", f"data.root={root}", "norm=sn", "batch=2x2", "iterations=2", "threads=1",
             "tracker=none", "model.channels=8", "model.hidden=16", "model.least_score=0.001", "model.min_size=64",
             "batch_average.samples=4", f"out={tmp_path / 'runs'}", *more]  # fmt: skip
    assert main(["train", *words]) == 0
    folder = RunFolder.of(load(words))
    found = folder.summary()["metrics"]["batch_average"]
    assert 0 <= found["ap"] <= 100 and ("mask_ap" in found) == (kinds == 2)
    assert main(["predict", str(folder.path), f"out={tmp_path / 'found'}"]) == 0
    theirs = theirs_of.COCO(str(annotations(root)))
    for kind in ("bbox", "segm")[:kinds]:
        results = theirs.loadRes(str(tmp_path / "found" / f"{kind}.json"))
        assert {row["image_id"] for row in results.anns.values()} <= set(theirs.imgs)
        assert {row["category_id"] for row in results.anns.values()} <= {3, 18, 90}
        if kind == "segm":
            shapes = {k: theirs.annToMask(row).shape for k, row in results.anns.items()}
            images = {k: theirs.imgs[row["image_id"]] for k, row in results.anns.items()}
            assert all(shapes[k] == (image["height"], image["width"]) for k, image in images.items())
    assert len(list((tmp_path / "found").iterdir())) == kinds


# ---- what may be wrong on the disk ---------------------------------------------------------------------------------


def test_archives_that_the_user_has_are_unpacked(root, tmp_path):
    for archive, inside in (
        ("annotations_trainval2017", "annotations"),
        ("train2017", "train2017"),
        ("val2017", "val2017"),
    ):
        with zipfile.ZipFile(tmp_path / f"{archive}.zip", "w") as file:
            for path in sorted((root / inside).iterdir()):
                file.write(path, f"{inside}/{path.name}")
    assert prepare("coco", tmp_path) == f"coco: 5 training and 6 validation images in {tmp_path}"
    assert len(verify("coco", tmp_path)) == len(verify("coco", root)) == 2  # the numbers of images alone
    with pytest.raises(UserError, match=r"has no annotations_trainval2017\.zip; put "):
        prepare("coco", tmp_path / "nowhere")


def test_verify_names_each_bad_file(copy):
    expected = [f"{copy}: expected 118287 images of train, found 6", f"{copy}: expected 5000 images of val, found 6"]
    assert verify("coco", copy) == expected
    names = [f"{900 + 7 * k:012}.jpg" for k in range(6)]
    (copy / "val2017" / names[0]).unlink()
    (copy / "val2017" / names[1]).write_bytes(b"no image")
    Image.new("RGB", (9, 9)).save(copy / "val2017" / names[3])
    content = json.loads(annotations(copy).read_text())
    next(row for row in content["annotations"] if row["image_id"] == 928)["segmentation"] = {
        "size": [3, 3],
        "counts": [9],
    }
    annotations(copy).write_text(json.dumps(content))
    problems = verify("coco", copy)
    assert len(problems) == 6 and problems[1] == expected[1]
    assert names[0] in problems[2] and names[1] in problems[3]
    assert f"{names[3]}: it has 9 x 9 pixels, and its annotations 40 x 64" in problems[4]
    assert f"{names[4]}: it has 33 x 33 pixels, and a mask of it 3 x 3" in problems[5]


def test_a_bad_sample_is_named(copy):
    (copy / "val2017" / "000000000900.jpg").unlink()
    with pytest.raises(SampleError, match=r"val2017/000000000900\.jpg: .* \(sample 0 of val\)"):
        COCO("val", 0, root=str(copy)).take(None, 0, 0)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [10**6, 10**6], "counts": [10**12]}, "and a mask of it 1000000 x 1000000"),  # no room is made for it
        ({"size": [-64, -40], "counts": [3]}, "no polygons and no run lengths"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "no polygons and no run lengths"),
        ([], "no polygons and no run lengths"),
        (None, "no polygons and no run lengths"),
    ],
)
def test_masks_that_are_none_are_one_line(copy, segmentation, message):
    content = json.loads(annotations(copy).read_text())
    next(row for row in content["annotations"] if row["image_id"] == 900)["segmentation"] = segmentation
    annotations(copy).write_text(json.dumps(content))
    with pytest.raises(SampleError, match=message) as error:
        COCO("val", 0, root=str(copy)).take(None, 0, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("images"), "these are no annotations as COCO has them"),
        (lambda content: content["annotations"][0].pop("bbox"), "'bbox' is missing"),
        (lambda content: content["annotations"][0].update(category_id=4), "is of category 4, which is not there"),
        (lambda content: content["annotations"][0].update(image_id=4), "these are no annotations as COCO has them"),
        (lambda content: content["annotations"][0].update(area="large"), "could not convert"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, 3]), "expected 4 finite numbers, found"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, math.nan, 3]), "expected 4 finite numbers"),
        (lambda content: content["annotations"][0].update(area=math.inf), "expected 1 finite number, found"),
        (lambda content: content["images"].clear(), "these are no annotations as COCO has them"),
        (lambda content: content.update(categories=[], annotations=[]), "it has no categories"),
    ],
)
def test_annotations_that_are_none_are_one_line(copy, change, message):
    content = json.loads(annotations(copy).read_text())
    change(content)
    annotations(copy).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        COCO("val", 0, root=str(copy))
    assert str(annotations(copy)) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_folder_says_what_prepares_it(tmp_path):
    with pytest.raises(UserError, match=r"no annotations/instances_train2017\.json; `normlab data prepare coco root="):
        COCO("train", 0, root=str(tmp_path))
