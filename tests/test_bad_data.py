"""Bad data: `normlab data verify` lists every sample that cannot be used; training names it and stops, or goes on
without it, as if its file had been a copy of the next good one."""

import json
import os
import pickle
import resource
import shutil
import struct
import tempfile
import zlib
from errno import EMFILE
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch
from data_files import write_cifar10, write_class_folders, write_idx, write_mnist
from PIL import EpsImagePlugin, Image

from normlab.cli import main
from normlab.config import identity, load
from normlab.data.cifar import CIFAR10
from normlab.data.dataset import SampleError
from normlab.data.folder import decode
from normlab.data.imagenet import ImageNet
from normlab.data.mnist import MNIST
from normlab.datasets import verify
from normlab.errors import UserError
from normlab.runs.data_errors import DataErrors, data_errors
from normlab.runs.folder import RunFolder

CLASSES, TRAIN, VAL = ["n01", "n02"], 8, 4


@pytest.fixture
def imagenet(tmp_path):
    """16 training images, the same for all tests, and 8 to validate."""
    data_files.RANDOM.seed(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        write_class_folders(tmp_path / "data" / split, CLASSES, count, ".JPEG")
    return tmp_path / "data"


def image(root: Path, split: str, index: int) -> Path:
    """The file of a sample."""
    name, i = CLASSES[index // (TRAIN if split == "train" else VAL)], index % (TRAIN if split == "train" else VAL)
    return root / split / name / f"{name}_{i + 1:04d}.JPEG"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def deep(path: Path) -> None:
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(path, "PNG")


def replace(path: Path, make) -> None:
    path.unlink()
    make(path)


def write_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> None:
    """A PNG file of any header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def deep_colour(kind: str):
    """Writes 9 x 9 pixels of 16 bits a channel."""
    channels, colour = {"LA": (2, 4), "RGB": (3, 2), "RGBA": (4, 6)}[kind]
    return lambda path: write_png(path, 9, 9, 16, colour, (b"\0" + bytes(range(18 * channels))) * 9)


def of_size(width: int, height: int):
    """Writes a PNG that claims this size and has next to no pixels."""
    return lambda path: write_png(path, width, height, 8, 2, b"")


def tiles(path: Path) -> None:
    """A TIFF of 9 x 9 pixels in one tile of 30,000 x 30,000, deflated."""
    data = zlib.compress(bytes(1000))
    tags = {256: 9, 257: 9, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 134, 325: len(data)}
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + listed + bytes(4) + data)


DAMAGE = {
    "truncated": (truncate, "cannot be decoded"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("404 not found"), "it is no image"),
    "header": (lambda path: path.write_bytes(path.read_bytes()[:3]), "it is no image"),
    "dangling": (lambda path: replace(path, lambda p: p.symlink_to("nowhere")), "No such file"),
    "loop": (lambda path: replace(path, lambda p: p.symlink_to(p)), "symbolic links"),
    "folder": (lambda path: replace(path, Path.mkdir), "no regular file"),
    "pipe": (lambda path: replace(path, os.mkfifo), "no regular file"),
    "16 bits": (deep, "mode I;16, not of 8 bits"),
    "16 bits, RGB": (deep_colour("RGB"), "mode RGB;16, not of 8 bits"),
    "16 bits, RGBA": (deep_colour("RGBA"), "mode RGBA;16, not of 8 bits"),
    "16 bits, LA": (deep_colour("LA"), "mode RGBA;16, not of 8 bits"),
    "16 bits, PPM": (lambda path: path.write_bytes(b"P6 2 2 65535 " + bytes(24)), "mode RGB;16, not of 8 bits"),
    "large": (of_size(10_001, 10_000), "has 10001 x 10000 pixels"),
    "long": (of_size(30_001, 300), "has 30001 x 300 pixels"),
    "thin": (of_size(20_000, 1), "one side more than 200 times the other"),
    "GIF": (lambda path: Image.new("RGB", (9, 9)).save(path, "GIF"), "it is a GIF, which is not read"),
    "PostScript": (lambda path: Image.new("RGB", (9, 9)).save(path, "EPS"), "it is a PostScript file, which is not"),
    "tiles": (tiles, "its tiles have more than 100,000,000 pixels"),
    "bomb": (of_size(65535, 65535), "more than 100,000,000 pixels"),
}


# What verify lists, and what reading says


def test_verify_lists_every_bad_image_in_a_line_each_and_exits_with_1(imagenet, capsys):
    files = {}
    places = [image(imagenet, "train", i) for i in range(2 * TRAIN)] + [
        image(imagenet, "val", i) for i in range(2 * VAL)
    ]
    for path, (damage, message) in zip(places, DAMAGE.values(), strict=False):
        files[path] = message
        damage(path)
    assert main(["data", "verify", "imagenet", f"root={imagenet}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if "expected" not in line]
    assert len(found) == len(files) == len(DAMAGE)
    for line, (path, message) in zip(sorted(found), sorted(files.items()), strict=True):
        assert line.startswith(f"{path}: ") and message in line and line.count(str(imagenet)) == 1


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_image_is_named_with_its_sample(imagenet, kind):
    damage, message = DAMAGE[kind]
    damage(image(imagenet, "train", 11))
    dataset = ImageNet("train", 0, root=str(imagenet), size=8)
    with pytest.raises(SampleError) as error:
        dataset[0, 11]
    said = str(error.value)
    assert said.startswith(f"{image(imagenet, 'train', 11)}: ") and message in said and "\n" not in said
    assert "(sample 11 of train); `normlab data verify` lists" in said


GOOD = [
    ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("MPO", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "LA"),
    ("PNG", "P"), ("PNG", "1"), ("PPM", "RGB"), ("PPM", "L"), ("PPM", "1"), ("BMP", "RGB"), ("BMP", "P"), ("BMP", "L"),
    ("TIFF", "RGB"), ("TIFF", "CMYK"), ("TIFF", "1"), ("WEBP", "RGB"), ("WEBP", "RGBA"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), GOOD)
def test_good_images_of_every_format_are_as_pil_has_them_in_rgb(tmp_path, kind, mode):
    """Whatever their names say, as in ImageNet; the longest that is not too thin."""
    pixels = np.random.RandomState(0).randint(0, 256, (2, 400, 3), np.uint8)
    made = Image.fromarray(pixels).convert(mode)
    made.save(tmp_path / "image.JPEG", kind, **({"save_all": True, "append_images": [made]} if kind == "MPO" else {}))
    found = decode(tmp_path / "image.JPEG")
    assert found.mode == "RGB"
    with Image.open(tmp_path / "image.JPEG") as image:
        assert image.format == kind
        assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


def test_ghostscript_is_not_asked(imagenet, monkeypatch):
    """PIL gives it any file that begins as PostScript does, and it runs what the file says."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_arguments: pytest.fail("Ghostscript was started"))
    Image.new("RGB", (9, 9)).save(image(imagenet, "train", 0), "EPS")
    assert any("it is a PostScript file" in problem for problem in verify("imagenet", imagenet))


def as_nobody(action) -> list[str]:
    """What action gives where permissions count: in a child that is not root."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            result = action()
        except BaseException as error:
            result = [repr(error)]
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        result = json.loads(pipe.read())
    os.waitpid(child, 0)
    return result


@pytest.fixture
def public():
    """A folder that everyone can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_no_permission_to_read(public):
    write_class_folders(public / "train", CLASSES, 4, ".JPEG")
    write_class_folders(public / "val", [*CLASSES, "n03"], 4, ".JPEG")
    write_cifar10(public)
    write_mnist(public)
    closed = [public / "train" / "n02" / "n02_0003.JPEG", public / "val" / "n03"]
    closed += [public / "cifar-10-batches-py" / "data_batch_2", public / "t10k-labels-idx1-ubyte"]
    verify("mnist", public), verify("cifar10", public)  # imports what a child that is not root may not
    for path in closed:
        path.chmod(0)
    for name, expected in {"imagenet": closed[:2], "cifar10": closed[2:3], "mnist": closed[3:]}.items():
        problems = as_nobody(lambda name=name: verify(name, public))
        denied = [problem for problem in problems if "Permission denied" in problem]
        assert len(denied) == len(expected) and all("\n" not in problem for problem in problems)
        for problem, path in zip(denied, expected, strict=True):
            assert str(path) in problem
    said = as_nobody(lambda: [ImageNet("val", 0, root=str(public))])[0]
    assert said.startswith("UserError") and "'n03' is not in both" in said
    shutil.copytree(public / "val" / "n01", public / "train" / "n03")
    said = as_nobody(lambda: [ImageNet("val", 0, root=str(public))])[0]
    assert f"{closed[1]}: the folder cannot be listed (Permission denied)" in said


def test_a_failing_system_is_no_bad_sample(imagenet):
    """Too many open files: skipping would depend on the moment."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, limits[1]))
    taken = []
    try:
        with pytest.raises(OSError) as full:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(OSError) as error:
            decode(image(imagenet, "train", 0))
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert full.value.errno == error.value.errno == EMFILE


def test_missing_and_empty_folders_are_listed_and_refused(imagenet):
    (imagenet / "train" / "n01").rename(imagenet / "train" / "n00")
    (imagenet / "train" / "n01").mkdir()
    assert f"{imagenet / 'train' / 'n01'}: the class has no image" in verify("imagenet", imagenet)
    shutil.rmtree(imagenet / "val")
    assert any("has no folder 'val'" in problem for problem in verify("imagenet", imagenet))
    with pytest.raises(UserError, match="has no folder 'val'"):
        ImageNet("train", 0, root=str(imagenet), on_error="skip")


def test_file_names_that_are_no_text(imagenet, capfdbinary):
    path = os.fsencode(imagenet / "train" / "n01") + b"/\xff\nodd.JPEG"
    Path(os.fsdecode(path)).write_bytes(b"")
    assert main(["data", "verify", "imagenet", f"root={imagenet}"]) == 1
    lines = capfdbinary.readouterr().out.splitlines()
    assert [line.rpartition(b"/")[2] for line in lines if b"odd" in line] == [b"\\udcff odd.JPEG: it is empty"]


# Labels


def cifar_with_wrong_labels(root: Path) -> list[Path]:
    written = write_cifar10(root)
    for file, place, label in (("data_batch_2", 3, 12), ("data_batch_2", 5, -1), ("test_batch", 6, 10)):
        path = root / "cifar-10-batches-py" / file
        content = pickle.loads(path.read_bytes())
        content["labels"][place] = label
        path.write_bytes(pickle.dumps(content))
    return written


def test_wrong_labels_of_cifar(tmp_path):
    cifar_with_wrong_labels(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    listed = [problem for problem in verify("cifar10", tmp_path) if ": label" in problem]
    assert listed == [
        f"{folder}/data_batch_2[3]: label 12 is not in 0..9",
        f"{folder}/data_batch_2[5]: label -1 is not in 0..9",
        f"{folder}/test_batch[6]: label 10 is not in 0..9",
    ]
    with pytest.raises(SampleError, match=r"data_batch_2\[3\]: label 12 is not in 0..9 \(sample 14 of train\)"):
        CIFAR10("train", 0, root=str(tmp_path))  # 11 images come before that file

    skipping = CIFAR10("train", 0, root=str(tmp_path), on_error="skip")
    assert len(skipping) == 65
    with pytest.raises(SampleError, match=r"data_batch_2\[3\]"):
        skipping[0, 14]
    assert torch.equal(skipping.take(None, 14, 15)[0], skipping.take(None, 15, 15)[0])
    half = CIFAR10("train", 0, root=str(tmp_path), on_error="skip", fraction=0.5)
    assert sorted(half.wrong) == [i for i, label in enumerate(half.labels_N) if label in (-1, 12)]
    with pytest.raises(SampleError, match=r"data_batch_2\[3\]"):
        half[0, int(np.flatnonzero(half.labels_N == 12)[0])]


def test_wrong_labels_of_mnist(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(20))
    problems = [problem for problem in verify("mnist", tmp_path) if ": label" in problem]
    assert len(problems) == 10
    assert problems[0] == f"{tmp_path}/t10k-labels-idx1-ubyte[10]: label 10 is not in 0..9"
    with pytest.raises(SampleError, match=r"t10k-labels-idx1-ubyte\[10\]: label 10"):
        MNIST("val", 0, root=str(tmp_path))
    assert len(MNIST("val", 0, root=str(tmp_path), on_error="skip")) == 20


# Runs


def words(root: Path, out: Path, *more: str) -> list[str]:
    small = ("data.size=8", "model=digits_resnet", "model.width=4", "norm=bn", "batch=2x2", "epochs=3", "threads=1")
    return ["data=imagenet", f"data.root={root}", *small, "optim.lr=0.01", "tracker=none", f"out={out}", *more]


def trained(root: Path, out: Path, *more: str) -> RunFolder:
    settings = words(root, out, *more)
    assert main(["train", *settings]) == 0
    return RunFolder.of(load(settings))


def outcome(folder: RunFolder) -> tuple[bytes, list[str]]:
    """The weights, and the metrics of every update and epoch."""
    return folder.weights.read_bytes(), folder.metrics.read_text().splitlines()


def bad_in_training(root: Path) -> None:
    for index in (2, 9, 10):  # 10 and then 11 stand in for 9
        truncate(image(root, "train", index))


TRAIN_ERRORS = [
    ("train", 2, "n01/n01_0003.JPEG"),
    ("train", 9, "n02/n02_0002.JPEG"),
    ("train", 10, "n02/n02_0003.JPEG"),
]


def met(folder: RunFolder) -> list[tuple[str, int, str]]:
    errors = folder.summary()["data_errors"]
    assert errors["count"] == len(errors["samples"])
    return [(error["split"], error["index"], error["file"]) for error in errors["samples"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_stops_at_a_bad_sample_and_skip_goes_on_from_there(imagenet, tmp_path, capfd, caplog, workers):
    """The outcome is bitwise that of good files, copies of the next ones, in the place of the bad."""
    copies = tmp_path / "copies"
    shutil.copytree(imagenet, copies)
    for index in (2, 9, 10):
        shutil.copy(image(copies, "train", 3 if index == 2 else 11), image(copies, "train", index))
    expected = trained(copies, tmp_path / "expected")
    assert expected.summary()["data_errors"] == {"count": 0, "samples": []}
    capfd.readouterr()

    bad_in_training(imagenet)
    settings = words(imagenet, tmp_path / "runs", f"workers={workers}")
    folder = RunFolder.of(load(settings))
    assert main(["train", *settings]) != 0
    captured = capfd.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("normlab:")]
    index = next(i for _, i, file in TRAIN_ERRORS if f"{imagenet}/train/{file}: cannot be decoded" in line)
    assert f"(sample {index} of train)" in line and "data.on_error=skip" in line
    assert "Traceback" not in captured.err

    assert trained(imagenet, tmp_path / "runs", f"workers={workers}", "data.on_error=skip").path == folder.path
    assert outcome(folder) == outcome(expected)
    assert met(folder) == TRAIN_ERRORS
    assert "3 bad samples were replaced in training or left out of the evaluation" in capfd.readouterr().out
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "normlab.runs.data_errors"]
    assert "going on without it" in warning and "data_errors.0.jsonl lists all" in warning


def test_on_error_is_no_part_of_the_identity(imagenet, tmp_path):
    same = [identity(load(words(imagenet, tmp_path, f"data.on_error={choice}"))) for choice in ("stop", "skip")]
    assert same[0] == same[1]
    with pytest.raises(UserError, match=r"data\.on_error=skp: expected stop or skip; did you mean 'skip'"):
        load(words(imagenet, tmp_path, "data.on_error=skp"))


def test_evaluation_leaves_bad_samples_out(imagenet, tmp_path):
    """Metrics are those of a folder without these files."""
    without = tmp_path / "without"
    shutil.copytree(imagenet, without)
    for index in (0, 6):
        image(without, "val", index).unlink()
        image(imagenet, "val", index).write_bytes(b"")
    folder = trained(imagenet, tmp_path / "runs", "data.on_error=skip")
    expected = trained(without, tmp_path / "expected")
    assert outcome(folder) == outcome(expected)
    assert folder.summary()["metrics"] == expected.summary()["metrics"]
    assert met(folder) == [("val", 0, "n01/n01_0001.JPEG"), ("val", 6, "n02/n02_0003.JPEG")]


@pytest.mark.long
def test_the_same_with_two_ranks(imagenet, tmp_path):
    bad_in_training(imagenet)
    image(imagenet, "val", 5).write_bytes(b"")
    alone, shared = (
        trained(imagenet, tmp_path / name, "data.on_error=skip", f"devices={devices}", f"workers={workers}")
        for name, devices, workers in (("alone", 1, 0), ("shared", 2, 2))
    )
    assert len(list(shared.path.glob("data_errors.*.jsonl"))) == 2
    assert met(alone) == met(shared) == [*TRAIN_ERRORS, ("val", 5, "n02/n02_0002.JPEG")]
    assert alone.summary()["metrics"] == shared.summary()["metrics"]


@pytest.mark.long
def test_two_ranks_stop_at_a_bad_sample(imagenet, tmp_path, capfd):
    bad_in_training(imagenet)
    assert main(["train", *words(imagenet, tmp_path / "runs", "devices=2")]) != 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("normlab:")]
    assert any(f"{imagenet}/train/{file}: cannot be decoded" in line for _, _, file in TRAIN_ERRORS), line


def test_skip_is_for_a_few_files_only(imagenet, tmp_path, capfd):
    for index in range(2 * TRAIN):
        image(imagenet, "train", index).write_bytes(b"")
    assert main(["train", *words(imagenet, tmp_path / "runs", "data.on_error=skip")]) != 0
    assert "and the 100 behind it are bad; the last: " in capfd.readouterr().err


def test_an_evaluation_of_nothing_is_no_result(imagenet, tmp_path, capfd):
    for index in range(2 * VAL):
        image(imagenet, "val", index).write_bytes(b"")
    assert main(["train", *words(imagenet, tmp_path / "runs", "data.on_error=skip")]) != 0
    assert "all samples of val are bad; " in capfd.readouterr().err


def test_errors_are_a_set_that_survives_a_kill(tmp_path):
    rows = [{"split": "train", "index": i, "file": f"{i}.jpg", "reason": "it is empty"} for i in range(30)]
    errors = DataErrors(tmp_path, 0)
    errors.add(rows[5:7])
    errors.add(rows[6:8])
    with errors.path.open("a") as file:
        file.write('{"split": "tra')  # killed here
    DataErrors(tmp_path, 0).add(rows[7:30])
    DataErrors(tmp_path, 1).add(rows[:6])
    assert [json.loads(line)["index"] for line in errors.path.read_text().splitlines()] == list(range(5, 30))
    assert data_errors(tmp_path) == {"count": 30, "samples": rows[:20]}


def test_a_repaired_file_lets_the_run_go_on(imagenet, tmp_path, capfd):
    """The run has not used the file. It is another run where another file has changed as well."""
    whole = image(imagenet, "val", 3).read_bytes()
    image(imagenet, "val", 3).write_bytes(whole[:20])
    settings = words(imagenet, tmp_path / "runs")
    folder = RunFolder.of(load(settings))
    assert main(["train", *settings]) != 0
    assert folder.status()["bad_file"] == "val/n01/n01_0004.JPEG"
    done = folder.updates_done()
    image(imagenet, "val", 3).write_bytes(whole)
    other = tmp_path / "other"
    shutil.copytree(imagenet, other)
    shutil.copy(image(other, "train", 0), image(other, "train", 1))
    assert RunFolder.of(load(words(other, tmp_path / "runs"))).path != folder.path
    assert main(["train", *settings]) == 0
    assert RunFolder.of(load(settings)).path == folder.path and folder.is_over
    assert done > 0 and "starting from the beginning" not in capfd.readouterr().err
