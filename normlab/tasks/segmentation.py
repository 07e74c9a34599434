"""Semantic segmentation: a class for every pixel, but for those that are void."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import Dataset

from normlab.data.dataset import VOID
from normlab.errors import UserError
from normlab.schema import bind, named
from normlab.tasks.metrics import plain_names
from normlab.tasks.task import Declaration, Evaluation, Metric, Outcome, Task, Traced
from normlab.writing import write_bytes

SEVERAL = "val_scales"  # the split that is evaluated at several scales


class Maps(NamedTuple):
    """Images (rows, C, H, W), their label maps (rows, H, W), and the scales at which they are predicted."""

    images: Tensor
    labels: Tensor
    scales: Sequence[float]


class Segmentation(Task):
    """Cross entropy over the pixels that count; mean intersection over union over all images together, in percent.

    Predictions are made at the size of the label map: logits are enlarged bilinearly, and over several scales the
    probabilities are averaged (SN-TPAMI, Sec. 4.3.1).

    Args:
        model, data: settings of the network and of the dataset.
        seed: of the augmentation.
        auxiliary: what the loss of the auxiliary head counts (SN-TPAMI, Sec. 4.3.1: 0.4).
        loss_at: the loss compares at the size of the labels, with logits enlarged; or of the logits, with the nearest
            labels, as the code that the SN papers used.
        unit: of the scales: factors of an image's size, or pixels of its shorter side.
        scales: at which an image is predicted; empty: as it is.
        several: scales of a second evaluation at the end, whose metrics are called val_scales/miou.
        longest: side in pixels that no scale makes longer, where unit is pixels.
        flip: predict the mirrored image too.
    """

    metrics: ClassVar = {
        "miou": {"words": "mean IoU"},
        "accuracy": {"words": "pixel accuracy"},
        "class_accuracy": {"words": "mean accuracy of classes"},
        "iou": {"words": "IoU", "per_class": True},
    }
    takes: ClassVar = {"model": ["segmenter"], "data": ["maps"]}
    traced = "backbone"

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        auxiliary: Annotated[float, Ge(0)] = 0.4,
        loss_at: Literal["labels", "logits"] = "labels",
        unit: Literal["factor", "pixels"] = "factor",
        scales: Sequence[Annotated[float, Gt(0)]] = (),
        several: Sequence[Annotated[float, Gt(0)]] = (),
        longest: Annotated[int, Ge(1)] = 1000,
        flip: bool = False,
    ) -> None:
        super().__init__(model, data, seed)
        self.auxiliary, self.loss_at = auxiliary, loss_at
        self.unit, self.scales, self.several, self.longest, self.flip = unit, scales, several, longest, flip
        self._predictors: set[str] = set()

    @property
    def splits(self) -> Mapping[str, str]:  # type: ignore[override]
        more = {SEVERAL: "validation, at several scales"} if self.several else {}
        withheld = {"test": "test, whose labels are withheld"} if "test" in self._stored() else {}
        return {"train": "training", "val": "validation"} | more | withheld

    @property
    def tested(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("val", SEVERAL) if self.several else ("val",)

    def _stored(self) -> Mapping[str, int]:
        """The splits that a dataset in a folder has."""
        return getattr(named(self.data["_target_"]), "counts", {})

    parts: ClassVar = {
        "backbone": "backbone",
        "head": ("decoder", "auxiliary"),
        "decoder": "decoder",
        "auxiliary": "auxiliary",
    }

    def dataset(self, split: str) -> Dataset:
        return super().dataset("val" if split == SEVERAL else split)

    @property
    def example(self) -> tuple[int, ...]:
        return self.of_data("shape", "(C, H, W) of a training crop")

    @property
    def num_classes(self) -> int:
        return self.of_data("num_classes", "a whole number, without void")

    def build(self, declared: Mapping[str, Declaration]) -> nn.Module:
        model = bind(self.model)(self.example, self.num_classes)
        missing = [name for name in ("backbone", "decoder") if not hasattr(model, name)]
        if missing:
            raise UserError(
                f"model._target_={self.model['_target_']}: a network for segmentation has {' and '.join(missing)}, as "
                "normlab.models.segmenters.Segmenter"
            )
        for head in ("decoder", "auxiliary"):
            within = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n.startswith(f"{head}.")]
            self._predictors.update(within[-1:])
        return model

    def weighted(self, name: str) -> bool:
        return name not in self._predictors

    def evaluation(self, split: str) -> Evaluation:
        one_size = getattr(self.dataset(split), "one_size", False)
        return Evaluation(at_once=64 if one_size else 1)

    def collate(self, samples: Sequence[tuple[Tensor, Tensor]], split: str) -> tuple[Tensor, Tensor]:
        images, labels = zip(*samples, strict=True)
        sizes = {tuple(image.shape[-2:]) for image in images}
        if len(sizes) > 1:
            some = " and ".join("x".join(map(str, size)) for size in sorted(sizes)[:2])
            raise UserError(
                f"images of {some} pixels cannot be in one batch; batch_average.augment=true crops them, as training"
            )
        return torch.stack(images), torch.stack(labels)

    def prepare(self, batch: tuple[Tensor, Tensor], split: str) -> Maps:
        images, labels = batch
        return Maps(self.normalized(images, split), labels.long(), self.several if split == SEVERAL else self.scales)

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, batch: Maps, replicas: int) -> Outcome:
        """Each loss is a replica's mean over its pixels that count: DDP's, which no mean over the whole batch is."""
        found = model(batch.images)
        logits, *others = found if isinstance(found, tuple) else (found,)
        main, hits = self._compare(logits, batch.labels)
        losses = {"main": main.of(replicas)}
        if others and self.auxiliary:
            losses["auxiliary"] = self.auxiliary * self._compare(others[0], batch.labels)[0].of(replicas)
        return Outcome(losses, {"accuracy": 100 * hits.of(replicas)})

    def _compare(self, logits: Tensor, labels: Tensor) -> "tuple[_Counted, _Counted]":
        if self.loss_at == "labels":
            logits = _enlarged(logits, labels.shape[-2:])
        else:
            labels = interpolate(labels[:, None].to(logits.dtype), logits.shape[-2:], mode="nearest")[:, 0].long()
        counted = labels != VOID
        loss = cross_entropy(logits, labels, ignore_index=VOID, reduction="none")
        hits = (logits.argmax(1) == labels) & counted
        return _Counted(loss, counted), _Counted(hits.to(loss.dtype), counted)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, batch: Maps) -> Tensor:
        """The class of each pixel, (rows, H, W) as the label maps."""
        return self.probabilities(model, batch).argmax(1)

    def probabilities(self, model: nn.Module, batch: Maps) -> Tensor:
        """Means over scales, and over an image and its mirrored self: (rows, K, H, W), of the label maps' size."""
        size = batch.labels.shape[-2:]
        total: Tensor | float = 0.0
        passes = [(scale, mirrored) for scale in batch.scales or (None,) for mirrored in (False, True)[: 1 + self.flip]]
        for scale, mirrored in passes:
            images = batch.images if scale is None else _resized(batch.images, self._size(batch.images, scale))
            logits = model(images.flip(-1) if mirrored else images)
            logits = logits.flip(-1) if mirrored else logits
            total = total + _enlarged(logits, size).softmax(1)
        return total / len(passes)  # type: ignore[return-value]

    def _size(self, images: Tensor, scale: float) -> tuple[int, int]:
        height, width = images.shape[-2:]
        factor = scale
        if self.unit == "pixels":
            factor = min(scale / min(height, width), self.longest / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))

    def metric(self, split: str) -> Metric:
        from torchmetrics.classification import MulticlassConfusionMatrix  # takes a second, which training has not

        return MulticlassConfusionMatrix(self.num_classes, ignore_index=VOID, validate_args=False)

    def update(self, metric: Metric, predictions: Tensor, batch: Maps, indices: Sequence[int]) -> None:
        metric.update(predictions, batch.labels)

    def write(self, predicted: Iterable[tuple[Any, Sequence[int]]], split: str, folder: Path) -> int:
        """A PNG of each map, by its image's name, with the numbers by which the dataset stores its classes."""
        dataset: Any = self.dataset(split)
        stored_K = np.array(getattr(dataset, "label_ids", range(self.num_classes)), np.uint8)
        number = 0
        for maps, indices in predicted:
            for map_HW, index in zip(maps.cpu().numpy(), indices, strict=True):
                name = Path(dataset.pair(index).image).stem if hasattr(dataset, "pair") else f"{index:06}"
                content = io.BytesIO()
                Image.fromarray(stored_K[map_HW]).save(content, "PNG")
                write_bytes(folder / f"{name}.png", content.getvalue())
            number += len(indices)
        return number

    def pictures(self, batch: Maps, predictions: Tensor) -> list[dict[str, Tensor]]:
        maps = zip(batch.images, batch.labels, predictions, strict=True)
        return [
            {"image": image, "truth": truth.to(torch.uint8), "predicted": predicted.to(torch.uint8)}
            for image, truth, predicted in maps
        ]

    def results(self, metric: Metric) -> dict[str, float]:
        """Classes that are neither in the labels nor predicted have no IoU, and no part in the mean."""
        counts_KK = metric.compute().double()  # labels x predictions
        hits_K, labels_K = counts_KK.diag(), counts_KK.sum(1)
        union_K = labels_K + counts_KK.sum(0) - hits_K
        iou_K = 100 * hits_K / union_K
        names = plain_names(getattr(self.dataset("train"), "classes", ()), self.num_classes)
        there_K = union_K > 0
        if not labels_K.sum():
            raise UserError("no pixel of the split has a label; `normlab predict` writes what a run predicts of it")
        return {
            "miou": iou_K[there_K].mean().item(),
            "accuracy": (100 * hits_K.sum() / labels_K.sum()).item(),
            "class_accuracy": (100 * hits_K / labels_K)[labels_K > 0].mean().item(),
            **{f"iou.{name}": iou_K[k].item() for k, name in enumerate(names) if there_K[k]},
        }

    def exported(self, batch: Maps) -> Traced:
        """One image size, as it is trained: heads enlarge by it."""
        return Traced((batch.images,))


class _Counted(NamedTuple):
    """A value of each pixel, (R*N, H, W), and which of them count."""

    values: Tensor
    counted: Tensor

    def of(self, replicas: int) -> Tensor:
        """(R,): the mean of each replica over its pixels that count; 0 where none does."""
        sums_R = (self.values * self.counted).view(replicas, -1).sum(1)
        return sums_R / self.counted.view(replicas, -1).sum(1).clamp(min=1)


def _enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == torch.Size(size):
        return images
    return interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
