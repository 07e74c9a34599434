"""The parts of loading an image: ways to decode and to crop, each against the one that the loader takes."""

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import RandomResizedCrop

from normlab.bench.images import make_folders
from normlab.bench.machine import set_threads
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.tables import Row, Table, plain
from normlab.bench.timing import seconds_a_call
from normlab.data.augment import CROP_AREA, CROP_RATIO, resized_crop_flip, to_bytes
from normlab.data.decode import decode
from normlab.progress import Progress

_DECODE, _CROP = "decode", "crop, resize, flip"
_TAKEN = "as the loader"  # decoded by PIL, cropped by torchvision as a tensor


def bench(
    progress: Progress,
    *,
    size: Annotated[int, Ge(1), Le(2**12)] = 224,
    batch: Annotated[int, Ge(1)] = 32,
    rounds: Annotated[int, Ge(1)] = 5,
    at_least: Annotated[float, Ge(0)] = 0.5,
    threads: Annotated[int, Ge(1), Le(2**15)] | None = None,
) -> list[Row]:
    """Ways to decode a JPEG file like ImageNet's, and to make a training crop of it: milliseconds a sample.

    At half its size a file is decoded faster, but an image of 500 x 375 pixels has less then than a crop of 224 needs.
    A batch's crops are a single operation only as bilinear samples, which do not average what is left out between.

    Args:
        size: of the crops, in pixels.
        batch: samples of a round.
        rounds: of which the medians and quartiles are taken.
        at_least: seconds that each way is repeated for in a round.
        threads: of torch; null: torch's own choice.
    """
    set_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        make_folders(Path(folder), batch, batch)
        files = sorted(Path(folder, "source").iterdir())
        steps = _decoders(files) | _croppers([decode(file) for file in files], size)
        finished = itertools.count(1)
        timed = {key: partial(seconds_a_call, step, at_least) for key, step in steps.items()}
        times = interleave(timed, rounds, lambda: progress("measuring", next(finished), rounds * len(steps)))
    milliseconds = {key: [1000 * t / batch for t in values] for key, values in times.items()}
    return [
        {
            **{"part": part, "way": way, "size": size, "batch": batch},
            "milliseconds": spread(values),
            "to_taken": ratio(values, milliseconds[part, _TAKEN]),
        }
        for (part, way), values in milliseconds.items()
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    columns = {"part": "part", "way": "way", "milliseconds": "ms a sample", "to_taken": f"/ {_TAKEN}"}
    return [plain("loading an image of 500 x 375, crops of {size} x {size}".format(**rows[0]), rows, columns)]


def _decoders(files: list[Path]) -> dict[tuple[str, str], Callable[[], Any]]:
    half = partial(decode, least_side=187)  # of 375

    def by_torchvision(file: Path) -> Tensor:
        return decode_jpeg(read_file(os.fspath(file)), mode=ImageReadMode.RGB)

    ways: dict[str, Callable[[Path], Any]] = {
        _TAKEN: decode,
        "at half the size": half,
        "by torchvision.io.decode_jpeg": by_torchvision,
    }
    return {(_DECODE, name): partial(_each, way, files) for name, way in ways.items()}


def _croppers(images: list[Image.Image], size: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """Each gives a batch of bytes, of images that are decoded already."""
    crop = resized_crop_flip(size)  # of tensors or of PIL's images
    arrays = [to_bytes(image) for image in images]
    return {
        (_CROP, _TAKEN): lambda: torch.stack([crop(to_bytes(image)) for image in images]),
        (_CROP, "by PIL"): lambda: torch.stack([to_bytes(crop(image)) for image in images]),
        (_CROP, "the batch at once, bilinear samples"): lambda: _sampled(torch.stack(arrays), size),
    }


def _sampled(images_BCHW: Tensor, size: int) -> Tensor:
    """The crops as one affine map of each image."""
    height, width = images_BCHW.shape[2:]
    thetas = []
    for image in images_BCHW:
        top, left, h, w = RandomResizedCrop.get_params(image, list(CROP_AREA), list(CROP_RATIO))
        flip = math.copysign(1, torch.rand(()).item() - 0.5)
        x, y = (2 * left + w) / width - 1, (2 * top + h) / height - 1
        thetas.append([[flip * w / width, 0.0, x], [0.0, h / height, y]])
    grid = affine_grid(torch.tensor(thetas), [len(images_BCHW), 3, size, size], align_corners=False)
    return grid_sample(images_BCHW.float(), grid, align_corners=False).to(torch.uint8)


def _each(way: Callable[[Any], Any], given: Sequence[Any]) -> None:
    for one in given:
        way(one)
