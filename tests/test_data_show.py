"""`normlab data show`: samples of any dataset with what is known of them, and its refusals in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_class_folders
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from normlab.cli import main
from normlab.data.digits import Digits
from normlab.data.moves import Moves
from normlab.data.scenes import SceneBoxes, SceneImages, SceneMaps
from normlab.errors import UserError
from normlab.figures.samples import draw

MANY = {"size": 48, "digits": (1, 4)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(capsys, *words: str) -> str:
    assert main(["data", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "words", [["digits"], ["scenes", "size=16", "channels=3"], ["scene_maps"], ["scene_boxes"], ["moves"]]
)
def test_it_writes_a_picture_of_any_dataset(words, capsys):
    assert main(["data", "show", *words, "out=a/b.png"]) == 0
    assert capsys.readouterr().out == "written: a/b.png\n"
    assert imread("a/b.png").std() > 0.05


def test_images_of_folders_are_shown_as_training_sees_them(tmp_path, capsys):
    for split in ("train", "val"):
        write_class_folders(tmp_path / "data" / split, ["n01440764", "n01443537"], 3)
    assert main(["data", "show", "imagenet", "root=data", "size=24"]) == 0
    assert capsys.readouterr().out == "written: results/figures/imagenet.png\n"
    assert Path("results/figures/imagenet.png").is_file()


def test_an_image_has_its_class_above():
    dataset = SceneImages("train", 0, length=9)
    axes = [axis for axis in draw(dataset).axes if axis.images]
    assert [axis.get_title() for axis in axes] == [str(dataset.take(0, k, k)[1]) for k in range(9)]
    drawn = axes[4].images[0].get_array()
    np.testing.assert_allclose(drawn, dataset.take(0, 4, 4)[0][0, :, :, None].expand(-1, -1, 3) / 255)


def test_a_clip_is_a_row_of_frames():
    dataset = Moves("train", 0, length=40)
    axes = draw(dataset).axes
    assert len(axes) == 24 and [axis.get_title(loc="left") for axis in axes[::6]] == [
        dataset.classes[dataset.take(0, k, k)[1]] for k in (0, 13, 26, 39)
    ]
    for axis, frame in zip(axes[6:12], (0, 1, 3, 4, 6, 7), strict=True):
        expected = dataset.take(0, 13, 13)[0][frame, 0, :, :, None].expand(-1, -1, 3) / 255
        np.testing.assert_allclose(axis.images[0].get_array(), expected)


def test_samples_are_spread_over_the_dataset():
    dataset = Digits("train", 0, shift=1)
    titles = [axis.get_title() for axis in draw(dataset).axes]
    assert titles == [str(dataset.labels_N[k * 1438 // 24]) for k in range(24)]


def test_a_map_lies_beside_its_image_void_in_white():
    dataset = SceneMaps("train", 0, **MANY)
    image_axis, map_axis, *_ = draw(dataset).axes
    _, label_map = dataset.take(0, 0, 0)
    picture, painted = (axis.images[0].get_array() for axis in (image_axis, map_axis))
    assert (painted[label_map.numpy() == 255] == 1).all()
    moved = painted - 0.45 * picture  # the rest is the colour of a class
    for label in set(label_map.unique().tolist()) - {255}:
        of_class = moved[label_map.numpy() == label]
        assert np.ptp(of_class, axis=0).max() < 1e-6
    there = [label for label in label_map.unique().tolist() if label != 255]
    assert image_axis.get_title() == ", ".join(dataset.classes[label] for label in there)


def test_boxes_lie_around_the_pixels_of_their_masks():
    dataset = SceneBoxes("train", 0, **MANY)
    figure = draw(dataset)
    for index, axis in enumerate(figure.axes[:6]):
        _, target = dataset.take(0, index * len(dataset) // 24, index * len(dataset) // 24)
        drawn = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
        assert len(drawn) == len(target["boxes"])
        for patch, mask in zip(drawn, target["masks"], strict=True):
            left, top = patch.get_xy()
            rows, columns = torch.nonzero(mask, as_tuple=True)
            inside = (columns > left) & (columns < left + patch.get_width())
            assert (inside & (rows > top) & (rows < top + patch.get_height())).all()
            assert patch.get_width() == columns.max() - columns.min() + 1


def test_what_has_neither_images_nor_clouds_is_refused():
    class Sounds(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, key):
            return torch.zeros(5), 1

    with pytest.raises(UserError, match=r"Sounds: its samples are no images \(C, H, W\) and no clouds \(P, 3\)"):
        draw(Sounds())


def test_refusals(capsys):
    assert "dataset 'scene_box' does not exist; did you mean 'scene_boxes'?" in refusal(capsys, "show", "scene_box")
    assert "data.ligth: there is no such setting; did you mean 'light'?" in refusal(capsys, "show", "scenes", "ligth=1")
    assert "data.light=7: expected a number of 0 or more, up to 1" in refusal(capsys, "show", "scenes", "light=7")
    assert "out=x.gif: expected a file that ends in .png, .pdf, .svg" in refusal(capsys, "show", "scenes", "out=x.gif")
    assert "expected prepare, verify or show and a dataset's name" in refusal(capsys, "shw", "scenes")
    assert "no train-images" in refusal(capsys, "show", "mnist", "root=nowhere")
