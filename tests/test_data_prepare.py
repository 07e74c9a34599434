"""`prepare` and `verify` of every dataset, without a network."""

import hashlib
import io
import re
import tarfile
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torchvision
from data_files import jpeg, write_cifar10, write_class_folders, write_mnist
from hydra.utils import get_class
from omegaconf import OmegaConf

from normlab.data.imagenet import ImageNet
from normlab.datasets import _locate, prepare, verify
from normlab.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "conf" / "data").glob("*.yaml"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_options):
        raise URLError("no network\nhere")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_opens_with_a_comment_and_names_a_class(path, monkeypatch):
    monkeypatch.setenv("NORMLAB_DATA", "/somewhere")
    assert path.read_text().startswith("# ")
    config = OmegaConf.load(path)
    assert issubclass(get_class(config._target_), torchvision.datasets.VisionDataset.__base__)
    if "root" in config:
        shared = {"coco_images": "coco"}  # one folder of files, two datasets
        assert config.root == f"/somewhere/{shared.get(path.stem, path.stem)}"


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_embedded_data_need_nothing(name, tmp_path):
    assert prepare(name, tmp_path).startswith(f"{name}: ")
    assert "nothing to prepare" in prepare(name)
    assert verify(name, tmp_path) == verify(name) == []


@pytest.mark.parametrize("act", [prepare, verify])
def test_unknown_dataset_names_the_nearest(act, tmp_path):
    with pytest.raises(UserError, match="dataset 'cifar' does not exist; did you mean 'cifar10"):
        act("cifar", tmp_path)


# Without a network


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("mnist", "four .gz files into .*MNIST/raw"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("caltech256", "256_ObjectCategories.tar"),
        ("imagenet", "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"),
    ],
)
def test_no_network_is_one_line_that_names_the_archives(name, archive, tmp_path):
    with pytest.raises(UserError, match=archive) as error:
        prepare(name, tmp_path / "new")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "file",
    [
        "mnist/MNIST/raw/train-images-idx3-ubyte.gz",
        "cifar10/cifar-10-python.tar.gz",
        "cifar100/cifar-100-python.tar.gz",
        "caltech256/caltech256/256_ObjectCategories.tar",
    ],
)
def test_an_archive_of_another_checksum_is_named(file, tmp_path):
    """With what to do; and that there is no network is not what is wrong."""
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_bytes(b"another file")
    name = file.partition("/")[0]
    with pytest.raises(UserError, match=f"the checksum of {re.escape(str(tmp_path / file))} differs") as error:
        prepare(name, tmp_path / name)
    assert "remove it" in str(error.value) and "\n" not in str(error.value)


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def test_cifar_archive_put_by_the_user_is_unpacked(tmp_path, monkeypatch):
    write_cifar10(tmp_path / "made")
    files = {f"cifar-10-batches-py/{p.name}": p.read_bytes() for p in tmp_path.glob("made/*/*")}
    archive = tar({**files, "cifar-10-batches-py/batches.meta": b""}, "w:gz")
    root = tmp_path / "cifar10"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(archive)
    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(archive).hexdigest())
    checksums = {Path(name).name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, attribute, [[n, checksums[n]] for n, _ in getattr(dataset, attribute)])
    monkeypatch.setattr(dataset, "_load_meta", lambda self: None)
    assert prepare("cifar10", root) == f"cifar10: 65 training and 7 validation images in {root}"
    assert verify("cifar10", root) == [
        "train: expected 50000 images, found 65",
        "val: expected 10000 images, found 7",
    ]


def test_imagenet_archives_are_unpacked_by_class(tmp_path, monkeypatch):
    """Two classes; the third and fourth validation images belong to the first class."""
    fields = [("id", int), ("wnid", object), ("words", object), ("gloss", object), ("children", int)]
    synsets = [(1, "n01", "cat, puss", "a cat", 0), (2, "n02", "dog", "a dog", 0), (3, "n03", "animal", "both", 2)]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(synsets, dtype=fields)})
    devkit = {"data/meta.mat": meta.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": b"2\n2\n1\n1\n"}
    archives = {
        "devkit": tar({f"ILSVRC2012_devkit_t12/{name}": content for name, content in devkit.items()}, "w:gz"),
        "train": tar({f"{w}.tar": tar({f"{w}_{i}.JPEG": jpeg((9, 9)) for i in range(3)}) for w in ("n01", "n02")}),
        "val": tar({f"ILSVRC2012_val_0000000{i}.JPEG": jpeg((9, 9)) for i in range(1, 5)}),
    }
    known = torchvision.datasets.imagenet.ARCHIVE_META
    for key, content in archives.items():
        (tmp_path / known[key][0]).write_bytes(content)
        monkeypatch.setitem(known, key, (known[key][0], hashlib.md5(content).hexdigest()))
    assert prepare("imagenet", tmp_path) == f"imagenet: 6 training and 4 validation images in {tmp_path}"
    val = ImageNet("val", 0, root=str(tmp_path), size=8)
    assert [(bytes(f)[-6:], int(k)) for f, k in zip(val.files_N, val.labels_N, strict=True)] == [
        (b"3.JPEG", 0),
        (b"4.JPEG", 0),
        (b"1.JPEG", 1),
        (b"2.JPEG", 1),
    ]


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
def test_files_that_can_be_read_are_left_alone(tmp_path, folder):
    write_mnist(tmp_path / folder)
    assert prepare("mnist", tmp_path) == f"mnist: 40 training and 20 validation images in {tmp_path}"


def test_a_damaged_file_in_the_way_is_named(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\x05")
    with pytest.raises(
        UserError, match=r"MNIST: a file in .*MNIST/raw is damaged \(.*; remove it and run this"
    ) as error:
        prepare("mnist", tmp_path)
    assert "\n" not in str(error.value)


# What verify finds


def test_verify_mnist(tmp_path):
    write_mnist(tmp_path)
    counts = ["train: expected 60000 images, found 40", "val: expected 10000 images, found 20"]
    assert verify("mnist", tmp_path) == counts
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    problems = verify("mnist", tmp_path)
    assert problems[0] == counts[0]
    assert "no t10k-labels-idx1-ubyte" in problems[1]


def test_a_whole_mnist_has_no_problems(tmp_path):
    write_mnist(tmp_path, train=60_000, val=10_000)
    assert verify("mnist", tmp_path) == []


def test_verify_cifar_lists_every_problem(tmp_path):
    write_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    (folder / "data_batch_3").write_bytes(b"damaged")
    (folder / "data_batch_4").unlink()
    problems = verify("cifar10", tmp_path)
    assert sum("MD5" in problem for problem in problems) == 4  # three training files and the test file
    assert any("data_batch_3 is not a CIFAR batch" in problem for problem in problems)
    assert any("no data_batch_4" in problem for problem in problems)
    assert "train: expected 50000 images, found 38" in problems
    assert len(problems) == 8


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_verify_imagenet_lists_every_problem(tmp_path):
    for split in ("train", "val"):
        write_class_folders(tmp_path / split, ["n01", "n02"], 4, ".JPEG")
    assert verify("imagenet", tmp_path) == [
        f"{tmp_path}/{split}: expected {expected}"
        for split, images in [("train", 1281167), ("val", 50000)]
        for expected in ("1000 class folders, found 2", f"{images} images, found 8")
    ]
    truncate(tmp_path / "train" / "n01" / "n01_0003.JPEG")
    (tmp_path / "train" / "n02" / "n02_0001.JPEG").write_bytes(b"no image")
    (tmp_path / "val" / "n03").mkdir()
    problems = verify("imagenet", tmp_path)
    assert [p for p in problems if "cannot be decoded" in p and p.startswith(f"{tmp_path}/train/n01/n01_0003")]
    assert f"{tmp_path}/train/n02/n02_0001.JPEG: it is no image, or one that is damaged" in problems
    assert f"{tmp_path}/val/n03: the class has no image" in problems
    assert f"{tmp_path}: class 'n03' is not in both train and val" in problems
    assert len(problems) == 8
    assert all("\n" not in problem for problem in problems)


def test_verify_caltech(tmp_path):
    write_class_folders(tmp_path / "caltech256" / "256_ObjectCategories", ["001.ak47", "257.clutter"], 3)
    truncate(tmp_path / "caltech256" / "256_ObjectCategories" / "001.ak47" / "001_0002.jpg")
    problems = verify("caltech256", tmp_path)
    assert [problem.split(": ")[1] for problem in problems[:2]] == [
        "expected 256 class folders, found 1",
        "expected 29780 images, found 3",
    ]
    assert "001_0002.jpg: cannot be decoded" in problems[2]
    assert len(problems) == 3


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "caltech256", "imagenet"])
def test_verify_an_absent_folder(name, tmp_path):
    problems = verify(name, tmp_path / "absent")
    assert problems
    assert all(f"normlab data prepare {name}" in p or "found 0" in p for p in problems)
    assert not (tmp_path / "absent").exists()


def test_the_default_folder_is_where_NORMLAB_DATA_says(tmp_path, monkeypatch):  # noqa: N802
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    assert _locate("cifar10", None)[1] == tmp_path / "cifar10"
    monkeypatch.delenv("NORMLAB_DATA")
    assert _locate("imagenet", None)[1] == Path("data/imagenet") and _locate("digits", None)[1] is None
