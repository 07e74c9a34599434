"""The data in memory, the splits, and the promise that an item is a function of (seed, epoch, index)."""

import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from normlab.data.augment import pad_crop_flip, random_shifts, resize_center_crop, resized_crop_flip, sample_rng
from normlab.data.digits import Digits
from normlab.data.handwriting import load_handwriting
from normlab.data.splits import balanced_subset, held_out, training_fraction
from normlab.data.synthetic import Synthetic, SyntheticBoxes
from normlab.errors import UserError
from normlab.seeding import hashed, mix_seed


def images(dataset, keys):
    return torch.stack([dataset[key][0] for key in keys])


# Randomness of a sample


def test_sample_rng_depends_on_the_triple_alone_and_leaves_no_trace():
    def draw(*triple):
        with sample_rng(*triple):
            return torch.rand(4)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = draw(0, 1, 2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(draw(0, 1, 2), first)
    for other in [(1, 1, 2), (0, 2, 2), (0, 1, 3), (2, 1, 0), (0, 12, 0)]:
        assert not torch.equal(draw(*other), first)


def test_sample_rng_restores_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), sample_rng(0, 0, 0):
        torch.rand(1)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


def test_neighbouring_samples_are_uncorrelated():
    draws = []
    for index in range(2000):
        with sample_rng(0, 0, index):
            draws.append(torch.rand(2).tolist())
    drawn = np.array(draws)
    neighbours = np.corrcoef(drawn[:-1].T, drawn[1:].T)[:2, 2:]
    assert abs(neighbours).max() < 0.08  # 3.5 standard errors
    assert abs(drawn.mean(0) - 0.5).max() < 0.03


def test_mix_has_no_collisions_among_neighbours():
    triples = [(s, e, i) for s in range(3) for e in range(10) for i in range(100)]
    assert len({mix_seed(*triple) for triple in triples}) == len(triples)


def loaded(dataset, keys, workers):
    loader = DataLoader(dataset, batch_size=3, sampler=keys, num_workers=workers)
    return torch.cat([batch for batch, _ in loader])


@pytest.mark.parametrize("make", [lambda s: Digits("train", s, shift=2), lambda s: Synthetic("train", s, size=5)])
def test_workers_and_order_do_not_matter(make):
    dataset = make(0)
    keys = [(1, i) for i in range(10)]
    expected = images(dataset, keys)
    assert torch.equal(loaded(dataset, keys, workers=0), expected)
    assert torch.equal(loaded(dataset, keys, workers=2), expected)
    shuffled = random.Random(0).sample(range(10), 10)
    assert torch.equal(images(dataset, [keys[i] for i in shuffled]), expected[shuffled])
    assert torch.equal(images(pickle.loads(pickle.dumps(dataset)), keys), expected)


# Recipes


def all_crops(image_CHW, padding, size):
    padded = np.pad(image_CHW, ((0, 0), (padding, padding), (padding, padding)))
    shifts = range(padded.shape[1] - size + 1)
    crops = [padded[:, top : top + size, left : left + size] for top in shifts for left in shifts]
    return {c.tobytes() for c in crops} | {np.ascontiguousarray(c[:, :, ::-1]).tobytes() for c in crops}


def test_pad_crop_flip_gives_exactly_the_crops_of_the_padded_image():
    image = np.random.RandomState(0).randint(0, 256, (3, 32, 32), np.uint8)
    transform = pad_crop_flip(padding=2, size=32)
    seen = Counter()
    for index in range(1500):
        with sample_rng(0, 0, index):
            seen[transform(torch.from_numpy(image)).numpy().tobytes()] += 1
    assert set(seen) == all_crops(image, 2, 32)
    assert len(seen) == 5 * 5 * 2
    assert max(seen.values()) < 60  # 30 expected of each


def test_random_shifts_move_each_image_by_up_to_the_given_pixels():
    images = np.random.RandomState(0).rand(200, 2, 4, 5).astype(np.float32)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-7.0)
    keys = hashed(0, 0, np.arange(200))
    moved = random_shifts(torch.from_numpy(images), keys, 1, -7.0).numpy()
    places = [(top, left) for top in range(3) for left in range(3)]
    found = [
        [at for at in places if np.array_equal(moved[i], padded[i, :, at[0] : at[0] + 4, at[1] : at[1] + 5])]
        for i in range(200)
    ]
    assert all(len(of_one) == 1 for of_one in found)
    assert {at for of_one in found for at in of_one} == set(places)
    alone = random_shifts(torch.from_numpy(images[7:8]), keys[7:8], 1, -7.0)
    assert np.array_equal(alone.numpy(), moved[7:8])


def test_resnet_recipe_crops_8_to_100_percent_of_the_area():
    """On a linear ramp a crop of share s of the width spans s of the ramp, so the crop can be read off its values."""
    ramps = np.stack([np.tile(np.arange(256), (256, 1)), np.tile(np.arange(256)[:, None], (1, 256))] * 2)[:3]
    crop = resized_crop_flip(16)
    areas, ratios, flipped = [], [], 0
    for index in range(400):
        with sample_rng(0, 0, index):
            out = crop(torch.from_numpy(ramps).float()).numpy()
        step_x = (out[0, 8, 12] - out[0, 8, 4]) / 8
        height = (out[1, 12, 8] - out[1, 4, 8]) / 8 * 16
        flipped += step_x < 0
        areas.append(abs(step_x) * 16 * height / 256**2)
        ratios.append(abs(step_x) * 16 / height)
    assert 0.07 < min(areas) < 0.15 and 0.85 < max(areas) < 1.02
    assert 0.73 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.36
    assert 150 < flipped < 250


@pytest.mark.parametrize(("size", "side"), [(224, 256), (64, 73)])
def test_evaluation_recipe_takes_the_center_of_256_224ths(size, side):
    image = torch.rand(3, side, side + 10)  # the shorter side has its size already, so this is the crop alone
    top, left = round((side - size) / 2), round((side + 10 - size) / 2)
    assert torch.equal(resize_center_crop(size)(image), image[:, top : top + size, left : left + size])


# Splits


LABELS = np.random.RandomState(3).randint(0, 7, 1000)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1, 0.001])
def test_fraction_is_balanced_over_the_classes(fraction):
    chosen = balanced_subset(LABELS, fraction)
    whole, kept = np.bincount(LABELS), np.bincount(LABELS[chosen], minlength=7)
    assert all(abs(kept - np.maximum(1, fraction * whole)) <= 0.5)
    assert len(set(chosen)) == len(chosen)
    assert list(chosen) == sorted(chosen)


def test_smaller_fractions_lie_within_larger_ones():
    assert set(balanced_subset(LABELS, 0.1)) < set(balanced_subset(LABELS, 0.5)) < set(balanced_subset(LABELS, 1.0))


def test_fraction_is_not_the_first_samples():
    chosen = balanced_subset(np.zeros(1000, int), 0.5)
    assert 200 < (chosen < 500).sum() < 300


def test_held_out_parts_are_disjoint_and_complete():
    train, val = held_out(LABELS, "train", 0.8), held_out(LABELS, "val", 0.8)
    assert sorted([*train, *val]) == list(range(1000))
    assert len(train) == pytest.approx(800, abs=4)


def test_the_validation_split_stays_whole():
    assert len(training_fraction(LABELS, "val", 0.1)) == 1000


# Digits


def test_digits_are_split_into_disjoint_fixed_parts():
    train, val = Digits("train", 0), Digits("val", 0)
    assert (len(train), len(val)) == (1438, 359)
    assert np.bincount(val.labels_N).min() >= 34
    assert torch.equal(Digits("val", seed=1).images_NCHW, val.images_NCHW)
    pixels, labels = load_digits(return_X_y=True)
    both = torch.cat([train.images_NCHW, val.images_NCHW]).flatten(1).double().numpy()
    raw = 16 * (both - both.min()) / (both.max() - both.min())
    got = sorted(map(tuple, np.column_stack([raw.round().astype(int), [*train.labels_N, *val.labels_N]])))
    assert got == sorted(map(tuple, np.column_stack([pixels.astype(int), labels])))


def test_digits_are_normalised_by_the_training_split():
    train = Digits("train", 0).images_NCHW.double()
    assert train.mean().item() == pytest.approx(0, abs=1e-6)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_digit_items():
    dataset = Digits("train", 0)
    image, label = dataset[None, 3]
    assert image.shape == dataset.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert type(label) is int
    assert torch.equal(dataset[4, 3][0], image)  # no augmentation by default
    with pytest.raises(IndexError):
        dataset[0, len(dataset)]


def test_shift_changes_training_images_with_epoch_and_seed_only():
    train, val = Digits("train", 0, shift=1), Digits("val", 0, shift=1)
    keys = [(2, i) for i in range(20)]
    moved = images(train, keys)
    still = images(train, [(None, i) for i in range(20)])
    assert torch.equal(still, images(Digits("train", 0), keys))
    for other in [still, images(train, [(3, i) for i in range(20)]), images(Digits("train", 1, shift=1), keys)]:
        assert not torch.equal(moved, other)
    assert torch.equal(val[2, 0][0], val[None, 0][0])


@pytest.mark.parametrize("size", [1, 5, 16])
def test_digits_resized(size):
    dataset = Digits("val", 0, size=size)
    assert dataset[None, 0][0].shape == dataset.shape == (1, size, size)


def test_digits_fraction():
    assert len(Digits("train", 0, fraction=0.5)) == pytest.approx(719, abs=5)
    assert len(Digits("val", 0, fraction=0.5)) == 359


def test_unknown_split_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'train'"):
        Digits("trian", 0)


# Synthetic


def test_synthetic_shapes_and_lengths():
    dataset = Synthetic("val", 0, channels=2, size=3, num_classes=4, length=9, val_length=6)
    assert len(dataset) == 6
    assert dataset[None, 5][0].shape == dataset.shape == (2, 3, 3)
    assert [dataset[0, i][1] for i in range(6)] == [0, 1, 2, 3, 0, 1]
    with pytest.raises(IndexError):
        dataset[0, 6]


def test_synthetic_classes_can_be_told_apart():
    """The nearest class mean of the training split classifies the validation split."""
    train, val = (Synthetic(split, 0, size=16, num_classes=5, length=200) for split in ("train", "val"))
    train_NP = images(train, [(0, i) for i in range(200)]).flatten(1)
    means_KP = torch.stack([train_NP[train.labels_N == k].mean(0) for k in range(5)])
    val_NP = images(val, [(0, i) for i in range(len(val))]).flatten(1)
    assert (torch.cdist(val_NP, means_KP).argmin(1).numpy() == val.labels_N).mean() > 0.99
    assert not torch.equal(train[0, 0][0], val[0, 0][0])
    residual_NP = train_NP - means_KP[train.labels_N]
    assert residual_NP.std().item() == pytest.approx(1, abs=0.05)


def test_handwriting_is_what_scikit_learn_loads(monkeypatch):
    ours, theirs = load_handwriting.__wrapped__(), load_digits(return_X_y=True)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.dtype == its.dtype and np.array_equal(mine, its)
    monkeypatch.setattr("normlab.data.handwriting.find_spec", lambda name: None)
    assert np.array_equal(load_handwriting.__wrapped__()[0], theirs[0])


def test_rectangles_in_noise():
    """Each mask is its box, in the colour of its class; the image is a function of split and index."""
    dataset = SyntheticBoxes("val", 0, channels=2, size=40, num_classes=3, length=9, val_length=30)
    assert len(dataset) == 30 and dataset.num_classes == 3 and dataset.shape == (2, 40, 40)
    counts, labels = set(), set()
    for index in range(30):
        image, target = dataset[None, index]
        again = SyntheticBoxes("val", 7, channels=2, size=40, num_classes=3)[5, index]
        assert torch.equal(image, again[0]) and torch.equal(target["boxes"], again[1]["boxes"])
        counts.add(len(target["boxes"]))
        labels |= set(target["labels"].tolist())
        overlaps = target["masks"].sum(0) > 1
        for box, mask, label, area in zip(*(target[k] for k in ("boxes", "masks", "labels", "area")), strict=True):
            left, top, right, bottom = box.int().tolist()
            expected = torch.zeros(40, 40, dtype=torch.bool)
            expected[top:bottom, left:right] = True
            assert torch.equal(mask, expected) and area == mask.sum() > 0
            alone = image[:, mask & ~overlaps]
            if alone.shape[1] > 100:
                torch.testing.assert_close(alone.mean(1), dataset.colours_KC[label - 1], rtol=0, atol=0.5)
    assert counts == {1, 2, 3, 4} and labels == {1, 2, 3}
    assert not torch.equal(dataset[None, 0][0], SyntheticBoxes("train", 0, channels=2, size=40)[0, 0][0])
