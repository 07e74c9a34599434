"""Kinetics and Something-Something on the disk: which frames a clip has, and what becomes of bad videos."""

import os
import shutil
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch

from normlab.cli import main
from normlab.config import load
from normlab.data import videos
from normlab.data.clips import regular
from normlab.data.dataset import SampleError
from normlab.data.decode import DecodeError
from normlab.data.kinetics import Kinetics
from normlab.data.something import Something
from normlab.datasets import prepare, verify
from normlab.errors import UserError
from normlab.runs.folder import RunFolder

SMALL = {"size": 32, "short_side": (34, 40), "test_side": 36}


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kinetics")
    data_files.write_kinetics(root)
    return root


@pytest.fixture(scope="module")
def something(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("something")
    data_files.write_something(root)
    return root


def greys(clip_TCHW: torch.Tensor) -> list[int]:
    """The number of each frame, of what write_video made."""
    return ((clip_TCHW.float().mean((1, 2, 3)) - 10) / 3).round().int().tolist()


# ---- Kinetics --------------------------------------------------------------------------------------------------------


def test_frames_of_clips(kinetics: Path) -> None:
    """32 of every second frame, from anywhere in training; ten at regular distances in the test."""
    train = Kinetics("train", 0, root=str(kinetics), **SMALL)
    assert len(train) == 4 and train.classes == ("abseiling", "zumba") and train.shape == (3, 32, 32, 32)
    firsts = set()
    for epoch in range(12):
        clip, label = train.take(epoch, 1, 1)
        assert clip.shape == (32, 3, 32, 32) and clip.dtype == torch.uint8 and label == 0
        numbers = greys(clip)
        assert numbers == list(range(numbers[0], numbers[0] + 64, 2))
        assert torch.equal(clip, train.take(epoch, 1, 1)[0])
        firsts.add(numbers[0])
    assert len(firsts) > 3 and min(firsts) >= 0 and max(firsts) <= 70 - 63
    val = Kinetics("val", 0, root=str(kinetics), **SMALL)
    clips, label = val.take(None, 1, 1)
    assert clips.shape == (10, 32, 3, 32, 32) and label == 1 and val.tested_clips == 10
    assert [greys(clip)[0] for clip in clips] == [0, 1, 2, 2, 3, 4, 5, 5, 6, 7]
    assert val[None, 1][0].dtype == torch.float32


def test_regular_distances() -> None:
    assert regular(300, 63, 10).tolist() == [round(k * 237 / 9) for k in range(10)]
    assert regular(300, 63, 1).tolist() == [118] and regular(20, 63, 3).tolist() == [0, 0, 0]


def test_a_short_video_ends_in_its_last_frame(tmp_path: Path, capsys) -> None:
    data_files.write_kinetics(tmp_path, frames=10)
    clip, _ = Kinetics("train", 0, root=str(tmp_path), frames=8, **SMALL).take(0, 0, 0)
    assert greys(clip) == [0, 2, 4, 6, 8, 9, 9, 9]
    said = "\n".join(verify("kinetics", tmp_path))
    assert "expected 400 classes, found 2" in said
    assert f"{tmp_path / 'train' / 'zumba' / '1.mp4'}: it has 10 frames, and a clip takes 63" in said


def test_the_frames_are_those_that_pyav_shows(kinetics: Path) -> None:
    import av

    path = kinetics / "train" / "zumba" / "0.mp4"
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert videos.length(path) == len(expected) == 70
    found = videos.read(path, [0, 7, 69])
    for number, frame in zip((0, 7, 69), found, strict=True):
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), expected[number])


def bad_videos(folder: Path) -> dict[str, str]:
    """File -> what is wrong with it."""
    good = folder / "good.mp4"
    data_files.write_video(good, 30)
    data = good.read_bytes()
    middle = data.index(b"mdat") + 4
    (folder / "cut.mp4").write_bytes(data[: len(data) // 3])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("#EXTM3U\nhttp://127.0.0.1/secret.ts\n")
    (folder / "holes.mp4").write_bytes(data[:middle] + bytes(len(data) - middle))
    (folder / "folder.mp4").mkdir()
    return {
        "cut.mp4": "",
        "empty.mp4": "",
        "text.mp4": "",
        "holes.mp4": "",
        "folder.mp4": "cannot be read",
        "none.mp4": "cannot be read",
    }


def test_bad_videos(tmp_path: Path) -> None:
    for name, message in bad_videos(tmp_path).items():
        with pytest.raises(DecodeError, match=message) as error:
            videos.read(tmp_path / name, [min(videos.length(tmp_path / name), 30) - 1])
        assert "\n" not in str(error.value)
    assert videos.read(tmp_path / "good.mp4", [29]).shape == (1, 3, 48, 64)
    with pytest.raises(DecodeError, match="truncated: of the 31 frames that are needed 30 can be decoded"):
        videos.read(tmp_path / "good.mp4", [2, 30])


def test_a_truncated_video_is_named_or_left_out(tmp_path: Path, capsys) -> None:
    data_files.write_kinetics(tmp_path)
    broken = tmp_path / "train" / "zumba" / "1.mp4"
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(SampleError, match=r"train/zumba/1\.mp4: it is no MP4, or damaged") as error:
        Kinetics("train", 0, root=str(tmp_path), **SMALL).take(0, 3, 3)
    assert "sample 3 of train" in str(error.value)
    assert any("zumba/1.mp4" in line for line in verify("kinetics", tmp_path))
    run = ["task=video", "data=kinetics", f"data.root={tmp_path}", "data.frames=4", "data.size=32", "data.clips=2",
           "data.short_side=[32,36]", "data.test_side=32", "norm=sn", "batch=2x2", "iterations=2", "tracker=none",
           "batch_average.samples=4", f"out={tmp_path / 'runs'}"]  # fmt: skip
    assert main(["train", *run]) == 2
    assert "zumba/1.mp4" in capsys.readouterr().err
    assert main(["train", *run, "data.on_error=skip"]) == 0
    found = RunFolder.of(load([*run, "data.on_error=skip"])).summary()
    assert found["status"] == "finished" and found["data_errors"]["count"] > 0


def test_folders_that_are_none(kinetics: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder 'train'"):
        Kinetics("train", 0, root=str(tmp_path), **SMALL)
    shutil.copytree(kinetics, tmp_path / "kinetics400")
    assert len(Kinetics("val", 0, root=str(tmp_path), **SMALL)) == 2
    (tmp_path / "kinetics400" / "val" / "yoga").mkdir()
    with pytest.raises(UserError, match="class 'yoga' is not in both train and val"):
        Kinetics("val", 0, root=str(tmp_path), **SMALL)
    with pytest.raises(UserError, match=r"data\.test_side=20: a frame of 32 pixels"):
        Kinetics("val", 0, root=str(kinetics), size=32, short_side=(32, 32), test_side=20)
    with pytest.raises(UserError, match="put the videos into"):
        prepare("kinetics", tmp_path / "nothing")


def test_without_its_further_package_it_is_one_line(monkeypatch, kinetics: Path) -> None:
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'normlab\[video\]'"):
        Kinetics("train", 0, root=str(kinetics), **SMALL)


# ---- Something-Something ---------------------------------------------------------------------------------------------


def numbers(clip_TCHW: torch.Tensor) -> list[int]:
    return (clip_TCHW.float().mean((1, 2, 3)) / 4).round().int().tolist()


def test_a_frame_of_each_segment(something: Path) -> None:
    """Any in training; the middle ones in the test; of a short video some twice."""
    train = Something("train", 0, root=str(something), frames=8, **SMALL)
    assert len(train) == 2 and train.labels_N.tolist() == [1, 0] and train.shape == (3, 8, 32, 32)
    seen: list[set[int]] = [set() for _ in range(8)]
    for epoch in range(40):
        for segment, number in enumerate(numbers(train.take(epoch, 0, 0)[0])):
            seen[segment].add(number - 1)
    for segment, those in enumerate(seen):  # of 20 frames
        least, most = segment * 20 / 8, (segment + 1) * 20 / 8
        assert those == set(range(int(least), int(np.ceil(most))))
    short = numbers(train.take(0, 1, 1)[0])
    assert short == sorted(short) and set(short) <= set(range(1, 6))
    val = Something("val", 0, root=str(something), frames=4, **SMALL)
    (clip,), label = val.take(None, 0, 0)
    assert numbers(clip) == [1 + k for k in (1, 4, 7, 10)] and label == 1  # 12 frames
    three = Something("val", 0, root=str(something), frames=4, clips=3, **SMALL).take(None, 0, 0)[0]
    assert [numbers(clip) for clip in three] == [[1 + k + 3 * t for t in range(4)] for k in range(3)]


def test_bad_folders_and_lists(something: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(something, tmp_path / "copy"))
    frames = root / "20bn-something-something-v1"
    os.remove(frames / "1" / "00003.jpg")
    (frames / "2" / "00002.jpg").write_bytes(b"none")
    for index, message in ((0, "1: 00003.jpg is missing among its 19 frames"), (1, "2: 00002.jpg: it is no image")):
        with pytest.raises(SampleError, match=message):
            for epoch in range(20):
                Something("train", 0, root=str(root), **SMALL).take(epoch, index, index)
    shutil.rmtree(frames / "3")
    with pytest.raises(SampleError, match="3: the folder cannot be read"):
        Something("val", 0, root=str(root), **SMALL).take(None, 0, 0)
    said = "\n".join(verify("something_v1", root))
    assert all(part in said for part in ("expected 86017 videos of train, found 2", "00003.jpg is missing"))
    assert "it has 5 frames, and a clip takes 8" in "\n".join(verify("something_v1", something))
    train = root / "something-something-v1-train.csv"
    for line in ("../1;Closing [something]", "1;Opening", "1", "²;Closing [something]"):
        train.write_text(line + "\n")
        with pytest.raises(UserError, match=r"train\.csv, line 1: expected the number of a video"):
            Something("train", 0, root=str(root), **SMALL)
    train.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="this is no text"):
        Something("train", 0, root=str(root), **SMALL)
    train.unlink()
    with pytest.raises(UserError, match=r"file .something-something-v1-train\.csv"):
        Something("train", 0, root=str(root), **SMALL)
    (root / "something-something-v1-labels.csv").write_text("a\nb\na\n")
    with pytest.raises(UserError, match="each once, not twice 'a'"):
        Something("val", 0, root=str(root), **SMALL)


@pytest.mark.parametrize(("data", "model"), [("kinetics", "i3d_resnet50"), ("something_v1", "tsm_resnet50")])
def test_a_run_of_the_papers_networks(kinetics, something, tmp_path: Path, data: str, model: str) -> None:
    root = {"kinetics": kinetics, "something_v1": something}[data]
    own = ["task=video", f"data={data}", f"data.root={root}", "data.size=32", "data.short_side=[32,40]",
           "data.test_side=32", "data.clips=2", f"model={model}", "norm=bn", "batch=1x2", "iterations=1",
           "tracker=none", "batch_average.samples=2", f"out={tmp_path}"]  # fmt: skip
    assert main(["train", *own]) == 0
    summary = RunFolder.of(load(own)).summary()
    assert summary["norm_layers"] == 53 and summary["status"] == "finished"
