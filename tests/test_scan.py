"""Which files of a dataset's folders are its images, in which order, and what is said of the others."""

import os
from pathlib import Path

import numpy as np
import pytest
import torchvision
from data_files import jpeg, write_class_folders

from normlab.cli import main
from normlab.config import load
from normlab.data import scan as scanning
from normlab.data.caltech256 import Caltech256
from normlab.data.imagenet import ImageNet
from normlab.data.scan import complete, scan
from normlab.datasets import verify
from normlab.engine.build import build_task
from normlab.errors import UserError

CLASSES = ["cat", "dog"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def imagenet(tmp_path):
    for split in ("train", "val"):
        write_class_folders(tmp_path / split, CLASSES, 3)
    return tmp_path


def as_torchvision(folder: Path) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, folder), k) for path, k in torchvision.datasets.ImageFolder(folder).samples]


def as_scanned(folder: Path) -> list[tuple[str, int]]:
    found = scan(folder)
    return [(file, int(k)) for file, k in zip(found.files, found.labels_N, strict=True)]


NESTED = ["a/2.png", "a/10.jpg", "a-b/1.jpg", "a/deep/er/1.JPG", "a/deep/2.webp", "B/1.tiff", "é/1.bmp", "x/y.jpeg.txt"]


def test_files_and_their_order_are_those_of_torchvisions_image_folder(tmp_path):
    for name in CLASSES:
        touch(tmp_path / name, *(f"{i}{extension}" for i in (10, 9, 1) for extension in scanning.EXTENSIONS))
        touch(tmp_path / name, "UPPER.PNG", "b.JPEG", "notes.txt", "old.gif", *NESTED)
    assert as_scanned(tmp_path) == as_torchvision(tmp_path)
    assert len(as_scanned(tmp_path)) == 2 * (3 * 9 + 2 + len(NESTED) - 1)
    assert set(torchvision.datasets.folder.IMG_EXTENSIONS) == set(scanning.EXTENSIONS)


def test_plain_class_folders_are_in_the_order_of_their_names(tmp_path):
    names = ["n_10.JPEG", "n_9.JPEG", "N_1.jpg", "a b.png", "é.jpg", "Z.jpeg", "\udcff.jpg"]
    for name in CLASSES:
        touch(tmp_path / name, *names)
    found = scan(tmp_path)
    assert found.files == [f"{name}/{file}" for name in CLASSES for file in sorted(names)]
    assert found.labels_N.tolist() == [0] * len(names) + [1] * len(names)


def test_links_are_followed_and_those_to_a_folder_around_them_are_not(tmp_path, caplog):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    touch(elsewhere, "1.jpg", "in/2.jpg")
    touch(root, "cat/a.jpg", "cat/b/c.jpg", "dog/d.jpg")
    (root / "cat" / "link").symlink_to(elsewhere)
    (root / "cow").symlink_to(elsewhere)
    (root / "cat" / "file.jpg").symlink_to(elsewhere / "1.jpg")
    assert as_scanned(root) == as_torchvision(root)
    (root / "self").symlink_to("self")  # no folder
    (root / "cat" / "b" / "again").symlink_to(root / "cat")
    (root / "dog" / "up").symlink_to(root)
    found = scan(root)
    assert [file for file in found.files if file.startswith("cat")] == [
        "cat/a.jpg", "cat/file.jpg", "cat/b/c.jpg", "cat/link/1.jpg", "cat/link/in/2.jpg",
    ]  # fmt: skip
    assert "links to a folder around them (cat/b/again)" in caplog.messages[-1]


def test_links_that_multiply_folders_end(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "_MOST_FOLDERS", 1000)
    touch(tmp_path, "root/cat/1.jpg", "root/dog/1.jpg")
    here = tmp_path / "root" / "cat"
    for depth in range(30):  # 2**30 folders
        beyond = tmp_path / f"level{depth}"
        beyond.mkdir()
        for name in "ab":
            (here / name).symlink_to(beyond)
        here = beyond
    with pytest.raises(UserError, match=r"root/cat: it has more than 1,000 folders; links may multiply them"):
        complete(tmp_path / "root", scan(tmp_path / "root"))


STRAY = ["cat/._1.jpg", "cat/.DS_Store", "cat/.git/1.jpg", "cat/Thumbs.db", "dog/a.jfif", "dog/b.gif", "dog/in/._2.jpg"]


def left_out(root: Path) -> str:
    return (
        f"{root}/train: 9 left out: 4 hidden (cat/.DS_Store); 1 in no class folder (loose.jpg); "
        f"3 not named {', '.join(scanning.EXTENSIONS)} (README); 1 of a system (cat/Thumbs.db)"
    )


def words(root: Path, *more: str) -> list[str]:
    small = ("data.size=8", "model=digits_resnet", "model.width=4", "norm=bn", "batch=2x2", "iterations=1", "threads=1")
    return ["data=imagenet", f"data.root={root}", *small, "tracker=none", f"out={root / 'runs'}", *more]


@pytest.mark.parametrize("verb", ["plan", "train", "verify"])
def test_what_is_left_out_is_said_by_every_command(imagenet, verb, caplog):
    """Hidden files and AppleDouble ones are no images, whatever their names end with."""
    touch(imagenet / "train", *STRAY, "loose.jpg", "README")
    command = ["data", "verify", "imagenet", f"root={imagenet}"] if verb == "verify" else [verb, *words(imagenet)]
    assert main(command) == (1 if verb == "verify" else 0)
    assert [line for line in caplog.messages if "left out" in line] == [left_out(imagenet)]
    assert len(ImageNet("train", 0, root=str(imagenet))) == 6


def test_one_rank_says_it(imagenet, caplog, monkeypatch):
    touch(imagenet / "train", "README")
    monkeypatch.setenv("RANK", "1")
    ImageNet("train", 0, root=str(imagenet))
    assert caplog.messages == []


def test_the_names_shown_steer_no_terminal(imagenet, caplog):
    touch(imagenet / "train" / "cat", "\x1b[2J\nodd")
    scan(imagenet / "train")
    assert r"(cat/\x1b[2J\nodd)" in caplog.messages[-1]


def test_caltech_has_images_right_in_its_class_folders_only(tmp_path, caplog):
    root = tmp_path / "256_ObjectCategories"
    write_class_folders(root, ["001.ak47", "002.flag"], 10)
    expected = Caltech256("train", 0, root=str(tmp_path)).files_N.tolist()
    write_class_folders(root / "001.ak47", ["greg"], 2)
    assert Caltech256("train", 0, root=str(tmp_path)).files_N.tolist() == expected
    assert caplog.messages == [f"{root}: 1 left out: 1 folders in a class folder (001.ak47/greg)"]


# Layouts


def test_a_flat_folder_says_what_to_do(imagenet):
    for path in sorted(imagenet.glob("val/*/*")):
        path.rename(imagenet / "val" / f"{path.parent.name}_{path.name}")
    for name in CLASSES:
        (imagenet / "val" / name).rmdir()
    said = f"{imagenet}/val has no class folders, but 6 images: move each into a folder named as its class"
    for split in ("train", "val"):
        with pytest.raises(UserError) as error:
            ImageNet(split, 0, root=str(imagenet))
        assert str(error.value).startswith(said)
    problems = verify("imagenet", imagenet)
    assert any(problem.startswith(said) for problem in problems)
    assert not any("not in both" in problem for problem in problems)


def test_one_class_is_refused(imagenet):
    for split in ("train", "val"):
        (imagenet / split / "dog").rename(imagenet / f"{split}-dog")
    with pytest.raises(UserError, match="train has one class folder only, cat, and nothing to tell it from"):
        ImageNet("val", 0, root=str(imagenet))
    task = build_task(load(["data=synthetic", "data.num_classes=1"]))
    with pytest.raises(UserError, match="the data have 1 class"):
        _ = task.num_classes


@pytest.fixture
def tiny(tmp_path):
    """Tiny ImageNet as it is unpacked: images one folder further down, the classes of val in a file."""
    wnids = ["n02", "n01"]
    for wnid in wnids:
        (tmp_path / "train" / wnid / "images").mkdir(parents=True)
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").touch()
        for i in range(3):
            (tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(jpeg((64, 64)))
    (tmp_path / "val" / "images").mkdir(parents=True)
    lines = [f"val_{i}.JPEG\t{wnids[i % 2]}\t0\t32\t44\t62\n" for i in range(6)]
    for i in range(6):
        (tmp_path / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg((64, 64), color=(40 * i, 0, 0)))
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_tiny_imagenet_works_as_it_is_unpacked(tiny, caplog):
    train, val = (ImageNet(split, 0, root=str(tiny), size=32) for split in ("train", "val"))
    assert train.num_classes == val.num_classes == 2
    assert [os.fsdecode(file) for file in train.files_N][::3] == ["n01/images/n01_0.JPEG", "n02/images/n02_0.JPEG"]
    assert train.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert [os.fsdecode(file) for file in val.files_N] == [f"images/val_{i}.JPEG" for i in (1, 3, 5, 0, 2, 4)]
    assert val.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert abs(np.asarray(val.read(4)).mean((0, 1)) - [80, 0, 0]).max() < 4
    assert main(["train", *words(tiny)]) == 0
    (tiny / "val" / "images" / "val_3.JPEG").unlink()
    touch(tiny / "val" / "images", "val_9.JPEG")
    problems = [problem for problem in verify("imagenet", tiny) if "expected" not in problem]
    assert problems == [f"{tiny}/val/images/val_3.JPEG: cannot be decoded (No such file or directory)"]
    said = f"{tiny}/val: 1 left out: 1 not in val_annotations.txt (images/val_9.JPEG)"
    assert said in caplog.messages


@pytest.mark.parametrize(
    "line",
    ["", "val_1.JPEG", "val_1.JPEG\t", "\tn01", "val_0.JPEG\tn01", "../val_1.JPEG\tn01", "\0\tn01", "\udcff\tn01"],
)
def test_tiny_imagenets_labels_are_checked(tiny, line):
    path = tiny / "val" / "val_annotations.txt"
    path.write_bytes(os.fsencode(f"val_0.JPEG\tn01\n{line}\nval_2.JPEG\tn02\n"))
    with pytest.raises(UserError) as error:
        ImageNet("train", 0, root=str(tiny))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
