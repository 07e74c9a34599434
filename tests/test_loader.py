"""The engine's loader: what it gives are the dataset's own samples."""

import pytest
import torch

from normlab.bench import data
from normlab.bench.images import make_folders
from normlab.config import load
from normlab.engine.build import build_task


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_samples_of_the_dataset_normalized_bit_by_bit(tmp_path, workers):
    make_folders(tmp_path, images=12, distinct=6)
    dataset = build_task(load(["data=imagenet", f"data.root={tmp_path}", "data.size=32"])).dataset("train")
    given = list(data._ours(tmp_path, 32, 4, workers))
    assert len(given) == 3
    for current, (images, labels) in given:
        expected = [dataset[key] for key in current.keys]
        assert torch.equal(images, torch.stack([image for image, _ in expected]))
        assert labels.tolist() == [label for _, label in expected]
        assert images.dtype == torch.float32 and images.is_contiguous()
    assert len({key for current, _ in given for key in current.keys}) == 12
