"""ADE20K, Cityscapes and VOC in their real layouts: what is read, how it is augmented, and what is refused."""

import pickle
import shutil
import urllib.request
import zipfile
from collections import Counter
from urllib.error import URLError

import numpy as np
import pytest
import torch
from data_files import write_ade20k, write_cityscapes, write_map, write_voc
from PIL import Image
from torchvision.datasets import Cityscapes as Published

from normlab.cli import main
from normlab.config import choices, kinds_of, settings_of
from normlab.data.ade20k import ADE20K
from normlab.data.augment import sample_rng, scale_crop_flip
from normlab.data.cityscapes import Cityscapes
from normlab.data.dataset import VOID, SampleError
from normlab.data.stored import fingerprint
from normlab.data.voc import VOC
from normlab.datasets import prepare, verify
from normlab.engine.loader import _Samples
from normlab.errors import UserError
from normlab.schema import class_attribute

WRITE = {"ade20k": write_ade20k, "cityscapes": write_cityscapes, "voc": write_voc}
DATASETS = {"ade20k": ADE20K, "cityscapes": Cityscapes, "voc": VOC}
MEAN = (0.485, 0.456, 0.406)
OF_EACH = pytest.mark.parametrize("name", WRITE)


@pytest.fixture
def roots(tmp_path):
    for name, write in WRITE.items():
        write(tmp_path / name)
    return {name: tmp_path / name for name in WRITE}


def stored(path) -> np.ndarray:
    return np.asarray(Image.open(path))


# What is read


def test_ade20k_counts_from_1_and_other_is_void(roots):
    dataset = ADE20K("train", 0, root=str(roots["ade20k"]))
    folder = roots["ade20k"] / "ADEChallengeData2016"
    assert len(dataset) == 3 and dataset.num_classes == 150 == len(dataset.classes)
    assert dataset.classes[0] == "thing 1" and dataset.classes[149] == "thing 150"
    for index in range(3):
        image, labels = dataset.take(None, index, index)
        values = stored(folder / "annotations" / "training" / f"ADE_train_{index + 1:08d}.png").astype(int)
        assert np.array_equal(labels.numpy(), np.where(values == 0, 255, values - 1))
        decoded = stored(folder / "images" / "training" / f"ADE_train_{index + 1:08d}.jpg")
        assert np.array_equal(image.permute(1, 2, 0).numpy(), decoded)
        assert image.dtype == labels.dtype == torch.uint8
    assert {VOID, 0, 149} <= set(labels.unique().tolist())


def test_cityscapes_takes_train_ids(roots):
    dataset = Cityscapes("val", 0, root=str(roots["cityscapes"]))
    assert dataset.classes[:3] == ("road", "sidewalk", "building") and dataset.classes[18] == "bicycle"
    assert dataset.num_classes == 19 and dataset.label_ids[13] == 26
    train_id = {found.id: found.train_id for found in Published.classes}
    assert [dataset.pair(index).image.split("/")[2] for index in range(3)] == ["lindau", "lindau", "munster"]
    for index in range(3):
        values = stored(roots["cityscapes"] / dataset.pair(index).map)
        expected = np.vectorize(train_id.get)(values)
        assert np.array_equal(dataset.take(None, index, index)[1].numpy(), expected)
        back = np.append(dataset.label_ids, [0] * 237)[dataset.take(None, index, index)[1].numpy()]
        evaluated = expected != 255
        assert np.array_equal(back[evaluated], values[evaluated])


def test_cityscapes_has_test_images_without_labels(roots):
    dataset = Cityscapes("test", 0, root=str(roots["cityscapes"]))
    image, labels = dataset.take(None, 2, 2)
    assert len(dataset) == 3 and dataset.pair(2).map is None
    assert image.shape == (3, 32, 64) and labels.shape == (32, 64) and (labels == VOID).all()
    with pytest.raises(UserError, match="split 'tset' does not exist; did you mean 'test'"):
        Cityscapes("tset", 0, root=str(roots["cityscapes"]))


def test_voc_takes_the_indices_of_palettes_and_the_list_of_each_split(roots):
    dataset = VOC("train", 0, root=str(roots["voc"]))
    folder = roots["voc"] / "VOCdevkit" / "VOC2012"
    assert len(dataset) == 3 and dataset.classes[15] == "person" and dataset.num_classes == 21
    for index, name in enumerate(["2007_000032", "2007_000039", "2007_000063"]):
        assert dataset.pair(index) == (f"JPEGImages/{name}.jpg", f"SegmentationClassAug/{name}.png")
        labels = dataset.take(None, index, index)[1]
        assert set(labels.unique().tolist()) == {0, 15, 20, 255}
        colours = np.asarray(Image.open(folder / dataset.pair(index).map).convert("RGB"))[..., 0]
        assert (index == 1) == np.array_equal(colours, labels.numpy())
    (folder / "ImageSets/Segmentation/trainaug.txt").rename(folder / "trainaug.txt")
    assert len(VOC("train", 0, root=str(folder))) == 3
    lines = "/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png\n"
    (folder / "trainaug.txt").write_text(lines)
    assert VOC("train", 0, root=str(folder)).pair(0).map == "SegmentationClassAug/2007_000039.png"


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_maps_of_8_bits_of_16_and_of_palettes_are_the_same(roots, mode):
    dataset = ADE20K("val", 0, root=str(roots["ade20k"]))
    before = dataset.take(None, 0, 0)[1]
    path = dataset.folder / dataset.pair(0).map
    write_map(path, stored(path), mode)
    assert Image.open(path).mode == mode
    assert torch.equal(dataset.take(None, 0, 0)[1], before)


@OF_EACH
def test_items(roots, name):
    dataset = DATASETS[name]("train", 0, root=str(roots[name]), crop=24)
    image, labels = dataset[1, 2]
    assert image.shape == dataset.shape == (3, 24, 24) and labels.shape == (24, 24)
    assert image.dtype == torch.float32 and labels.dtype == torch.uint8 and not dataset.one_size
    again = pickle.loads(pickle.dumps(dataset))[1, 2]
    assert torch.equal(again[0], image) and torch.equal(again[1], labels)
    assert not torch.equal(dataset[2, 2][0], image)
    assert not torch.equal(DATASETS[name]("train", 1, root=str(roots[name]), crop=24)[1, 2][0], image)
    image, labels = dataset[None, 2]
    assert image.shape[1:] == labels.shape != (24, 24)
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, sampler=[(0, 0), (0, 1), (0, 2)], num_workers=2)
    (images, maps) = next(iter(loader))
    assert torch.equal(images, torch.stack([dataset[0, k][0] for k in range(3)]))
    assert torch.equal(maps, torch.stack([dataset[0, k][1] for k in range(3)]))


# Augmentation


def augmented(image, labels, index=0, **settings):
    settings = {"crop": 16, "flip": True, "mean": MEAN, "void": VOID} | settings
    with sample_rng(0, 0, index):
        return scale_crop_flip(torch.from_numpy(image), torch.from_numpy(labels), **settings)


def test_crops_of_the_padded_pair_and_no_others():
    """At one size: each crop and each flip of image and map alike, padded with the mean colour and with void."""
    random = np.random.RandomState(0)
    image, labels = random.randint(0, 256, (3, 5, 9), np.uint8), random.randint(0, 7, (5, 9)).astype(np.uint8)
    padded_image = np.stack(
        [np.pad(image[c], ((2, 2), (0, 0)), constant_values=round(255 * MEAN[c])) for c in range(3)]
    )
    padded_labels = np.pad(labels, ((2, 2), (0, 0)), constant_values=255)
    expected = set()
    for top in range(3):
        for left in range(3):
            pair = [padded[..., top : top + 7, left : left + 7] for padded in (padded_image, padded_labels)]
            expected |= {b"".join(side.tobytes() for side in pair)}
            expected |= {b"".join(np.ascontiguousarray(side[..., ::-1]).tobytes() for side in pair)}
    seen = Counter()
    for index in range(500):
        pair = augmented(image, labels, index, crop=7)
        seen[b"".join(side.contiguous().numpy().tobytes() for side in pair)] += 1
    assert set(seen) == expected and len(seen) == 18
    unflipped = {b"".join(t.contiguous().numpy().tobytes() for t in augmented(image, labels, k, crop=7, flip=False))
                 for k in range(200)}  # fmt: skip
    assert len(unflipped) == 9 and unflipped < expected


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.7, 3.0])
def test_a_map_is_resized_as_pil_does_and_stays_on_its_image(factor):
    random = np.random.RandomState(1)
    labels = random.randint(0, 9, (20, 24)).astype(np.uint8)
    size = round(24 * factor), round(20 * factor)
    crop = max(size)
    image, resized = augmented(np.stack([28 * labels] * 3), labels, factors=(factor, factor), crop=crop, flip=False)
    seen = resized != VOID
    height, width = seen.any(1).sum(), seen.any(0).sum()
    assert (width, height) == size
    nearest = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    assert (resized[seen].reshape(height, width).numpy() == nearest).mean() > 0.97  # a row may lie in the very middle
    if factor == 3.0:  # the middle of each pixel has the pixel's own colour
        middle = seen.nonzero()[0] + 1
        rows, columns = (
            slice(int(start), int(start) + 3 * count, 3) for start, count in zip(middle, (20, 24), strict=True)
        )
        assert np.array_equal(image[0, rows, columns].numpy(), 28 * labels)
        assert np.array_equal(resized[rows, columns].numpy(), labels)


@pytest.mark.parametrize(
    ("settings", "shorter"),
    [({"short_side": (30, 60)}, (30, 60)), ({"factors": (0.5, 2.0)}, (20, 80)), ({}, (40, 40)),
     ({"short_side": (30, 60), "most": 80}, (30, 40))],
)  # fmt: skip
def test_sizes_are_drawn_from_their_range(settings, shorter):
    image, labels = np.zeros((3, 40, 80), np.uint8), np.zeros((40, 80), np.uint8)
    sides = []
    for index in range(200):
        seen = augmented(image, labels, index, crop=200, **settings)[1] != VOID
        height, width = seen.any(1).sum().item(), seen.any(0).sum().item()
        assert width == pytest.approx(2 * height, abs=1)
        sides.append(height)
    assert min(sides) >= shorter[0] and max(sides) <= shorter[1]
    assert np.ptp(sides) >= 0.85 * (shorter[1] - shorter[0])
    if "most" not in settings and settings:
        assert np.mean(sides) == pytest.approx(sum(shorter) / 2, rel=0.08)


# What is refused


@pytest.fixture
def broken(roots):
    """The dataset, and the map of its second training sample."""
    dataset = ADE20K("train", 0, root=str(roots["ade20k"]), crop=24)
    return dataset, dataset.folder / dataset.pair(1).map


def save_as(mode, **options):
    return lambda path: Image.open(path).convert(mode).save(path, "PNG", **options)


def grey_of_4_bits(path) -> None:
    """A real one: PIL writes none, and would scale its values by 17."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30, 44, 4, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([0x12] * 15) for _ in range(44))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


BAD_MAPS = {
    "missing": (lambda path: path.unlink(), r"cannot be decoded \(No such file or directory\)"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be decoded"),
    "size": (lambda path: write_map(path, np.ones((44, 31))), r"the map and .*\.jpg have 31 x 44 and 30 x 44 pixels"),
    "value": (lambda path: write_map(path, np.full((44, 30), 151)), "has 151 in row 0, column 0; expected one of 0 to"),
    "16 bits": (lambda path: write_map(path, np.full((44, 30), 40_000), "I;16"), "has 40000 in row 0, column 0"),
    "colours": (save_as("RGB"), "it is a map of mode RGB, not of numbers; save it with a palette, or grey with 8 bits"),
    "alpha": (save_as("LA"), "it is a map of mode LA"),
    "scaled": (grey_of_4_bits, "it is a map of mode L;4"),
    "jpeg": (lambda path: Image.open(path).save(path, "JPEG"), "it is no image, or one that is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_MAPS)
def test_a_bad_map_is_named_with_its_sample(broken, fault, capsys):
    dataset, path = broken
    spoil, reason = BAD_MAPS[fault]
    spoil(path)
    name = r"annotations/training/ADE_train_00000002\.png: .*"
    with pytest.raises(SampleError, match=f"{name}{reason}.*sample 1 of train"):
        dataset[0, 1]
    assert main(["data", "verify", "ade20k", f"root={dataset.folder}"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "expected 20210" not in line]
    assert len([line for line in lines if str(path) in line]) == 1


def test_a_bad_image_is_named_too(broken):
    dataset, _ = broken
    (dataset.folder / dataset.pair(1).image).write_bytes(b"GIF8...")
    with pytest.raises(SampleError, match=r"images/training/ADE_train_00000002\.jpg: it is a GIF.*sample 1 of train"):
        dataset[0, 1]


def test_skip_puts_the_next_pair_in_its_place_under_its_own_randomness(roots, broken):
    dataset, path = broken
    path.unlink()
    skipping = ADE20K("train", 0, root=str(roots["ade20k"]), crop=24, on_error="skip")
    keys = [(3, 0), (3, 1), (3, 2)]
    fetched = _Samples(skipping, leave_out=False).__getitems__(keys)
    assert [error["file"] for error in fetched.errors] == ["annotations/training/ADE_train_00000002.png"]
    for kind in ("images", "annotations"):
        suffix = {"images": "jpg", "annotations": "png"}[kind]
        folder = dataset.folder / kind / "training"
        shutil.copy(folder / f"ADE_train_00000003.{suffix}", folder / f"ADE_train_00000002.{suffix}")
    for (image, labels), key in zip(fetched.samples, keys, strict=True):
        expected = dataset.take(*key, key[1])
        assert torch.equal(image, expected[0]) and torch.equal(labels, expected[1])


@OF_EACH
def test_missing_data_are_one_line(name, tmp_path):
    with pytest.raises(UserError, match=f"normlab data prepare {name}") as error:
        DATASETS[name]("train", 0, root=str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_list_that_is_missing_or_empty_is_named(roots):
    path = roots["voc"] / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt"
    path.write_text("\n")
    with pytest.raises(UserError, match=r"trainaug\.txt lists no image"):
        VOC("train", 0, root=str(roots["voc"]))
    path.unlink()
    with pytest.raises(UserError, match=r"trainaug\.txt is not there; it lists the images of train"):
        VOC("train", 0, root=str(roots["voc"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda roots: ADE20K("train", 0, root=str(roots["ade20k"]), short_side=(5, 4)), r"data\.short_side=\[5,4\]"),
        (lambda roots: VOC("train", 0, root=str(roots["voc"]), scale=(2.0, 0.5)), r"data\.scale=\[2\.0,0\.5\]"),
        (lambda roots: VOC("test", 0, root=str(roots["voc"])), "split 'test' does not exist; .*train"),
    ],
)
def test_settings_that_cannot_be(roots, make, message):
    with pytest.raises(UserError, match=message):
        make(roots)


# The verbs


@OF_EACH
def test_verify_finds_nothing_but_that_the_numbers_are_others(roots, name):
    counts = DATASETS[name].counts
    problems = verify(name, roots[name])
    assert len(problems) == len(counts)
    for problem, (split, count) in zip(problems, counts.items(), strict=True):
        assert problem.endswith(f"expected {count} images of {split}, found 3")
    assert verify(name, roots[name] / "nowhere")


def zipped(folder, archive, inside) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, f"{inside}/{path.relative_to(folder)}")


def test_archives_that_the_user_has_are_unpacked(roots, tmp_path):
    new = {name: tmp_path / "new" / name for name in WRITE}
    for root in new.values():
        root.mkdir(parents=True)
    ade, cityscapes, voc = (roots[name] for name in ("ade20k", "cityscapes", "voc"))
    zipped(ade / "ADEChallengeData2016", new["ade20k"] / "ADEChallengeData2016.zip", "ADEChallengeData2016")
    for kind in ("leftImg8bit", "gtFine"):
        zipped(cityscapes / kind, new["cityscapes"] / f"{kind}_trainvaltest.zip", kind)
    shutil.copytree(voc / "VOCdevkit", new["voc"] / "VOCdevkit")
    maps = new["voc"] / "VOCdevkit/VOC2012/SegmentationClassAug"
    zipped(maps, new["voc"] / "SegmentationClassAug.zip", "SegmentationClassAug")
    shutil.rmtree(maps)
    for name, root in new.items():
        assert prepare(name, root) == f"{name}: 3 training and 3 validation images in {root}"
        assert verify(name, root) == verify(name, roots[name]) or name
        for split in ("train", "val"):
            one, other = (DATASETS[name](split, 0, root=str(at)) for at in (roots[name], root))
            assert all(torch.equal(one.take(None, k, k)[1], other.take(None, k, k)[1]) for k in range(3))


@pytest.mark.parametrize(
    ("name", "archive"),
    [("ade20k", "ADEChallengeData2016.zip"), ("cityscapes", "leftImg8bit_trainvaltest.zip")],
)
def test_archives_that_are_missing_or_damaged_are_named(name, archive, tmp_path):
    with pytest.raises(UserError, match=f"has no {archive}; put ") as error:
        prepare(name, tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / archive).write_bytes(b"PK\3\4 and no more")
    with pytest.raises(UserError, match=f"{archive} is damaged"):
        prepare(name, tmp_path)


def test_an_archive_cannot_write_elsewhere(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with zipfile.ZipFile(root / "ADEChallengeData2016.zip", "w") as file:
        file.writestr("../escaped.txt", "")
    with pytest.raises(UserError, match="has no images in images/training"):
        prepare("ade20k", root)
    assert not (tmp_path / "escaped.txt").exists() and (root / "escaped.txt").exists()


def test_a_folder_that_cannot_be_written_to_is_named(roots, tmp_path):
    zipped(roots["ade20k"] / "ADEChallengeData2016", tmp_path / "ADEChallengeData2016.zip", "ADEChallengeData2016")
    (tmp_path / "ADEChallengeData2016").write_text("a file")
    with pytest.raises(UserError, match=r"ADEChallengeData2016\.zip could not be unpacked into .*ADEChallengeData2016"):
        prepare("ade20k", tmp_path)


def test_vocs_images_are_got_as_torchvision_gets_them(monkeypatch, tmp_path):
    def refuse(*_args, **_options):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"without a network put VOCtrainval_11-May-2012\.tar into"):
        prepare("voc", tmp_path)
    (tmp_path / "VOCtrainval_11-May-2012.tar").write_bytes(b"another")
    with pytest.raises(
        UserError, match=r"the checksum of .*VOCtrainval_11-May-2012\.tar differs from the published one"
    ):
        prepare("voc", tmp_path)


@OF_EACH
def test_a_run_knows_what_it_reads_and_nothing_else_there(roots, name):
    declared = [class_attribute(settings_of("data", name)["_target_"], key) for key in ("folders", "files")]
    before = fingerprint(roots[name], declared[0] or (), declared[1])
    inside = DATASETS[name]("train", 0, root=str(roots[name])).folder
    (roots[name] / "archive.zip").write_text("x")
    (inside / "notes.txt").write_text("x")
    assert fingerprint(inside, declared[0] or (), declared[1]) == before
    labels = inside / DATASETS[name]("train", 0, root=str(roots[name])).pair(1).map
    labels.write_bytes(labels.read_bytes() + b"x")
    assert fingerprint(roots[name], declared[0] or (), declared[1]) != before


@OF_EACH
def test_pictures_of_them(roots, name, tmp_path):
    out = tmp_path / "x.png"
    assert main(["data", "show", name, f"root={roots[name]}", "crop=32", f"out={out}"]) == 0
    assert out.is_file()


@OF_EACH
def test_their_files(name):
    assert kinds_of("data", name) == ["maps"] and name in choices("data")
    assert settings_of("data", name)["crop"] == {"ade20k": 450, "cityscapes": 713, "voc": 513}[name]
