"""Clouds of points: ModelNet40's files, what augments them, and eight solids made on the fly."""

import math
import pickle
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from data_files import write_modelnet40

from normlab.cli import main
from normlab.data import modelnet40
from normlab.data.augment import sample_rng
from normlab.data.clouds import Augmentation, turn
from normlab.data.dataset import SampleError
from normlab.data.modelnet40 import ModelNet40
from normlab.data.solids import SOLIDS, Solids, rotations, standing, surface
from normlab.datasets import prepare, verify
from normlab.engine.loader import _Samples
from normlab.errors import UserError

STILL = {"rotate": False, "jitter": 0.0, "scale": (1.0, 1.0), "tilt": 0.0, "shift": 0.0}


@pytest.fixture
def root(tmp_path) -> Path:
    write_modelnet40(tmp_path / "data")
    return tmp_path / "data"


def change(root: Path, name: str, **arrays) -> Path:
    path = root / "modelnet40_ply_hdf5_2048" / name
    with h5py.File(path, "a") as file:
        for key, array in arrays.items():
            del file[key]
            if array is not None:
                file[key] = array
    return path


# ---- ModelNet40 ----------------------------------------------------------------------------------------------------


def test_items_are_the_first_points_of_each_cloud(root):
    dataset = ModelNet40("train", 0, root=str(root), points=32)
    folder = root / "modelnet40_ply_hdf5_2048"
    assert len(dataset) == 29 and dataset.shape == (32, 3) and dataset.num_classes == 40
    assert dataset.classes[3] == "thing_3"
    for index, (name, place) in {0: ("train0", 0), 19: ("train0", 19), 20: ("train1", 0), 28: ("train1", 8)}.items():
        points, label = dataset[None, index]
        with h5py.File(folder / f"ply_data_{name}.h5") as file:
            assert np.array_equal(points.numpy(), file["data"][place, :32]) and label == file["label"][place, 0]
    assert len(ModelNet40("val", 0, root=str(folder), points=32)) == 12


def test_training_clouds_are_functions_of_seed_epoch_and_index(root):
    dataset, other = (ModelNet40("train", seed, root=str(root), points=32) for seed in (0, 1))
    first = dataset[1, 2][0]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1, 2][0], first)
    for points in (dataset[2, 2][0], other[1, 2][0], dataset[None, 2][0]):
        assert not torch.equal(points, first)
    still = ModelNet40("train", 0, root=str(root), points=32, **STILL)
    assert torch.equal(still[1, 2][0], still[None, 2][0])
    val = ModelNet40("val", 0, root=str(root), points=32)
    assert torch.equal(val[5, 2][0], val[None, 2][0])


@pytest.mark.parametrize(
    ("name", "arrays", "said"),
    [
        ("ply_data_train1.h5", {"data": None}, "it has no array data"),
        ("ply_data_train1.h5", {"data": np.zeros((9, 64, 3), np.int32)}, "its data are int32"),
        ("ply_data_train1.h5", {"data": np.zeros((9, 64, 2), np.float32)}, "not points (N, P, 3)"),
        ("ply_data_train1.h5", {"label": np.zeros((8, 1), np.uint8)}, "its labels are uint8 (8, 1)"),
        ("ply_data_train1.h5", {"label": np.zeros((9, 1), np.float32)}, "not whole numbers"),
        ("ply_data_train1.h5", {"data": h5py.ExternalLink("other.h5", "data")}, "it has no array data"),
        ("ply_data_train1.h5", {"data": h5py.SoftLink("/label")}, "it has no array data"),
    ],
)
def test_files_that_are_none_of_modelnet40s(root, name, arrays, said):
    path = change(root, name, **arrays)
    with pytest.raises(UserError) as error:
        ModelNet40("train", 0, root=str(root), points=32)
    assert str(error.value).startswith(f"{path} cannot be read as a file of ModelNet40: ") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_in_other_files_are_not_followed(root):
    """HDF5 can keep an array's bytes, or its parts, in any file of the machine."""
    folder = root / "modelnet40_ply_hdf5_2048"
    (folder / "secret").write_bytes(bytes(9 * 64 * 3 * 4))
    with h5py.File(folder / "ply_data_train1.h5", "a") as file:
        del file["data"]
        file.create_dataset("data", (9, 64, 3), np.float32, external=[(str(folder / "secret"), 0, 9 * 64 * 3 * 4)])
    with pytest.raises(UserError, match="its data lie in another file"):
        ModelNet40("train", 0, root=str(root), points=32)
    layout = h5py.VirtualLayout((9, 64, 3), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "ply_data_train0.h5"), "data", (20, 64, 3))[:9]
    with h5py.File(folder / "ply_data_train1.h5", "a") as file:
        del file["data"]
        file.create_virtual_dataset("data", layout)
    with pytest.raises(UserError, match="its data lie in another file"):
        ModelNet40("train", 0, root=str(root), points=32)


def test_sizes_beyond_such_a_files_are_not_read(root):
    with h5py.File(root / "modelnet40_ply_hdf5_2048" / "ply_data_train1.h5", "a") as file:
        del file["data"]
        file.create_dataset("data", (10**7, 2048, 3), np.float32, chunks=(1, 2048, 3))  # nothing of it is stored
    with pytest.raises(UserError, match="it is to hold 10,000,000 clouds of 2,048 points"):
        ModelNet40("train", 0, root=str(root), points=32)


def test_what_is_missing_or_cut_off(root, monkeypatch):
    folder = root / "modelnet40_ply_hdf5_2048"
    with pytest.raises(UserError, match=r"data\.points=65: the clouds in .* have 64"):
        ModelNet40("train", 0, root=str(root), points=65)
    file = folder / "ply_data_train1.h5"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"ply_data_train1\.h5 cannot be read as a file of ModelNet40"):
        ModelNet40("train", 0, root=str(root), points=32)
    file.unlink()
    with pytest.raises(UserError, match=r"has no ply_data_train1\.h5, which its list names"):
        ModelNet40("train", 0, root=str(root), points=32)
    (folder / "train_files.txt").write_text("\n")
    with pytest.raises(UserError, match="expected the names of 1 to 100 files, found 0"):
        ModelNet40("train", 0, root=str(root), points=32)
    (folder / "train_files.txt").unlink()
    with pytest.raises(UserError, match=r"has no train_files\.txt; `normlab data prepare modelnet40"):
        ModelNet40("train", 0, root=str(root), points=32)
    monkeypatch.setattr(modelnet40, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'normlab\[points\]'"):
        ModelNet40("val", 0, root=str(root), points=32)


def test_bad_clouds_are_named_and_can_be_left_out(root):
    points, labels = np.zeros((9, 64, 3), np.float32), np.full((9, 1), 3, np.uint8)
    points[4, 5, 1], labels[6] = np.nan, 40
    change(root, "ply_data_train1.h5", data=points, label=labels)
    dataset = ModelNet40("train", 0, root=str(root), points=32)
    for index, said in ((24, "a coordinate is not a finite number"), (26, r"label 40 is not in 0\.\.39")):
        with pytest.raises(SampleError, match=rf"ply_data_train1\.h5\[{index - 20}\]: {said}"):
            dataset[0, index]
    dataset = ModelNet40("train", 0, root=str(root), points=32, on_error="skip")
    fetched = _Samples(dataset, leave_out=True).__getitems__([(None, k) for k in range(20, 29)])
    assert [index for _, index in fetched.keys] == [20, 21, 22, 23, 25, 27, 28] and len(fetched.errors) == 2
    problems = verify("modelnet40", root)
    assert [line.rpartition("/")[2] for line in problems if "[" in line] == [
        "ply_data_train1.h5[4]: a coordinate is not a finite number",
        "ply_data_train1.h5[6]: label 40 is not in 0..39",
    ]
    assert "train: expected 9840 clouds, found 29" in problems and "val: expected 2468 clouds, found 12" in problems
    assert any("its clouds have 64 points, not 2048" in line for line in problems)


def test_prepare_unpacks_the_archive(tmp_path):
    write_modelnet40(tmp_path / "source", points=1024)
    archive = tmp_path / "root" / "modelnet40_ply_hdf5_2048.zip"
    archive.parent.mkdir()
    with pytest.raises(UserError, match=r"put modelnet40_ply_hdf5_2048\.zip from ShapeNet's or PointNet's page there"):
        prepare("modelnet40", archive.parent)
    with zipfile.ZipFile(archive, "w") as packed:
        for file in (tmp_path / "source").rglob("*.*"):
            packed.write(file, file.relative_to(tmp_path / "source"))
    said = f"modelnet40: 29 training and 12 validation clouds in {archive.parent}"
    assert prepare("modelnet40", archive.parent) == said == prepare("modelnet40", archive.parent)
    shutil.rmtree(archive.parent / "modelnet40_ply_hdf5_2048")
    assert any("has no train_files.txt" in line for line in verify("modelnet40", archive.parent))


# ---- augmentation --------------------------------------------------------------------------------------------------


def augmented(points: torch.Tensor, index: int = 0, **settings) -> torch.Tensor:
    with sample_rng(0, 0, index):
        return Augmentation(**(STILL | settings))(points)


def test_nothing_is_augmented_where_nothing_is_asked_for():
    points = torch.randn(50, 3)
    assert torch.equal(augmented(points), points)


@pytest.mark.parametrize("axis", range(3))
def test_a_turn_is_that_of_a_right_hand(axis):
    """About x it takes y to z, about y z to x, about z x to y, as the matrices of the code do."""
    unit = torch.eye(3)
    quarter = turn(axis, math.pi / 2)
    torch.testing.assert_close(quarter @ unit[(axis + 1) % 3], unit[(axis + 2) % 3], atol=1e-6, rtol=0)
    torch.testing.assert_close(quarter @ unit[axis], unit[axis])


def test_rotation_keeps_heights_and_distances():
    points, angles = torch.randn(50, 3), []
    for index in range(200):
        turned = augmented(points, index, rotate=True)
        torch.testing.assert_close(turned[:, 1], points[:, 1])
        torch.testing.assert_close(turned @ turned.T, points @ points.T, atol=1e-4, rtol=1e-4)
        angles.append(math.atan2(turned[0, 2], turned[0, 0]))
    assert np.histogram(angles, 8, (-math.pi, math.pi))[0].min() > 10


def test_jitter_is_normal_and_cut():
    found = augmented(torch.zeros(200_000, 3), jitter=0.02)
    assert found.std().item() == pytest.approx(0.02, rel=0.01) and found.abs().max() <= 0.1
    cut = (augmented(torch.zeros(10**7, 3), jitter=1.0).abs() == 5.0).double().mean().item()
    assert 1e-7 < cut < 1.5e-6  # beyond five standard deviations there are 5.7e-7


def test_scale_is_one_factor_or_one_of_each_axis():
    points = torch.rand(9, 3) + 1
    for anisotropic in (False, True):
        factors = torch.stack([augmented(points, k, scale=(0.5, 2.0), anisotropic=anisotropic) / points
                               for k in range(200)])  # fmt: skip
        torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
        assert 0.5 <= factors.min() < 0.55 and 1.95 < factors.max() <= 2.0
        assert torch.allclose(factors[..., 0], factors[..., 1]) != anisotropic


def test_tilt_is_three_small_rotations():
    points = torch.eye(3)
    found = torch.stack([augmented(points, k, tilt=0.06) for k in range(400)])
    torch.testing.assert_close(found @ found.mT, points.expand_as(found), atol=1e-5, rtol=0)
    angles = torch.stack([found[:, 1, 0], found[:, 2, 0], found[:, 2, 1]])  # of small rotations, up to second order
    assert angles.abs().max() < 0.18 + 0.18**2 and angles.std().item() == pytest.approx(0.06, rel=0.1)


def test_shift_is_one_of_the_cloud():
    found = torch.stack([augmented(torch.zeros(5, 3), k, shift=0.2) for k in range(300)])
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert -0.2 <= found.min() < -0.19 and 0.19 < found.max() <= 0.2


# ---- solids --------------------------------------------------------------------------------------------------------


def test_solids_are_functions_of_their_keys():
    dataset, other = Solids("train", 0), Solids("train", 1)
    keys = [(3, k) for k in (5, 0, 1599, 8, 13)]
    together = dataset.take_all(keys)
    for (points, label), key in zip(together, keys, strict=True):
        alone, same = dataset[key]
        assert torch.equal(points, alone) and label == same == key[1] % 8
        assert points.shape == (128, 3) and points.dtype == torch.float32
    assert not torch.equal(dataset[4, 5][0], together[0][0]) and not torch.equal(other[3, 5][0], together[0][0])
    with pytest.raises(IndexError, match="clouds 0 to 1599"):
        dataset.take_all([(0, 1600)])


def test_validation_is_fixed_and_of_other_clouds():
    splits = [Solids("val", seed, validation=which) for seed in (0, 1) for which in ("held_out", "pilot")]
    clouds = [dataset[epoch, 5][0] for dataset in splits for epoch in (None, 0, 3)]
    for first, same in ((0, 1), (0, 2), (0, 6), (3, 4), (3, 9)):
        assert torch.equal(clouds[first], clouds[same])
    assert not torch.equal(clouds[0], clouds[3]) and not torch.equal(clouds[0], Solids("train", 0)[None, 5][0])


@pytest.mark.parametrize("points", [1, 2])
def test_a_cloud_of_one_point_has_no_size(tmp_path, capsys, points):
    assert all(cloud.isfinite().all() for cloud, _ in Solids("val", 0, points=2).take_all([(None, 0), (None, 1)]))
    words = ["task=points", "norm=bn", "batch=1x4", "model.k=1", f"data.points={points}", f"out={tmp_path}"]
    assert main(["plan", *words]) == (2 if points == 1 else 0)
    assert ("data.points=1: expected a whole number of 2 or more" in capsys.readouterr().err) == (points == 1)


def test_clouds_are_centred_and_of_unit_size():
    for points, _ in Solids("val", 0, noise=0.1).take_all([(None, k) for k in range(16)]):
        torch.testing.assert_close(points.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
        assert points.norm(dim=1).max().item() == pytest.approx(1.0, abs=1e-6)


AREAS = {  # of the solids between their profiles' corners, exactly
    "cylinder": 2 * math.pi * 0.7 * 1.4 + 2 * math.pi * 0.7**2,
    "cube": 2 * (2**0.5) ** 2 + 4 * 2**0.5 * 1.4,
    "octahedron": 8 * 3**0.5 / 4 * 2,
    "tetrahedron": 3**0.5 * 8 / 3,
    "sphere": 4 * math.pi,
    "torus": 4 * math.pi**2 * 0.7 * 0.3,
}


@pytest.mark.parametrize("name", SOLIDS)
def test_points_lie_evenly_on_the_surface(name):
    """The shares of the triangles are those of their areas, which add up to the solid's."""
    solid = surface(name)
    a, b, c = solid.corners_F33.swapaxes(0, 1)
    area_F = 0.5 * np.sqrt(((np.cross(b - a, c - a)) ** 2).sum(1))
    np.testing.assert_allclose(np.diff(solid.share_F, prepend=0), area_F / area_F.sum(), atol=1e-12)
    if name in AREAS:
        assert area_F.sum() == pytest.approx(AREAS[name], rel=0.03)


def test_a_sphere_is_one():
    """Neither stretched nor noisy: all points at one radius, evenly in all directions."""
    dataset = Solids("train", 0, points=4000, stretch=(1.0, 1.0), noise=0.0)
    points = dataset[0, list(SOLIDS).index("sphere")][0]
    radius = points.norm(dim=1)
    assert radius.min() > 0.93 and (points.T @ points / 4000 - torch.eye(3) / 3).abs().max() < 0.03


def test_standing_solids_keep_their_height():
    upright, turned = (Solids("train", 0, turn=how, noise=0.0) for how in ("standing", "all"))
    for dataset, flat in ((upright, True), (turned, False)):
        height = dataset[0, list(SOLIDS).index("cube")][0][:, 1]
        assert (height > height.max() - 1e-5).sum() > 10 or not flat  # its top
        assert flat or (height > height.max() - 1e-5).sum() == 1
    matrices = standing(np.random.RandomState(0).uniform(size=(1000, 3)))
    np.testing.assert_allclose(matrices @ [0, 1, 0], np.broadcast_to([0, 1, 0], (1000, 3)))
    np.testing.assert_allclose(
        matrices @ matrices.swapaxes(1, 2), np.broadcast_to(np.eye(3), matrices.shape), atol=1e-12
    )
    assert np.abs(matrices[:, 0, 0].mean()) < 0.1 and np.linalg.det(matrices) == pytest.approx(1)


def test_rotations_are_even_over_all():
    found = rotations(np.random.RandomState(0).uniform(size=(20_000, 3)))
    np.testing.assert_allclose(found @ found.swapaxes(1, 2), np.broadcast_to(np.eye(3), found.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(found), 1)
    assert np.abs(found.mean(0)).max() < 0.02 and np.abs((found**2).mean(0) - 1 / 3).max() < 0.01


def test_clouds_are_shown(tmp_path, capsys):
    write_modelnet40(tmp_path / "data")
    for words in (["solids"], ["modelnet40", f"root={tmp_path / 'data'}", "points=64"]):
        assert main(["data", "show", *words, f"out={tmp_path / 'x.png'}"]) == 0
        assert "written" in capsys.readouterr().out
