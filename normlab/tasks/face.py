"""Face verification: features whose angles tell identities apart."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import default_collate

from normlab.data.features import write_feature
from normlab.schema import bind
from normlab.tasks.task import Declaration, Metric, Outcome, Task, Traced, by_replica
from normlab.tasks.verification import Features, accepted, pair_accuracy, rates

PAIRS = "pairs"  # the split of pairs that are one identity or not
_LEAST = 1e-12  # of a squared sine: where it is 0, a root has no gradient


class Faces(NamedTuple):
    """Images (rows, C, H, W) and their identities (rows,); -1: a distractor."""

    images: Tensor
    labels: Tensor


class Face(Task):
    """ArcFace's loss; the shares of pairs that are verified at a false-accept rate, and that are first among others.

    A split for validation has pictures of identities that training has not (probes), and pictures of others
    (distractors). Metrics are in percent; see normlab.tasks.verification.

    Args:
        model, data: settings of the network and of the dataset.
        seed: of the augmentation.
        scale: s, of the cosines (SN-TPAMI, Sec. 4.4: 64).
        margin: m, in radians, added to the angle with the right identity (SN-TPAMI, Sec. 4.4: 0.5).
        far: false-accept rate.
        flip: features are those of a picture and of its mirror image together, as in the code of SN.
    """

    metrics: ClassVar = {
        "tar": {"words": "verification rate"},
        "rank1": {"words": "rank-1 rate", "partial": True},
        "pair_accuracy": {"words": "accuracy on pairs", "partial": True},
    }
    takes: ClassVar = {"model": ["embedding"], "data": ["faces"]}
    traced = "backbone"

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        scale: Annotated[float, Gt(0)] = 64.0,
        margin: Annotated[float, Ge(0), Lt(1.57)] = 0.5,
        far: Annotated[float, Gt(0), Le(1)] = 1e-3,
        flip: bool = False,
    ) -> None:
        super().__init__(model, data, seed)
        self.scale, self.margin, self.far, self.flip = scale, margin, far, flip

    @property
    def splits(self) -> Mapping[str, str]:  # type: ignore[override]
        return {"train": "training", "val": "validation", PAIRS: "pairs"}

    # ---- network and data ----------------------------------------------------------------------------------------

    @property
    def example(self) -> tuple[int, ...]:
        return self.of_data("shape", "(C, H, W)")

    @property
    def parts(self) -> Mapping[str, str]:
        return {"backbone": "", "embedding": "embedding", "head": "head"}

    def build(self, declared: Mapping[str, Declaration]) -> nn.Module:
        return bind(self.model)(self.example, self.of_data("num_classes", "a whole number"))

    def collate(self, samples: Sequence[tuple[Tensor, int]], split: str) -> Faces:
        images, labels = default_collate(list(samples))
        return Faces(images, labels)

    def prepare(self, batch: Faces, split: str) -> Faces:
        return Faces(self.normalized(batch.images, split), batch.labels)

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, batch: Faces, replicas: int) -> Outcome:
        cosines_NK = model(batch.images)
        logits_NK = arcface(cosines_NK, batch.labels, self.scale, self.margin)
        loss = cross_entropy(logits_NK, batch.labels, reduction="none")
        hits = 100 * (cosines_NK.argmax(1) == batch.labels).to(loss.dtype)
        return Outcome({"arc": by_replica(loss, replicas)}, {"accuracy": by_replica(hits, replicas)})

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, batch: Faces) -> Tensor:
        """Features (rows, E) of unit length."""
        features_NE = model(batch.images)
        return normalize(features_NE + model(batch.images.flip(3))) if self.flip else features_NE

    @property
    def tested(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("val", PAIRS) if self.data.get("pairs") else ("val",)

    def metric(self, split: str) -> Metric:
        return Features(in_pairs=split == PAIRS)

    def update(self, metric: Metric, predictions: Tensor, batch: Faces, indices: Sequence[int]) -> None:
        metric.update(predictions, batch.labels, indices)

    def results(self, metric: Metric) -> dict[str, float]:
        """Of pairs, which are not of known identities, no rank."""
        features_NE, labels_N = metric.compute()
        if not metric.in_pairs:
            return rates(features_NE, labels_N, self.far)._asdict()
        scores_N, same_N = (features_NE[0::2] * features_NE[1::2]).sum(1), labels_N[0::2] == 1
        return {"tar": accepted(scores_N, same_N, self.far), "pair_accuracy": pair_accuracy(scores_N, same_N)}

    def write(self, predicted: Iterable[tuple[Any, Sequence[int]]], split: str, folder: Path) -> int:
        """A feature file of each picture, by its name, as MegaFace's code takes them."""
        dataset: Any = self.dataset(split)
        number = 0
        for features, indices in predicted:
            for feature_E, index in zip(features.float().cpu().numpy(), indices, strict=True):
                name = dataset.name(index) if hasattr(dataset, "name") else f"{index:07}"
                write_feature(folder / f"{name}.bin", feature_E)
            number += len(indices)
        return number

    def exported(self, batch: Faces) -> Traced:
        """The network as it is evaluated; identities are of use in training alone."""
        return Traced((batch.images,))


def arcface(cosines_NK: Tensor, labels_N: Tensor, scale: float, margin: float) -> Tensor:
    """Logits (N, K): scale * cos(angle + margin) of the right identity, scale * cos(angle) of all others.

    Beyond angles of pi - margin, where that would grow again, it is cos(angle) - margin * sin(margin) (Deng et al.
    2019, and the code of SN).
    """
    right_N1 = cosines_NK.gather(1, labels_N[:, None])
    sine_N1 = (1 - right_N1.square()).clamp(min=_LEAST).sqrt()
    moved_N1 = right_N1 * math.cos(margin) - sine_N1 * math.sin(margin)
    further_N1 = right_N1 - margin * math.sin(margin)
    replaced_N1 = torch.where(right_N1 > -math.cos(margin), moved_N1, further_N1)
    return scale * cosines_NK.scatter(1, labels_N[:, None], replaced_N1)
