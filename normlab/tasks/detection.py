"""Object detection and instance segmentation: boxes, classes and masks of what is in an image."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.models.detectors import stages
from normlab.schema import bind, check_call
from normlab.tasks.task import Batch, Declaration, Evaluation, Metric, Outcome, Task, Traced
from normlab.writing import write_json

BODY, HEAD = "backbone.body", "roi_heads.box_head"
_LOSSES = {  # ours -> torchvision's
    "objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}
_NEEDED = ("boxes", "labels", "masks")  # of a target, in training
_SHOWN = 0.5  # least score of a detection in a picture
_AT_ONCE = 16
Target = dict[str, Any]


class Images(NamedTuple):
    """Images (C, H, W), each of a size of its own, and what is in each; the network pads them to one size."""

    images: list[Tensor]
    targets: list[Target]


class Detection(Task):
    """Losses of torchvision's detectors; COCO's average precision and recall of boxes and of masks, in percent.

    Crowds (iscrowd) are no targets in training, and in the test they count for nothing, as COCO's own code has it.

    Args:
        model, data: settings of the network and of the dataset.
        seed: of the augmentation.
        frozen_stages: pieces of the backbone whose parameters stay: 1 is the stem, 2 the first stage too, 0 none.
    """

    metrics: ClassVar = {
        "ap": {"words": "AP of boxes", "decimals": 1},
        "ap50": {"words": "AP of boxes at IoU 0.5", "decimals": 1},
        "ap75": {"words": "AP of boxes at IoU 0.75", "decimals": 1},
        "ap_s": {"words": "AP of small boxes", "decimals": 1, "partial": True},
        "ap_m": {"words": "AP of medium boxes", "decimals": 1, "partial": True},
        "ap_l": {"words": "AP of large boxes", "decimals": 1, "partial": True},
        "ar1": {"words": "AR of 1 box an image", "decimals": 1},
        "ar10": {"words": "AR of 10 boxes an image", "decimals": 1},
        "ar100": {"words": "AR of 100 boxes an image", "decimals": 1},
        "ar_s": {"words": "AR of small boxes", "decimals": 1, "partial": True},
        "ar_m": {"words": "AR of medium boxes", "decimals": 1, "partial": True},
        "ar_l": {"words": "AR of large boxes", "decimals": 1, "partial": True},
        "mask_ap": {"words": "AP of masks", "decimals": 1},
        "mask_ap50": {"words": "AP of masks at IoU 0.5", "decimals": 1},
        "mask_ap75": {"words": "AP of masks at IoU 0.75", "decimals": 1},
        "mask_ap_s": {"words": "AP of small masks", "decimals": 1, "partial": True},
        "mask_ap_m": {"words": "AP of medium masks", "decimals": 1, "partial": True},
        "mask_ap_l": {"words": "AP of large masks", "decimals": 1, "partial": True},
        "mask_ar1": {"words": "AR of 1 mask an image", "decimals": 1},
        "mask_ar10": {"words": "AR of 10 masks an image", "decimals": 1},
        "mask_ar100": {"words": "AR of 100 masks an image", "decimals": 1},
        "mask_ar_s": {"words": "AR of small masks", "decimals": 1, "partial": True},
        "mask_ar_m": {"words": "AR of medium masks", "decimals": 1, "partial": True},
        "mask_ar_l": {"words": "AR of large masks", "decimals": 1, "partial": True},
    }
    takes: ClassVar = {"model": ["detector"], "data": ["boxes"]}
    traced = BODY

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        frozen_stages: Annotated[int, Ge(0), Le(5)] = 0,
    ) -> None:
        super().__init__(model, data, seed)
        if find_spec("faster_coco_eval") is None:
            raise UserError("task=detection: its metrics need a further package; pip install 'normlab[detection]'")
        self._frozen = tuple(f"{BODY}.{name}." for name in stages(frozen_stages))
        self._parts = {
            "backbone": (BODY,),
            "head": (
                "backbone.fpn",
                "rpn",
                HEAD,
                "roi_heads.box_predictor",
                "roi_heads.mask_head",
                "roi_heads.mask_predictor",
            ),
            "fpn": ("backbone.fpn",),
            "rpn": ("rpn",),
            "box": (HEAD, "roi_heads.box_predictor"),
            "mask": ("roi_heads.mask_head", "roi_heads.mask_predictor"),
        }
        self._unbiased: set[str] = set()

    # ---- network and data ----------------------------------------------------------------------------------------

    @property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """`head` is all that is not the backbone."""
        return self._parts

    @property
    def example(self) -> tuple[int, ...]:
        return self.of_data("shape", "(C, H, W) of an image")

    @property
    def num_classes(self) -> int:
        return self.of_data("num_classes", "a whole number, without the background")

    def build(self, declared: Mapping[str, Declaration]) -> nn.Module:
        check_call(self.model["_target_"], ("shape", "num_classes", "normalized"), "model")
        normalized = {part for part, (norm, _) in declared.items() if norm is not None}
        model = bind(self.model)(self.example, self.num_classes, normalized)
        names = [name for name, _ in model.named_modules()]
        for needed in (BODY, HEAD):
            if needed not in names:
                raise UserError(
                    f"model._target_={self.model['_target_']}: a network for detection has {needed}, as torchvision's"
                )
        there = {part: tuple(p for p in own if p in names) for part, own in self._parts.items()}
        self._parts = {part: own for part, own in there.items() if own}
        for part in ("box", "mask"):
            if part in normalized & self._parts.keys() and getattr(declared[part].norm(64), "sync", False):  # type: ignore[misc]
                raise UserError(
                    f"norm.sync=true: replicas have unequal numbers of boxes, over which the statistics of the {part} "
                    f"head cannot be joined; give it another norm, as parts.{part}=gn"
                )
        self._unbiased = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None}
        return model

    def weighted(self, name: str) -> bool:
        """A convolution that a norm follows has no bias of its own."""
        return name in self._unbiased

    def frozen(self, name: str) -> bool:
        return name.startswith(self._frozen)

    def initial(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        """Where the head is the last stage of a ResNet (C4), it begins from that of a classifier."""
        if not any(name.startswith(f"{HEAD}.layer4.") for name, _ in model.named_parameters()):
            return state
        return {f"{HEAD}.{name}" if name.startswith("layer4.") else name: tensor for name, tensor in state.items()}

    def collate(self, samples: Sequence[tuple[Tensor, Target]], split: str) -> tuple[list[Tensor], list[Target]]:
        images, targets = zip(*samples, strict=True)
        return list(images), list(targets)

    def stack(self, batches: Sequence[Batch]) -> Batch | None:
        """Replicas have sizes, boxes and random samples of their own."""
        return batches[0] if len(batches) == 1 else None

    def groups(self, split: str) -> Sequence[int] | None:
        return getattr(self.dataset(split), "groups", None)

    def prepare(self, batch: tuple[list[Tensor], list[Target]], split: str) -> Images:
        images, targets = batch
        return Images([self.normalized(image, split) for image in images], targets)

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, batch: Images, replicas: int) -> Outcome:
        names = _NEEDED if "mask" in self._parts else _NEEDED[:2]  # masks would be resized for nothing
        found = model(batch.images, [_wanted(target, names) for target in batch.targets])
        return Outcome({own: found[name].view(1) for own, name in _LOSSES.items() if name in found}, {})

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluation(self, split: str) -> Evaluation:
        """One image at a time, as nothing else would pad it, unless all have the same size."""
        return Evaluation(at_once=_AT_ONCE if getattr(self.dataset(split), "one_size", False) else 1)

    def predict(self, model: nn.Module, batch: Images) -> list[dict[str, Tensor]]:
        """Boxes, labels, scores and masks of each image, in its own pixels."""
        found = model(batch.images)
        for one in found:
            if "masks" in one:
                one["masks"] = one["masks"][:, 0] > 0.5
        return found

    def _category_ids(self, split: str) -> Sequence[int]:
        """The dataset's own numbers of the labels 1, 2, ..."""
        return getattr(self.dataset(split), "category_ids", range(1, self.num_classes + 1))

    def metric(self, split: str) -> Metric:
        from normlab.tasks.average_precision import AveragePrecision  # of a package that may not be there

        return AveragePrecision(self._category_ids(split))

    def update(self, metric: Metric, predictions: Any, batch: Images, indices: Sequence[int]) -> None:
        metric.update(batch.images, predictions, batch.targets, indices)

    def results(self, metric: Metric) -> dict[str, float]:
        """Without what nothing in the split tells of, as the AP of large boxes where there are none."""
        found = metric.compute()
        if "ap" not in found:
            raise UserError("no image that was evaluated has a box; `normlab predict` writes what a run predicts of it")
        return found

    # ---- what is kept of predictions -----------------------------------------------------------------------------

    def write(self, predicted: Iterable[tuple[Any, Sequence[int]]], split: str, folder: Path) -> int:
        """COCO's results files, bbox.json and segm.json, with the ids that the dataset stores."""
        from normlab.tasks.average_precision import result_rows

        dataset: Any = self.dataset(split)
        ids = self._category_ids(split)
        kinds: dict[str, list[dict[str, Any]]] = {}
        for predictions, indices in predicted:
            for one, index in zip(predictions, indices, strict=True):
                image_id = dataset.image_id(index) if hasattr(dataset, "image_id") else index
                for kind, rows in result_rows(one, image_id, ids).items():
                    kinds.setdefault(kind, []).extend(rows)
        for kind, rows in kinds.items():
            write_json(folder / f"{kind}.json", rows)
        return len(kinds)

    def pictures(self, batch: Images, predictions: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        shown = []
        for image, target, found in zip(batch.images, batch.targets, predictions, strict=True):
            sure = found["scores"] >= _SHOWN
            instances = {"truth": _wanted(target), "predicted": {k: t[sure] for k, t in found.items() if k in _NEEDED}}
            kept = {f"{of}.{name}": t for of, those in instances.items() for name, t in those.items()}
            shown.append({"image": image} | kept)
        return shown

    def exported(self, batch: Images) -> Traced:
        """The backbone with its pyramid: how many boxes come out of the rest is not known before it runs."""
        sizes = {tuple(image.shape) for image in batch.images}
        if len(sizes) > 1:
            raise UserError("task=detection: export needs images of one size, and these have sizes of their own")
        return Traced((torch.stack(batch.images),), module=BODY.partition(".")[0])


def _wanted(target: Target, names: Sequence[str] = _NEEDED) -> dict[str, Tensor]:
    """The instances that a detector is to find: no crowds."""
    single = target["iscrowd"] == 0
    return {name: target[name][single] for name in names if name in target}
