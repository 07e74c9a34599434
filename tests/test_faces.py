"""Pictures of faces on disk, RecordIO, MegaFace's lists, pairs without a pickle; and characters in their place."""

import json
import math
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import as_pairs, as_records, image_record, jpeg, write_faces

from normlab.cli import main
from normlab.data import glyphs, megaface
from normlab.data.dataset import SampleError
from normlab.data.faces import FaceFiles, read_pairs
from normlab.data.features import write_feature
from normlab.data.glyphs import GlyphImages, Glyphs, alphabet
from normlab.data.lettering import FACES, characters, picture
from normlab.data.recordio import Records
from normlab.datasets import prepare, verify
from normlab.engine.loader import _Samples
from normlab.errors import UserError

MAGIC = struct.pack("<I", 0xCED7230A)


@pytest.fixture
def root(tmp_path) -> Path:
    write_faces(tmp_path / "data")
    return tmp_path / "data"


def dataset(root: Path, split: str, **settings) -> FaceFiles:
    return FaceFiles(split, 0, root=str(root), **({"distractors": 5} if split == "val" else {}) | settings)


# ---- RecordIO ------------------------------------------------------------------------------------------------------


def write_records(folder: Path, contents: dict[int, bytes]) -> Records:
    for suffix, content in zip((".rec", ".idx"), as_records(contents), strict=True):
        (folder / f"x{suffix}").write_bytes(content)
    return Records(folder / "x.rec")


def test_records_come_back_as_they_were_written(tmp_path):
    """Of any length, with the magic number inside at places that are multiples of four, and at others."""
    draw = np.random.RandomState(0)
    contents = [draw.bytes(n) for n in (0, 1, 2, 3, 4, 57, 4096)]
    contents += [
        MAGIC,
        MAGIC + MAGIC,
        b"ab" + MAGIC,
        b"abcd" + MAGIC + b"efg" + MAGIC,
        draw.bytes(24) + MAGIC + MAGIC + b"x",
    ]
    packed = {7 * k + 2: image_record(float(k), content) for k, content in enumerate(contents)}
    records = write_records(tmp_path, packed)
    assert len(records) == len(contents) and records.numbers_N.tolist() == list(packed)
    for again in (records, pickle.loads(pickle.dumps(records))):
        for k, content in reversed(list(enumerate(contents))):
            assert again[7 * k + 2] == ((float(k),), content)
    several = write_records(tmp_path, {0: image_record([3.0, 9.0, 0.5], b"z")})
    assert several[0] == ((3.0, 9.0, 0.5), b"z")
    with pytest.raises(ValueError, match="its index has no record 3"):
        records[3]


def test_two_processes_read_one_file(tmp_path):
    """A place in the file that a fork shares would be moved by both."""
    records = write_records(tmp_path, {k: image_record(float(k), bytes([k]) * 500) for k in range(50)})
    assert records[0].content[0] == 0
    child = os.fork()
    if not child:
        good = all(records[k].content == bytes([k]) * 500 for _ in range(20) for k in range(50))
        os._exit(0 if good else 1)
    assert all(records[k].content == bytes([k]) * 500 for _ in range(20) for k in range(50))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"\0" + data[1:], "no record begins at byte 0"),
        (lambda data: data[:20], "it ends within the record at byte 8"),
        (lambda data: data[:5], "it ends within the record at byte 0"),
        (lambda data: data[:4] + struct.pack("<I", 2**29 - 1) + data[8:], "is to have more than"),
        (lambda data: data[:4] + struct.pack("<I", 2 << 29 | 40) + data[8:], "no record begins at byte 0"),
        (lambda data: data[:4] + struct.pack("<I", 1 << 29 | 40) + data[8:], "it ends within the record at byte"),
        (lambda data: data[:8] + struct.pack("<I", 2**31) + data[12:], "a record is to have 2,147,483,648 labels"),
        (lambda data: data[:4] + struct.pack("<I", 3) + data[8:], "a record is shorter than the header of an image"),
    ],
)
def test_damaged_records(tmp_path, change, said):
    records = write_records(tmp_path, {1: image_record(1.0, b"x" * 16)})
    records.path.write_bytes(change(records.path.read_bytes()))
    with pytest.raises(ValueError, match=said):
        Records(records.path)[1]


FAR = b"0\t%d\n" % (2**63 - 1)


@pytest.mark.parametrize("index", [b"", b"1", b"1\tx\n", b"1\t-4\n", b"1\t2\t3\n", b"9" * 40 + b"\t1\n", FAR])
def test_an_index_that_is_none(tmp_path, index):
    write_records(tmp_path, {1: b""})
    (tmp_path / "x.idx").write_bytes(index)
    with pytest.raises(UserError, match=r"x\.idx is no index of records"):
        Records(tmp_path / "x.rec")


# ---- MS1MV2 and MegaFace ---------------------------------------------------------------------------------------------


def test_training_pictures_are_those_of_the_records(root):
    """Record 0 says where they end; behind them are the records of persons."""
    faces = dataset(root, "train")
    assert len(faces) == 10 and faces.num_classes == 5
    assert [faces.take(None, k, k)[1] for k in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    image, _ = faces[None, 3]
    assert image.shape == (3, 112, 112) and image.dtype == torch.float32 and image.min() < -0.9 and image.max() > 0.9
    flips = [torch.equal(faces.take(epoch, 3, 3)[0], faces.take(None, 3, 3)[0].flip(2)) for epoch in range(20)]
    assert 0 < sum(flips) < 20
    still = dataset(root, "train", flip=False)
    assert all(torch.equal(still.take(epoch, 3, 3)[0], still.take(None, 3, 3)[0]) for epoch in range(5))


def write_training(root: Path, records: dict[int, bytes]) -> None:
    for suffix, content in zip((".rec", ".idx"), as_records(records), strict=True):
        (root / "faces_emore" / f"train{suffix}").write_bytes(content)


def test_records_without_one_that_says_where_they_end(root):
    """All are pictures then, the first too."""
    write_training(root, {3 * k: image_record(float(k % 5), jpeg((112, 112))) for k in range(7)})
    faces = dataset(root, "train")
    assert [faces.take(None, k, k)[1] for k in range(len(faces))] == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e30, -1.0])
def test_labels_that_are_no_identity(root, number):
    write_training(root, {0: image_record([2.0, 9.0], b""), 1: image_record(number, jpeg((112, 112)))})
    with pytest.raises(SampleError, match=r"train\.rec\[1\]: label .* is not in 0\.\.4"):
        dataset(root, "train")[None, 0]
    assert sum("train.rec[1]" in line for line in verify("faces", root)) == 1
    write_training(root, {0: image_record([number, 9.0], b""), 1: image_record(0.0, jpeg((112, 112)))})
    with pytest.raises(UserError, match=r"its first record says that pictures end at .*, and there are 2"):
        dataset(root, "train")


def test_those_that_lists_leave_out_are_gone_before_distractors_are_drawn(root):
    faces = dataset(root, "val")
    known = [faces.paths[k] for k in range(5)]
    assert known == [f"Ann_Lee/Ann_Lee_{k}.png" for k in range(3)] + [f"Bo_Li/Bo_Li_{k}.png" for k in range(2)]
    assert faces.labels_N.tolist() == [0, 0, 0, 1, 1] + 5 * [-1]
    left = {f"10{k}/7{k}@N00/{k}_0.jpg" for k in (0, 3, 5, 6, 7, 8)}
    assert {*faces.paths[5:]} < left and dataset(root, "val").paths.tolist() == faces.paths.tolist()
    assert {*dataset(root, "val", distractors=6).paths[5:]} == left
    with pytest.raises(UserError, match=r"data\.distractors=7: .* has 6 after those of its lists are left out"):
        dataset(root, "val", distractors=7)
    assert faces.name(1) == "facescrub/Ann_Lee/Ann_Lee_1.png" and faces.name(7).startswith("megaface/10")


def test_lists_of_megaface_itself(root):
    folder = root / "megaface"
    lines = {kind: (folder / f"{kind}_lst").read_text().split() for kind in ("facescrub", "megaface")}
    before = megaface.probes(folder), megaface.distractors(folder, 5)
    for kind, name in (
        ("facescrub", "facescrub_features_list.json"),
        ("megaface", "megaface_features_list.json_1000000_1"),
    ):
        (folder / name).write_text(json.dumps({"path": [line.partition("_images/")[2] for line in lines[kind]]}))
        (folder / f"{kind}_lst").unlink()
    assert (megaface.probes(folder), megaface.distractors(folder, 5)) == before
    for text, said in (
        ("[1]", "none of MegaFace's lists"),
        ('{"path": [1]}', "its path is no list of names"),
        ("{", "none of"),
    ):
        (folder / "facescrub_features_list.json").write_text(text)
        with pytest.raises(UserError, match=said):
            megaface.probes(folder)
    for text, said in (
        ("a/../b.png", "is no path of 2 parts"),
        ("b.png", "is no path of 2 parts"),
        ("\n", "lists nothing"),
    ):
        (folder / "facescrub_lst").write_text(text)
        with pytest.raises(UserError, match=said):
            megaface.probes(folder)


def test_pictures_that_cannot_be_used(root):
    """In a record, in a folder and in a pair: named, and left out where that is asked for."""
    records = {0: image_record([4.0, 9.0], b""), 1: image_record(0.0, b"no image")}
    records |= {2: image_record(7.0, jpeg((112, 112))), 3: image_record(1.0, jpeg((96, 112)))}
    write_training(root, records)
    faces = dataset(root, "train")
    for index, said in enumerate(
        ["it is no image", r"label 7 is not in 0\.\.4", "it has 96 x 112 pixels, and an aligned"]
    ):
        with pytest.raises(SampleError, match=rf"faces_emore/train\.rec\[{index + 1}\]: {said}"):
            faces[0, index]
    fetched = _Samples(dataset(root, "train", on_error="skip"), leave_out=True).__getitems__(
        [(None, k) for k in range(3)]
    )
    assert fetched.keys == [] and len(fetched.errors) == 3
    (root / "megaface/facescrub_images/Bo_Li/Bo_Li_1.png").unlink()
    with pytest.raises(SampleError, match=r"megaface/facescrub_images/Bo_Li/Bo_Li_1\.png"):
        dataset(root, "val")[None, 4]
    problems = verify("faces", root)
    assert any("Bo_Li_1.png" in line for line in problems) or any("distractors" in line for line in problems)
    assert sum("train.rec[" in line for line in problems) == 3


def test_what_is_missing(root):
    with pytest.raises(UserError, match="put faces_emore of ArcFace's authors there"):
        prepare("faces", root / "nowhere")
    (root / "faces_emore" / "property").write_text("5,96,112")
    with pytest.raises(UserError, match="expected PERSONS,112,112 in it"):
        dataset(root, "train")
    (root / "faces_emore" / "train.idx").unlink()
    with pytest.raises(UserError, match=r"has no train\.idx"):
        dataset(root, "train")
    (root / "megaface" / "megaface_lst").unlink()
    with pytest.raises(UserError, match=r"has no megaface_lst and no megaface_features_list\.json"):
        dataset(root, "val")
    with pytest.raises(UserError, match=r"has no agedb_30\.bin"):
        dataset(root, "pairs", pairs="agedb_30")


def test_feature_files_are_opencvs(tmp_path):
    """As MegaFace's matio reads them: rows, columns, bytes of a row, the type, and the rows."""
    feature = np.random.RandomState(0).normal(size=512).astype(np.float32)
    write_feature(tmp_path / "a" / "b.bin", feature)
    content = (tmp_path / "a" / "b.bin").read_bytes()
    rows, columns, stride, kind = struct.unpack("iiii", content[:16])
    assert (rows, columns, stride, kind) == (512, 1, 4, 5)
    assert np.array_equal(np.frombuffer(content[16:], np.float32).reshape(rows, columns)[:, 0], feature)


# ---- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [as_pairs, *(lambda *v, p=p: pickle.dumps(v, protocol=p) for p in (2, 4, 5))])
def test_pairs_of_either_python(tmp_path, written):
    pictures, same = [bytes([k, 255 - k]) * 300 for k in range(6)], [True, False, True]
    (tmp_path / "lfw.bin").write_bytes(written(pictures, same))
    assert read_pairs(tmp_path / "lfw.bin") == (pictures, same)


class Evil:
    def __reduce__(self):
        return os.system, ("touch called",)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (([Evil()], [True]), "for 1 answers"),
        (([Evil(), b"x"], [True]), "a picture is no bytes"),
        (([b"x", b"y"], [Evil()]), "its answers are not all True or False"),
        (([b"x"], [True, False]), "it holds 1 pictures for 2 answers"),
        ([b"x"], "it holds no list of pictures"),
        (([b"x", b"y"], [3]), "its answers are not all True or False"),
    ],
)
def test_nothing_in_a_file_of_pairs_is_called(tmp_path, monkeypatch, value, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.bin").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=f"x.bin is no file of pairs: .*{said}"):
        read_pairs(tmp_path / "x.bin")
    assert not (tmp_path / "called").exists()


def test_pictures_of_pairs(root):
    pairs = dataset(root, "pairs", pairs="lfw")
    assert len(pairs) == 12 and [pairs[None, k][1] for k in range(12)] == [1, 1, 0, 0, 1, 1] * 2
    (root / "faces_emore" / "lfw.bin").write_bytes(as_pairs([b"no image"] * 2, [True]))
    with pytest.raises(SampleError, match=r"faces_emore/lfw\.bin\[1\]: it is no image"):
        dataset(root, "pairs", pairs="lfw")[None, 1]
    (root / "faces_emore" / "lfw.bin").write_bytes(b"\x80\x02garbage")
    with pytest.raises(UserError, match=r"lfw\.bin is no file of pairs"):
        dataset(root, "pairs", pairs="lfw")


# ---- glyphs --------------------------------------------------------------------------------------------------------


def test_no_two_characters_look_alike():
    """In the first face; Latin, Greek and Cyrillic A are one."""
    every = characters()
    assert len(every) == len(set(every)) > 1000 and {*"ABGRabg2%"} <= {*every}
    assert not {"\u0391", "\u0410", " ", "\u00a0"} & {*every}
    drawn = np.stack([picture(character, 0) for character in every[:400]]).reshape(400, -1)
    distance = ((drawn[:, None] - drawn[None]) ** 2).mean(2) + np.eye(400)
    assert distance.min() > 0.05


def test_ink_reaches_from_edge_to_edge():
    for character in "Ml.":
        for face in range(len(FACES)):
            drawn = picture(character, face)
            assert drawn.shape == (24, 24) and drawn.min() >= 0 and drawn.max() <= 1
            assert max((drawn.max(axis) > 0).sum() for axis in (0, 1)) == 24
    assert not picture(" ", 0).any()


def test_no_identity_is_in_two_sets():
    sets = [alphabet(which) for which in ("train", "held_out", "pilot", "held_out distractors", "pilot distractors")]
    assert [len(part) for part in sets[:3]] == [500, 100, 100] and min(map(len, sets[3:])) > 100
    assert sum(map(len, sets)) == len({*sum(sets, ())}) == len(characters())
    shown = Glyphs("val", 0).chosen, Glyphs("val", 0, validation="pilot").chosen, Glyphs("train", 0).chosen
    assert not {*shown[0]} & {*shown[1]} and not {*shown[0]} & {*shown[2]} and shown[2] == GlyphImages("val", 0).chosen


def test_pictures_are_functions_of_their_keys():
    for made in (Glyphs("train", 3), GlyphImages("train", 3), Glyphs("val", 3)):
        keys = [(1, k) for k in (5, 0, len(made) - 1, 77)]
        for (image, label), key in zip(made.take_all(keys), keys, strict=True):
            alone, same = made.take(*key, key[1])
            assert (
                torch.equal(image, alone)
                and label == same
                and image.dtype == torch.uint8
                and image.shape == (1, 32, 32)
            )
        assert made[1, 5][0].dtype == torch.float32
        with pytest.raises(IndexError, match="pictures 0 to"):
            made.take_all([(0, len(made))])
    one, other = (Glyphs("train", seed) for seed in (0, 1))
    images = [one.take(0, 5, 5)[0], one.take(1, 5, 5)[0], other.take(0, 5, 5)[0], one.take(0, 505, 505)[0]]
    assert len({image.numpy().tobytes() for image in images}) == 4
    fixed = [Glyphs("val", seed).take(epoch, 5, 5)[0] for seed in (0, 1) for epoch in (None, 4)]
    assert all(torch.equal(fixed[0], image) for image in fixed)


def test_labels_of_probes_and_distractors():
    made = Glyphs("val", 0, probes=3, distractors=40)
    labels = [label for _, label in made.take_all([(None, k) for k in range(len(made))])]
    assert labels == [k // 3 for k in range(300)] + 40 * [glyphs.DISTRACTOR]
    assert made.chosen[made.which_N[7]] == alphabet("held_out")[2]
    assert made.chosen[made.which_N[300]] == alphabet("held_out distractors")[0]
    train = Glyphs("train", 0, identities=50, length=200)
    assert train.num_classes == 50 and np.bincount(train.labels_N).tolist() == 50 * [4]


def test_pictures_are_shown(tmp_path, root, capsys):
    for words in (["glyphs"], ["glyph_images"], ["faces", f"root={root}"]):
        assert main(["data", "show", *words, f"out={tmp_path / 'x.png'}"]) == 0
        assert "written" in capsys.readouterr().out
