"""Digits in scenes: the generator against a plain loop, and that a scene is a function of (seed, epoch, index)."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.ops import masks_to_boxes

from normlab.config import load
from normlab.data import scenes
from normlab.data.dataset import VOID
from normlab.data.scenes import Drawn, SceneBoxes, SceneImages, SceneMaps, Stream, handwriting, label_maps, visible
from normlab.engine.build import build_task
from normlab.engine.loader import _Samples
from normlab.errors import UserError
from normlab.seeding import hashed, random_bytes, splitmix64, uniforms

MANY = {"size": 64, "digits": (1, 4), "clutter": 4}
KINDS = [partial(SceneImages, size=16), partial(SceneMaps, **MANY), partial(SceneBoxes, **MANY, channels=3)]
OF_EACH_KIND = pytest.mark.parametrize("make", KINDS, ids=["images", "maps", "boxes"])


def whole(dataset, keys) -> Drawn:
    return Drawn(*map(np.concatenate, zip(*dataset.draw(keys), strict=True)))


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def all_same(some, others) -> bool:
    return len(some) == len(others) and all(
        torch.equal(image, other) and same(target, of_other)
        for (image, target), (other, of_other) in zip(some, others, strict=True)
    )


# Random numbers


def test_splitmix64_gives_the_published_numbers():
    state = np.array(1234567, np.uint64)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(state, 4).tolist() == published
    assert splitmix64(state, 2, start=2).tolist() == published[2:]


def test_numbers_are_uniform_and_neighbours_are_independent():
    keys = hashed(0, 1, np.arange(4000))
    numbers = uniforms(keys, 3, 5)
    assert numbers.min() >= 0 and numbers.max() < 1
    chi_square = ((np.histogram(numbers, 50, (0, 1))[0] - 400) ** 2 / 400).sum()
    assert chi_square < 95  # 49 degrees of freedom: 1 in 10,000
    next_epoch = hashed(0, 2, np.arange(3999))
    others = [numbers[1:], uniforms(keys[:-1], 4, 5), uniforms(next_epoch, 3, 5)]
    correlation = np.corrcoef(np.concatenate([numbers[:-1].T, *(other.T for other in others)])) - np.eye(20)
    assert abs(correlation).max() < 0.07  # 4.5 standard errors
    counts = np.bincount(random_bytes(keys, 3, 13).ravel(), minlength=256)
    assert counts.sum() == 52_000 and ((counts - 203.1) ** 2 / 203.1).sum() < 350


def test_a_hash_depends_on_all_numbers_and_on_their_order():
    places = np.meshgrid(*[np.arange(20)] * 3, indexing="ij")
    assert len(np.unique(hashed(*places))) == 20**3
    assert hashed(3, 4, 5) == hashed(*places)[3, 4, 5]


# One plain scene


def plain(dataset, epoch, index):
    """The scene of a training key, pixel by pixel, in float64, with its digits' covers and labels."""
    key = hashed(0, dataset.seed, epoch, index)
    draw = partial(uniforms, key)
    (channels, size, _), fragments, (least, most) = dataset.shape, dataset.clutter, dataset.digits
    pixels, labels = handwriting("train")
    layers = fragments + most
    cells = next(n for n in range(1, 20) if n * n >= most)
    order = sorted(range(cells**2), key=list(draw(Stream.CELL, cells**2)).__getitem__)
    count = least + int(draw(Stream.COUNT, 1)[0] * (most - least + 1))
    place, inks = draw(Stream.PLACE, 2 * layers), draw(Stream.INK, channels * layers)
    pieces, light = draw(Stream.PIECE, 2 * fragments), draw(Stream.LIGHT, 2)
    covers, chosen = [], []
    for layer in range(layers):
        digit = layer - fragments
        member = index % len(labels) if digit == 0 else int(draw(Stream.MEMBER, layers)[layer] * len(labels))
        cell = size / cells
        side = (dataset.scale[0] + (dataset.scale[1] - dataset.scale[0]) * draw(Stream.SIZE, layers)[layer]) * cell
        corner = []
        for axis in range(2):
            low, high = 0.0, float(size)
            if digit >= 0:
                number = divmod(order[digit], cells)[axis]
                low, high = max(0, (number - 0.1) * cell), min(size, (number + 1.1) * cell)
            corner.append(low + place[2 * layer + axis] * (high - low - side))
        cover = np.zeros((size, size))
        width = max(1.0, 8 / side)
        for r in range(size):
            for c in range(size):
                u, v = ((p + 0.5 - corner[a]) * 8 / side - 0.5 for a, p in enumerate((r, c)))
                for i in range(max(0, int(u - width)), min(8, int(u + width) + 2)):
                    for j in range(max(0, int(v - width)), min(8, int(v + width) + 2)):
                        if digit < 0:
                            at = [int(pieces[2 * layer + a] * 5) for a in range(2)]
                            if not (at[0] <= i < at[0] + 4 and at[1] <= j < at[1] + 4):
                                continue
                        share = max(0, 1 - abs(u - i) / width) / width * max(0, 1 - abs(v - j) / width) / width
                        cover[r, c] += share * pixels[member, i, j]
        covers.append(cover if digit < count else 0 * cover)
        chosen.append(labels[member])
    noise = random_bytes(key, Stream.NOISE, channels * size**2).reshape(channels, size, size).astype(float)
    grids = 0.4 * draw(Stream.TEXTURE, channels * 16).reshape(channels, 4, 4)
    gain = np.exp(-3 * dataset.light * light[0])
    image = np.zeros((channels, size, size))
    for k in range(channels):
        for r in range(size):
            for c in range(size):
                y, x = 3 * r / (size - 1), 3 * c / (size - 1)
                i, j = min(int(y), 2), min(int(x), 2)
                a, b = y - i, x - j
                (p, q), (s, t) = grids[k][i : i + 2, j : j + 2]
                value = (1 - a) * ((1 - b) * p + b * q) + a * ((1 - b) * s + b * t)
                for layer, cover in enumerate(covers):
                    value = (1 - cover[r, c]) * value + cover[r, c] * (0.7 + 0.3 * inks[k * layers + layer])
                value += dataset.noise * 3**0.5 * (noise[k, r, c] / 127.5 - 1)
                image[k, r, c] = 255 * (gain * value + (1 - gain) * light[1])
    return image.clip(0, 255), np.array(covers[fragments:]), chosen[fragments:]


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 16},
        {"size": 12, "scale": (0.3, 0.6), "light": 1.0},  # digits made smaller
        {"size": 24, "digits": (1, 4), "clutter": 3, "channels": 3, "noise": 0.2},
        {"size": 21, "digits": (2, 5), "clutter": 0, "noise": 0.0, "light": 0.0},
    ],
)
def test_scenes_are_those_of_a_plain_loop_in_float64(settings):
    dataset = SceneMaps("train", 3, **settings)
    keys = [(2, 7), (0, 1500)]
    drawn = whole(dataset, keys)
    for number, key in enumerate(keys):
        image, covers, labels = plain(dataset, *key)
        assert abs(drawn.images_BCSS[number] - image).max() < 0.502  # rounded to the nearest
        np.testing.assert_allclose(drawn.covered_BDSS[number], covers, atol=1e-5)
        assert drawn.labels_BD[number].tolist() == labels
        expected = np.zeros(covers[0].shape)
        for cover, label in zip(covers, labels, strict=True):
            expected[cover >= 0.25] = 255
            expected[cover >= 0.5] = label + 1
        sure = (abs(covers - 0.5) > 1e-5).all(0) & (abs(covers - 0.25) > 1e-5).all(0)
        assert (label_maps(drawn)[number] == expected)[sure].all() and sure.mean() > 0.99


# What a scene is a function of


@OF_EACH_KIND
def test_a_scene_is_the_same_alone_and_in_any_batch(make):
    dataset = make("train", 0)
    keys = [(0, 5), (None, 5), (1, 5), (0, 6), (3, 3999), (0, 0)] * 7
    alone = [dataset.take(epoch, index, index) for epoch, index in keys]
    assert all_same(dataset.take_all(keys), alone)
    assert all_same(dataset.take_all(keys[::-1]), alone[::-1])
    assert all_same(pickle.loads(pickle.dumps(dataset)).take_all(keys[:3]), alone[:3])
    image, target = dataset[0, 5]
    assert image.shape == dataset.shape and image.dtype == torch.float32
    assert torch.equal(image, dataset.normalize(alone[0][0])) and same(target, alone[0][1])


@OF_EACH_KIND
def test_the_loader_draws_them_at_once_whatever_the_workers(make):
    dataset = make("val", 0)
    keys = [(None, index) for index in range(9)]
    alone = [dataset.take(*key, key[1]) for key in keys]
    fetched = _Samples(dataset, leave_out=True).__getitems__(keys)
    assert all_same(fetched.samples, alone) and fetched.keys == keys and not fetched.errors
    loader = torch.utils.data.DataLoader(
        _Samples(dataset, True), batch_sampler=[keys[:4], keys[4:]], collate_fn=lambda f: f.samples, num_workers=2
    )
    assert all_same([sample for batch in loader for sample in batch], alone)


def test_training_scenes_differ_by_seed_epoch_and_index_and_validation_scenes_by_index_alone():
    train, other = SceneImages("train", 0), SceneImages("train", 1)
    taken = [train.take(0, 4, 4), train.take(1, 4, 4), train.take(0, 5, 5), train.take(None, 4, 4), other.take(0, 4, 4)]
    assert len({image.numpy().tobytes() for image, _ in taken}) == 5
    assert torch.equal(train.take(None, 4, 4)[0], other.take(None, 4, 4)[0])
    fixed = SceneImages("val", 0).take_all([(None, index) for index in range(500)])
    assert len({image.numpy().tobytes() for image, _ in fixed}) == 500
    for seed in (0, 1):
        for epoch in (None, 0, 1):
            assert all_same(SceneImages("val", seed).take_all([(epoch, 4), (epoch, 9)]), [fixed[4], fixed[9]])


def test_scenes_that_are_not_fresh_are_one_set():
    kept = SceneImages("train", 3, size=16, length=30, fresh=False)
    first = kept.take_all([(0, 4), (0, 7)])
    assert not all_same(first[:1], first[1:])
    other = SceneImages("train", 4, size=16, length=30, fresh=False)
    assert all_same(kept.take_all([(None, 4), (5, 7)]), first) and all_same(other.take_all([(1, 4), (2, 7)]), first)
    assert not all_same(SceneImages("train", 3, size=16, length=30).take_all([(0, 4), (0, 7)]), first)


def test_a_setting_changes_what_it_says_and_nothing_else():
    """The light of a scene does not move its digits, nor does its noise."""
    plain_map, *others = (
        SceneMaps("train", 0, **MANY, **changed).take(1, 2, 2)[1] for changed in ({}, {"light": 1.0}, {"noise": 0.5})
    )
    assert all(torch.equal(plain_map, other) for other in others)


# Handwriting


def test_the_three_sets_of_handwriting_are_apart_and_complete():
    sets = {which: handwriting(which) for which in ("train", "held_out", "pilot")}
    known = {which: {image.tobytes() for image in images} for which, (images, _) in sets.items()}
    assert {which: len(labels) for which, (_, labels) in sets.items()} == {"train": 1151, "held_out": 359, "pilot": 287}
    assert not known["train"] & known["held_out"] and not known["train"] & known["pilot"]
    assert not known["pilot"] & known["held_out"]
    pixels = load_digits(return_X_y=True)[0]
    assert set.union(*known.values()) == {(image / 16).astype(np.float32).tobytes() for image in pixels}
    for _, labels in sets.values():
        assert np.bincount(labels).min() > 0.09 * len(labels)


@pytest.mark.parametrize(("validation", "which"), [("held_out", "held_out"), ("pilot", "pilot")])
def test_scenes_show_the_handwriting_of_their_split_alone(validation, which):
    """Without light, noise and clutter the ink of a scene at the size of the handwriting is the handwriting's."""
    bare = {"size": 8, "scale": (1.0, 1.0), "clutter": 0, "light": 0.0, "noise": 0.0, "validation": validation}
    train, val = SceneImages("train", 0, **bare), SceneImages("val", 0, **bare)
    for dataset, own in ((train, "train"), (val, which)):
        images, labels = handwriting(own)
        drawn = whole(dataset, [(0, index) for index in range(400)])
        first = np.arange(400) % len(labels)
        np.testing.assert_array_equal(dataset.images_N88, images)  # of which further digits and fragments are drawn
        np.testing.assert_array_equal(drawn.covered_BDSS[:, 0], images[first])
        assert drawn.labels_BD[:, 0].tolist() == labels[first].tolist()


def test_a_pilot_changes_validation_and_not_training():
    pilot, held_out = (partial(SceneImages, seed=0, validation=which) for which in ("pilot", "held_out"))
    assert all_same(pilot("train").take_all([(0, 1)]), held_out("train").take_all([(0, 1)]))
    assert not torch.equal(pilot("val").take(0, 1, 1)[0], held_out("val").take(0, 1, 1)[0])


# Targets


@pytest.fixture(scope="module")
def drawn():
    dataset = SceneBoxes("train", 0, **MANY)
    keys = [(0, index) for index in range(600)]
    return whole(dataset, keys), dataset.take_all(keys), SceneMaps("train", 0, **MANY).take_all(keys)


def test_masks_boxes_and_maps_agree(drawn):
    _, boxed, mapped = drawn
    for number, ((image, target), (same_image, label_map)) in enumerate(zip(boxed, mapped, strict=True)):
        assert torch.equal(image, same_image)
        masks, labels = target["masks"], target["labels"]
        assert torch.equal(target["boxes"], masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]))
        assert torch.equal(target["area"], masks.sum((1, 2)).float())
        assert masks.sum(0).max() <= 1  # a pixel shows one digit
        painted = (masks * labels[:, None, None]).sum(0)
        clear = label_map != VOID
        assert torch.equal(painted[clear], label_map[clear].long())
        assert set(label_map[clear].unique().tolist()) - {0} <= set(labels.tolist())
        assert target["image_id"] == number and not target["iscrowd"].any()
        types = {key: value.dtype for key, value in target.items() if isinstance(value, torch.Tensor)}
        assert types == {"boxes": torch.float32, "labels": torch.int64, "masks": torch.bool, "area": torch.float32,
                         "iscrowd": torch.int64}  # fmt: skip
        assert label_map.dtype == torch.uint8


def test_each_digit_stays_visible_and_has_a_rim_of_a_pixel_or_so(drawn):
    scene, boxed, mapped = drawn
    whole = (scene.covered_BDSS >= 0.5).sum((2, 3))
    seen = visible(scene).sum((2, 3))
    there = scene.covered_BDSS.any((2, 3))
    assert (seen[there] > 0).all() and (seen[there] / whole[there]).min() > 0.4
    assert np.bincount(there.sum(1), minlength=5)[1:].min() > 110  # of 600 scenes with 1 to 4 digits
    for number in np.flatnonzero(there.sum(1) == 1)[:50]:
        label_map = mapped[number][1].numpy()
        digit, void = (label_map > 0) & (label_map != VOID), label_map == VOID
        near = digit.copy()
        for _ in range(4):
            grown = np.pad(near, 1)
            near = near | grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
        assert 0.1 < void.sum() / digit.sum() < 2.5 and (void & ~near).sum() < 0.2 * void.sum()
    assert len(boxed) == 600


def test_light_moves_brightness_and_contrast_of_whole_scenes():
    keys = [(0, index) for index in range(300)]
    spread = {}
    for light in (0.0, 0.5, 1.0):
        images = np.stack([image.numpy() for image, _ in SceneImages("train", 0, light=light).take_all(keys)])
        low, high = np.quantile(images.std((1, 2, 3)), (0.1, 0.9))
        spread[light] = images.mean((1, 2, 3)).std(), high / low
    assert spread[0.0][0] < spread[0.5][0] < spread[1.0][0]
    assert spread[0.0][1] < 2 < spread[0.5][1] < spread[1.0][1]


def test_normalized_scenes_have_mean_0_and_std_1_or_nearly():
    for make in KINDS:
        images = torch.stack([image for image, _ in make("train", 0).take_all([(0, index) for index in range(500)])])
        normalized = make("train", 0).normalize(images)
        assert abs(normalized.mean()) < 0.2 and abs(normalized.std() - 1) < 0.1


# Settings


def test_the_files_of_conf_are_what_tasks_expect():
    task = build_task(load(["data=scenes", "data.size=16"]))
    assert task.example == (1, 16, 16) and task.num_classes == 10
    maps = SceneMaps("train", 0, **MANY)
    assert maps.num_classes == len(maps.classes) == 11 and maps.one_size
    with pytest.raises(UserError, match="this is for maps, and task=classification takes images"):
        load(["data=scene_maps", "task=classification"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"digits": (3, 1)}, r"data\.digits=\[3,1\]: expected the smaller number first"),
        ({"scale": (0.9, 0.5)}, r"data\.scale=\[0\.9,0\.5\]: expected the smaller number first"),
        ({"digits": (1, 2)}, r"data\.digits=\[1,2\]: a scene of this dataset has at most 1"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        SceneImages("train", 0, **settings)


def test_an_index_out_of_range_is_one():
    dataset = SceneImages("val", 0, val_length=7)
    assert len(dataset) == 7
    for index in (7, -1):
        with pytest.raises(IndexError):
            dataset[None, index]


def test_chunks_do_not_matter(monkeypatch):
    dataset, keys = SceneMaps("train", 0, **MANY), [(0, index) for index in range(40)]
    at_once = dataset.take_all(keys)
    monkeypatch.setattr(scenes, "_AT_ONCE", 3 * 64**2)
    assert all_same(dataset.take_all(keys), at_once)
