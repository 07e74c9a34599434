"""What a run reads: the same data at another place are the same run, other data are another, and eval says so."""

import json
import os
import shutil
from pathlib import Path

import pytest
import toy_reading
from data_files import write_class_folders, write_mnist

from normlab.cli import main
from normlab.config import inputs, load
from normlab.data import stored
from normlab.data.stored import fingerprint
from normlab.runs.folder import RunFolder

SMALL = ("data=imagenet", "data.size=32", "model=digits_resnet", "model.width=4", "batch=2x2", "iterations=2")
QUIET = ("tracker=none", "figures=summary")


def images(root: Path, *classes: str, count: int = 4) -> Path:
    for split in ("train", "val"):
        write_class_folders(root / split, list(classes), count)
    return root


@pytest.fixture
def data(tmp_path):
    return images(tmp_path / "data", "cat", "dog")


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_same_files_have_the_same_fingerprint_wherever_they_lie(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "elsewhere" / "copy")
    (tmp_path / "link").symlink_to(data)
    assert (
        fingerprint(data) == fingerprint(copy) == fingerprint(tmp_path / "link") == fingerprint(os.path.relpath(data))
    )


def first_image(root: Path) -> Path:
    return sorted((root / "train" / "cat").iterdir())[0]


CHANGES = {
    "a byte": lambda root: first_image(root).write_bytes(first_image(root).read_bytes()[:-1] + b"\0"),
    "a name": lambda root: first_image(root).rename(root / "train" / "cat" / "zz.jpg"),
    "a class": lambda root: first_image(root).rename(root / "train" / "dog" / first_image(root).name),
    "one less": lambda root: first_image(root).unlink(),
    "one more": lambda root: shutil.copy(first_image(root), root / "val" / "cat" / "more.jpg"),
    "a folder's name": lambda root: (root / "val" / "cat").rename(root / "val" / "cow"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("read_whole", [True, False])
def test_any_change_of_the_files_is_another_fingerprint(data, change, read_whole, monkeypatch):
    if not read_whole:
        monkeypatch.setattr(stored, "_READ_WHOLE", 0)
    before = fingerprint(data)
    CHANGES[change](data)
    assert fingerprint(data) != before


def test_what_no_dataset_reads_does_not_count(data):
    before = fingerprint(data)
    for name in (".DS_Store", "train/._cat", "val/cat/Thumbs.db", ".cache/x"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(b"x")
    (data / "nowhere").symlink_to("gone")
    (data / "train" / "around").symlink_to("..")
    assert fingerprint(data) == before


def test_archives_count_where_nobody_says_what_is_read(data, words):
    """A dataset may read them (shards of a web dataset); ImageNet says that it reads train and val."""
    config = load([*words, f"data.root={data}"])
    before, of_imagenet = fingerprint(data), inputs(config)
    (data / "train-000.tar").write_bytes(b"x")
    assert fingerprint(data) != before
    assert inputs(config) == of_imagenet


def test_a_dataset_says_which_files_are_its_own_and_at_which_level(tmp_path):
    write_mnist(tmp_path / "a" / "MNIST" / "raw")
    shutil.copytree(tmp_path / "a" / "MNIST" / "raw", tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    (tmp_path / "c" / "train-images-idx3-ubyte.gz").write_bytes(b"the download, beside what was unpacked of it")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    found = {inputs(load(["data=mnist", f"data.root={tmp_path / name}"])) for name in "abc"}
    assert len(found) == 1
    write_mnist(tmp_path / "d")
    assert inputs(load(["data=mnist", f"data.root={tmp_path / 'd'}"])) not in found


def test_large_data_are_looked_through_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_NOTED_FROM", 1)
    notes = tmp_path / "runs" / stored.NOTES
    before = fingerprint(data, notes=notes)
    monkeypatch.setattr(stored, "_NOTED", {})  # as in another process
    monkeypatch.setattr(stored, "_walk", lambda *_: pytest.fail("the data were looked through again"))
    assert fingerprint(data, notes=notes) == before
    monkeypatch.undo()
    monkeypatch.setattr(stored, "_NOTED", {})
    first_image(data).unlink()
    assert fingerprint(data, notes=notes) != before
    notes.write_text("{")
    assert fingerprint(data, notes=notes) != before


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path):
    return [*SMALL, *QUIET, f"out={tmp_path / 'runs'}"]


def test_other_data_are_another_run(data, words, tmp_path, capsys):
    other = images(tmp_path / "other", "rose", "tulip", count=6)
    assert main(["train", *words, f"data.root={data}"]) == 0
    assert "already" not in capsys.readouterr().out
    assert main(["train", *words, f"data.root={other}"]) == 0
    assert "already" not in capsys.readouterr().out
    copy = shutil.copytree(data, tmp_path / "copy")
    assert main(["train", *words, f"data.root={copy}"]) == 0
    assert "finished already" in capsys.readouterr().out
    runs = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/run.json")]
    assert len({run["id"] for run in runs}) == 1 and len({run["inputs"] for run in runs}) == 2
    assert {RunFolder(tmp_path / "runs" / run["name"]).summary()["inputs"] for run in runs} == {
        r["inputs"] for r in runs
    }


def test_a_sweep_over_places_has_a_cell_for_each_dataset(data, words, tmp_path, capsys):
    other, copy = images(tmp_path / "other", "rose", "tulip"), shutil.copytree(data, tmp_path / "copy")
    assert main(["train", "-m", *words, f"data.root={data},{other},{copy}", "jobs=2"]) == 0
    assert "2 finished" in capsys.readouterr().err
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 2


def test_an_interrupted_run_does_not_go_on_with_other_data(data, words, tmp_path):
    config = load([*words, f"data.root={data}"])
    first = RunFolder.of(config)
    first.create(config)
    first.set_status("interrupted", updates=1, signal=2)
    CHANGES["a byte"](data)
    assert RunFolder.of(load([*words, f"data.root={data}"])).path != first.path


def test_a_run_of_an_older_version_is_known_by_the_place_of_its_data(data, words, tmp_path):
    config = load([*words, f"data.root={data}"])
    old = RunFolder(tmp_path / "runs" / f"imagenet-old-{RunFolder.of(config).path.name[-8:]}")
    old.create(config)
    run = json.loads(old.run_file.read_text())
    old.run_file.write_text(json.dumps({key: run[key] for key in run if key not in ("inputs", "sha256")}))
    assert RunFolder.of(config).path == old.path
    copy = shutil.copytree(data, tmp_path / "copy")
    assert RunFolder.of(load([*words, f"data.root={copy}"])).path != old.path


def test_weights_are_not_judged_on_other_data(data, words, tmp_path, capsys):
    assert main(["train", *words, f"data.root={data}"]) == 0
    run = str(next((tmp_path / "runs").glob("*/run.json")).parent)
    assert main(["eval", run]) == 0
    CHANGES["one less"](data)
    capsys.readouterr()
    for verb in ("eval", "estimate", "export"):
        assert main([verb, run]) == 2
        assert "are not those that the run has read" in capsys.readouterr().err


def test_a_run_that_begins_from_another_depends_on_what_that_one_has_read(data, words, tmp_path):
    other = images(tmp_path / "other", "rose", "tulip")
    runs = []
    for root in (data, other):
        config = load([*words, f"data.root={root}"])
        RunFolder.of(config).create(config)
        runs.append(RunFolder.of(config).path)
    digits = [*QUIET, f"out={tmp_path / 'runs'}"]
    found = [load([*digits, f"init={run}"]) for run in runs]
    assert inputs(load(digits)) == ""
    assert len({inputs(config) for config in found}) == 2
    assert len({RunFolder.of(config).path for config in found}) == 2


def test_a_parameter_that_is_a_path_is_read_too(tmp_path):
    """A style image, say: not its place makes the run, but what is in it."""
    style, same, other = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    for path, content in ((style, b"1"), (same, b"1"), (other, b"2")):
        path.write_bytes(content)
    words = [f"task._target_={toy_reading.__name__}.Styled", *QUIET, f"out={tmp_path / 'runs'}"]
    folders = [RunFolder.of(load([*words, f"task.style={path}"])).path for path in (style, same, other)]
    assert folders[0] == folders[1] != folders[2]
    assert main(["plan", *words, "task.style=/no/where"]) == 2
    assert main(["train", *words, f"task.style={style}", "iterations=1", "batch=1x2"]) == 0
    assert RunFolder.of(load([*words, f"task.style={style}", "iterations=1", "batch=1x2"])).is_over
