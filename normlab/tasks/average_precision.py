"""COCO's average precision and recall of any number of devices, by faster-coco-eval: COCO's own code, in C++.

torchmetrics has a wrapper of it, which rounds the thresholds of IoU and recall to float32, where an IoU of 0.6 is not
one of 0.6 any more, and which waits for ever where devices have unequal numbers of images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor

from normlab.norm.pooling import num_ranks

KINDS = {"bbox": "", "segm": "mask_"}  # COCO's -> what our names begin with
_NAMES = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l")
_NOTHING = -1  # what COCO's code says where there is nothing to measure
Rows = list[dict[str, Any]]


class AveragePrecision:
    """Collects truth and predictions by the index of their image, so that the result knows no ranks and no order."""

    def __init__(self, category_ids: Sequence[int]) -> None:
        """`category_ids` are the dataset's numbers of the labels 1, 2, ..."""
        self.category_ids = category_ids
        self._images: dict[int, tuple[tuple[int, int], Rows, dict[str, Rows]]] = {}

    def to(self, device: torch.device) -> "AveragePrecision":
        """It stays on the CPU, where COCO's code works."""
        return self

    def update(
        self,
        images: Sequence[Tensor],
        predictions: Sequence[Mapping[str, Tensor]],
        targets: Sequence[Mapping[str, Any]],
        indices: Sequence[int],
    ) -> None:
        for index, image, found, target in zip(indices, images, predictions, targets, strict=True):
            size = (image.shape[-2], image.shape[-1])
            self._images[index] = size, self._annotations(target), result_rows(found, index, self.category_ids)

    def compute(self) -> dict[str, float]:
        """Of all ranks, in percent; nothing of what there is none of."""
        images = self._gathered()
        truth = [row | {"image_id": index} for index, (_, rows, _) in images.items() for row in rows]
        reference = COCO(
            {
                "images": [{"id": k, "height": size[0], "width": size[1]} for k, (size, _, _) in images.items()],
                "annotations": [row | {"id": number} for number, row in enumerate(truth, start=1)],
                "categories": [{"id": number} for number in self.category_ids],
            }
        )
        values: dict[str, float] = {}
        for kind in KINDS:
            rows = [row for _, _, found in images.values() for row in found.get(kind, ())]
            if not any(kind in found for _, _, found in images.values()):
                continue
            judge = COCOeval_faster(reference, reference.loadRes(rows), kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            values |= {
                f"{KINDS[kind]}{name}": v for name, v in zip(_NAMES, np.asarray(judge.stats).tolist(), strict=True)
            }
        return {name: 100 * value for name, value in values.items() if value != _NOTHING}

    def _annotations(self, target: Mapping[str, Any]) -> Rows:
        rows = _boxes(target, self.category_ids)
        for row, area, crowd in zip(rows, target["area"].tolist(), target["iscrowd"].tolist(), strict=True):
            row |= {"area": area, "iscrowd": crowd}
        for row, mask_HW in zip(rows, target.get("masks", ()), strict=False):
            row["segmentation"] = _run_lengths(mask_HW)
        return rows

    def _gathered(self) -> dict[int, Any]:
        every = [self._images]
        if num_ranks() > 1:
            every = [{} for _ in range(num_ranks())]
            dist.all_gather_object(every, self._images)
        joined = {index: image for own in every for index, image in own.items()}
        return {index: joined[index] for index in sorted(joined)}


def result_rows(found: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int]) -> dict[str, Rows]:
    """What an image's predictions are in COCO's results files: by kind, bbox and segm."""
    boxes = _boxes(found, category_ids)
    for row, score in zip(boxes, found["scores"].tolist(), strict=True):
        row |= {"image_id": image_id, "score": score}
    rows = {"bbox": boxes}
    if "masks" in found:
        rows["segm"] = [
            {name: value for name, value in row.items() if name != "bbox"} | {"segmentation": _run_lengths(mask_HW)}
            for row, mask_HW in zip(boxes, found["masks"], strict=True)
        ]
    return rows


def _boxes(instances: Mapping[str, Any], category_ids: Sequence[int]) -> Rows:
    left_top, right_bottom = instances["boxes"].double().cpu().split(2, 1)
    boxes = torch.cat([left_top, right_bottom - left_top], 1).tolist()
    return [
        {"category_id": category_ids[label - 1], "bbox": box}
        for label, box in zip(instances["labels"].tolist(), boxes, strict=True)
    ]


def _run_lengths(mask_HW: Tensor) -> dict[str, Any]:
    """COCO's compressed form, with text that a JSON file can hold."""
    pixels: NDArray[np.uint8] = np.asfortranarray(mask_HW.cpu().numpy(), dtype=np.uint8)
    packed = coco_mask.encode(pixels)
    return {"size": list(mask_HW.shape), "counts": packed["counts"].decode()}
