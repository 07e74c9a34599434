"""Datasets read from disk: real formats, generated content."""

import gzip
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from data_files import as_python2, jpeg, write_cifar, write_cifar10, write_class_folders, write_idx, write_mnist
from PIL import Image
from torch.utils.data import DataLoader

from normlab.data.caltech256 import Caltech256
from normlab.data.cifar import CIFAR10, CIFAR100
from normlab.data.imagenet import MEAN, STD, ImageNet
from normlab.data.mnist import MNIST
from normlab.errors import UserError


def normalised(image_CHW, mean, std):
    mean, std = np.reshape(mean, (-1, 1, 1)), np.reshape(std, (-1, 1, 1))
    return (np.asarray(image_CHW, np.float64) / 255 - mean) / std


def assert_same(tensor, array, atol=1e-5):
    np.testing.assert_allclose(tensor.numpy(), array, rtol=0, atol=atol)


A_BYTE = 1.01 / 255 / min(STD)  # what PIL and torch may round differently when they resize


# MNIST


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
def test_mnist_reads_packed_and_unpacked_files(tmp_path, suffix, folder):
    written = write_mnist(tmp_path / folder, suffix)
    for split, (images, labels) in written.items():
        dataset = MNIST(split, 0, root=str(tmp_path))
        assert len(dataset) == len(images)
        assert dataset.shape == (1, 28, 28)
        image, label = dataset[0, 13]
        assert_same(image, normalised(images[13][None], [0.1307], [0.3081]))
        assert image.dtype == torch.float32
        assert label == labels[13]


def test_mnist_size_and_fraction(tmp_path):
    write_mnist(tmp_path)
    dataset = MNIST("train", 0, root=str(tmp_path), size=8, fraction=0.5)
    assert dataset[None, 0][0].shape == dataset.shape == (1, 8, 8)
    assert np.bincount(dataset.labels_N).tolist() == [2] * 10
    assert len(MNIST("val", 0, root=str(tmp_path), fraction=0.5)) == 20


def test_mnist_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.*normlab data prepare mnist root="):
        MNIST("train", 0, root=str(tmp_path))


@pytest.mark.parametrize(
    "damage", [b"", b"\0\0", b"no idx file here", b"\0\0\x08\x03\0\0\0\x05", b"\0\0\x08\x01" + b"\0\0\0\x02\x01"]
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_damaged_file(tmp_path, damage, suffix):
    write_mnist(tmp_path, suffix)
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(damage)
    with pytest.raises(UserError) as error:
        MNIST("train", 0, root=str(tmp_path))
    assert "\n" not in str(error.value)


def test_mnist_truncated_gz(tmp_path):
    write_mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match="cannot be read"):
        MNIST("train", 0, root=str(tmp_path))


def peak_bytes(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("shape", "zeros", "message"),
    [
        ((3, 28, 28), 2**26, "goes on behind"),
        ((3, 28, 28), 3 * 28 * 28 - 1, "ends after 2,351 bytes"),
        ((2**32 - 1, 28, 28), 2**26, "at most 300,000 images"),
        ((3, 2**31, 2**31), 2**26, "at most 300,000 images"),
        ((3, 28), 100, "first bytes"),
    ],
)
def test_mnist_takes_no_more_than_its_header_says(tmp_path, suffix, shape, zeros, message):
    write_mnist(tmp_path, suffix)
    content = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(zeros)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content, 1) if suffix else content)
    del content

    def refuse():
        with pytest.raises(UserError, match=message) as error:
            MNIST("train", 0, root=str(tmp_path))
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)

    assert peak_bytes(refuse) < 2**22


def test_mnist_arrays_that_do_not_fit(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(3))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte have images .* and labels \(3,\)"):
        MNIST("val", 0, root=str(tmp_path))
    write_mnist(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((20, 20, 28)))
    with pytest.raises(UserError, match=r"\(20, 20, 28\)"):
        MNIST("val", 0, root=str(tmp_path))


# CIFAR


def test_cifar10_evaluation_images(tmp_path):
    written = write_cifar10(tmp_path)
    train, val = (CIFAR10(split, 0, root=str(tmp_path)) for split in ("train", "val"))
    assert (len(train), len(val)) == (65, 7)
    assert train.shape == val.shape == (3, 32, 32)
    data, labels = written["test_batch"]
    assert_same(val[0, 4][0], normalised(data[4].reshape(3, 32, 32), CIFAR10.mean, CIFAR10.std))
    assert [val[0, i][1] for i in range(7)] == labels
    data, labels = written["data_batch_2"]  # 11 images come before it
    assert_same(train[None, 11][0], normalised(data[0].reshape(3, 32, 32), CIFAR10.mean, CIFAR10.std))


def test_cifar10_training_images_are_crops_of_the_padded_one(tmp_path):
    written = write_cifar10(tmp_path)
    dataset = CIFAR10("train", 0, root=str(tmp_path))
    raw = np.pad(written["data_batch_1"][0][3].reshape(3, 32, 32), ((0, 0), (2, 2), (2, 2)))
    crops = [raw[:, t : t + 32, s : s + 32] for t in range(5) for s in range(5)]
    crops += [crop[:, :, ::-1] for crop in crops]
    allowed = np.stack([normalised(crop, CIFAR10.mean, CIFAR10.std) for crop in crops])
    matched = set()
    for epoch in range(12):
        distance = abs(allowed - dataset[epoch, 3][0].numpy()).max(axis=(1, 2, 3))
        assert distance.min() < 1e-5
        matched.add(int(distance.argmin()))
    assert len(matched) > 5


def test_cifar100_uses_the_fine_labels(tmp_path):
    written = write_cifar(tmp_path / "cifar-100-python", {"train": 120, "test": 30}, "fine_labels", 100)
    train, val = (CIFAR100(split, 0, root=str(tmp_path), size=16, augment=False) for split in ("train", "val"))
    assert train.num_classes == 100
    assert [val[None, i][1] for i in range(30)] == written["test"][1]
    assert train[0, 5][0].shape == train.shape == (3, 16, 16)
    assert torch.equal(train[0, 5][0], train[1, 5][0])


def test_cifar_files_may_lie_right_in_the_root(tmp_path):
    write_cifar10(tmp_path)
    assert len(CIFAR10("val", 0, root=str(tmp_path / "cifar-10-batches-py"))) == 7


def test_cifar_missing_file(tmp_path):
    with pytest.raises(UserError, match="no data_batch_1; `normlab data prepare cifar10 root="):
        CIFAR10("train", 0, root=str(tmp_path))


def python2(data, labels):
    return as_python2(data, "labels", labels)


def python3(protocol, order="C"):
    def content(data, labels):
        array = np.asarray(data, order=order)
        return pickle.dumps({"labels": labels, "data": array, "more": [[], {}, (1, "x", None)]}, protocol=protocol)

    return content


@pytest.mark.parametrize("write", [python2, *map(python3, range(6)), python3(2, "F"), python3(4, "F"), python3(5, "F")])
def test_cifar_files_of_every_python(tmp_path, write):
    write_cifar10(tmp_path)
    random = np.random.RandomState(1)
    data, labels = random.randint(0, 256, (300, 3072), np.uint8), random.randint(0, 10, 300).tolist()
    content = write(data, labels)
    assert np.array_equal(pickle.loads(content, encoding="latin1")["data"], data)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    dataset = CIFAR10("val", 0, root=str(tmp_path))
    assert np.array_equal(dataset.images_NCHW.numpy(), data.reshape(-1, 3, 32, 32))
    assert dataset.labels_N.tolist() == labels


class Malicious:
    def __reduce__(self):
        return os.system, ("touch broken-in",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1.0, 2.5]}),
        pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]}),
        pickle.dumps({"data": np.zeros((3072, 2), np.uint8), "labels": [1, 2]}),
        pickle.dumps({"data": np.zeros((2, 3000), np.uint8), "labels": [1, 2]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2**40]}),
        pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}),
        pickle.dumps({"data": np.zeros((2, 3072), np.int8), "labels": [1, 2]}),
        pickle.dumps({"data": np.array([None] * 3072), "labels": [1]}),
        pickle.dumps({"data": b"x" * 3072, "labels": [1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]})[:-1],
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": {1: 2, 2: 2}}),
        pickle.dumps(Malicious()),
        b"(" * 1000 + b"t" * 1000 + b".",
        b"t.",
        b"\x85.",
        b"]]a" * 400_000 + b".",
        b"Vabc\n" * 3,
        b"S" + b"x" * 100_000 + b"\n.",
        b"]q\x00h\x00a.",
        b"\x8e" + b"\xff" * 8 + b"x.",
        b"T\xff\xff\xff\x7fx.",
        as_python2(np.zeros((2, 3072), np.uint8), "labels", [1, 2]).replace(b"K\x00tb", b"K\x00tbK\x00b"),
        as_python2(np.zeros((2, 3072), np.uint8), "labels", [1, 2]).replace(b"K\x02M", b"K\x03M"),
        as_python2(np.zeros((2, 3072), np.uint8), "labels", [1, 2]).replace(b"K\x02M", b"J\xff\xff\xff\xffM"),
    ],
)
def test_cifar_odd_file(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="test_batch is not a CIFAR batch") as error:
        CIFAR10("val", 0, root=str(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert not (tmp_path / "broken-in").exists()


def shared_lists(depth: int) -> list:
    inner: list = [0] * 10
    for _ in range(depth):
        inner = [inner] * 10
    return inner


def test_cifar_lists_that_share_lists_take_no_room(tmp_path):
    write_cifar10(tmp_path)
    content = {"data": np.zeros((10, 3072), np.uint8), "labels": shared_lists(12)}
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="labels are no whole numbers"):
        CIFAR10("val", 0, root=str(tmp_path))


def test_cifar_arrays_are_made_of_plain_bytes_only(tmp_path):
    """Whatever a file says of its dtype, numpy is never told: a file could have it write anywhere in memory."""
    write_cifar10(tmp_path)
    state = b"(K\x03U\x01|N(U\x01at}U\x01acnumpy\ndtype\nU\x02O8K\x00K\x01\x87RK\x00\x86sK\x08K\x01K\x1btb"
    data = np.full((2, 3072), 7, np.uint8)
    content = as_python2(data, "labels", [1, 2])
    start = content.index(b"(K\x03")
    odd = content[:start] + state + content[content.index(b"K\x00tb", start) + 4 :]
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(odd)
    assert np.array_equal(CIFAR10("val", 0, root=str(tmp_path)).images_NCHW.numpy().reshape(2, -1), data)


def test_cifar_file_that_is_too_large(tmp_path):
    write_cifar10(tmp_path)
    with (tmp_path / "cifar-10-batches-py" / "test_batch").open("wb") as file:
        file.truncate(2**40)  # a file with a hole
    with pytest.raises(UserError, match="more than 300,000,000 bytes"):
        CIFAR10("val", 0, root=str(tmp_path))


# Caltech-256


@pytest.fixture
def caltech(tmp_path):
    write_class_folders(tmp_path / "256_ObjectCategories", ["001.ak47", "002.flag", "257.clutter"], 10)
    (tmp_path / "256_ObjectCategories" / "001.ak47" / "greg").mkdir()  # the real one has such a stray folder,
    (tmp_path / "256_ObjectCategories" / "002.flag" / "RENAME2").write_text("mv")  # and such a stray file
    return tmp_path


def test_caltech_holds_a_fifth_of_every_class_out_and_drops_clutter(caltech):
    train, val = (Caltech256(split, 0, root=str(caltech), size=24) for split in ("train", "val"))
    assert train.num_classes == val.num_classes == 2
    assert np.bincount(train.labels_N).tolist() == [8, 8]
    assert np.bincount(val.labels_N).tolist() == [2, 2]
    assert len({*train.files_N, *val.files_N}) == 20
    assert np.bincount(Caltech256("train", 7, root=str(caltech), fraction=0.5).labels_N).tolist() == [4, 4]


def test_caltech_images(caltech):
    dataset = Caltech256("train", 0, root=str(caltech), size=24)
    path = dataset.folder / os.fsdecode(dataset.files_N[6])
    resized = Image.open(path).convert("RGB").resize((24, 24), Image.Resampling.BILINEAR)
    expected = normalised(np.asarray(resized).transpose(2, 0, 1), MEAN, STD)
    assert_same(dataset[None, 6][0], expected, A_BYTE)
    assert dataset[0, 6][0].shape == dataset.shape == (3, 24, 24)


def test_one_channel_is_copied_to_three(caltech):
    datasets = [Caltech256(split, 0, root=str(caltech), size=24, augment=False) for split in ("train", "val")]
    grey = [d[None, i][0] for d in datasets for i in range(len(d)) if b"_0001" in d.files_N[i]]
    assert len(grey) == 2
    for image in grey:
        pixels = image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        torch.testing.assert_close(pixels[0], pixels[1])
        torch.testing.assert_close(pixels[0], pixels[2])


def test_caltech_missing(tmp_path):
    with pytest.raises(UserError, match="no folder 256_ObjectCategories; `normlab data prepare caltech256"):
        Caltech256("train", 0, root=str(tmp_path))


# ImageNet


@pytest.fixture
def imagenet(tmp_path):
    for split, count in [("train", 6), ("val", 3)]:
        write_class_folders(tmp_path / split, ["n01440764", "n01443537"], count, ".JPEG")
    return tmp_path


def test_imagenet_evaluation_images(imagenet):
    dataset = ImageNet("val", 0, root=str(imagenet), size=28)
    assert len(dataset) == 6
    assert dataset.num_classes == 2
    assert [dataset[0, i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    image = Image.open(imagenet / "val" / "n01443537" / "n01_0003.JPEG").resize((33, 32), Image.Resampling.BILINEAR)
    expected = normalised(np.asarray(image).transpose(2, 0, 1)[:, 2:30, 2:30], MEAN, STD)
    assert_same(dataset[None, 5][0], expected, A_BYTE)


def test_imagenet_augmentation_depends_on_seed_epoch_index_only(imagenet):
    dataset = ImageNet("train", 0, root=str(imagenet), size=32)
    keys = [(epoch, i) for epoch in (0, 1) for i in range(len(dataset))]
    expected = torch.stack([dataset[key][0] for key in keys])
    assert expected.shape[1:] == dataset.shape == (3, 32, 32)
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=5, sampler=keys[::-1], num_workers=workers)
        assert torch.equal(torch.cat([images for images, _ in loader]).flip(0), expected)
    assert not torch.equal(expected[:12], expected[12:])
    assert not torch.equal(ImageNet("train", 1, root=str(imagenet), size=32)[0, 0][0], expected[0])


def test_imagenet_without_augmentation(imagenet):
    still = ImageNet("train", 0, root=str(imagenet), size=32, augment=False)
    assert torch.equal(still[0, 2][0], still[None, 2][0])
    assert torch.equal(still[0, 2][0], ImageNet("train", 0, root=str(imagenet), size=32)[None, 2][0])


def test_large_jpegs_are_decoded_reduced_but_never_below_what_a_crop_needs(imagenet):
    (imagenet / "val" / "n01440764" / "n01_0001.JPEG").write_bytes(jpeg((1600, 1200), color=(200, 100, 50)))
    dataset = ImageNet("val", 0, root=str(imagenet), size=32)
    assert dataset.read(0).size == (200, 150)  # an eighth; 131 = 32 / sqrt(0.08 * 3/4) is the least
    expected = np.broadcast_to(normalised(np.reshape([200, 100, 50], (3, 1, 1)), MEAN, STD), (3, 32, 32))
    assert_same(dataset[None, 0][0], expected, atol=0.05)
    assert ImageNet("val", 0, root=str(imagenet), size=224).read(0).size == (1600, 1200)


def test_imagenet_fraction(imagenet):
    halves = [ImageNet("train", seed, root=str(imagenet), fraction=0.5) for seed in (0, 1)]
    assert np.bincount(halves[0].labels_N).tolist() == [3, 3]
    assert (halves[0].files_N == halves[1].files_N).all()


def test_imagenet_missing_split(tmp_path):
    with pytest.raises(UserError, match="no folder 'train'; `normlab data prepare imagenet"):
        ImageNet("train", 0, root=str(tmp_path))


def test_imagenet_classes_must_agree(imagenet):
    (imagenet / "val" / "n99999999").mkdir()
    with pytest.raises(UserError, match="'n99999999' is not in both"):
        ImageNet("train", 0, root=str(imagenet))


def test_imagenet_empty_class(imagenet):
    for split in ("train", "val"):
        (imagenet / split / "n00000001").mkdir()
    with pytest.raises(UserError, match="n00000001 has no image; 1 of 3"):
        ImageNet("train", 0, root=str(imagenet))


def test_imagenet_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        ImageNet("train", 0, root=str(tmp_path))
