"""How well features tell who is who: verification at a false-accept rate, and rank 1 among distractors.

Scores are cosines. A pair of pictures of one identity is to be accepted; a pair of a probe and a distractor is not.
MegaFace has 3.5 thousand million of the latter, of which a few thousand are looked at: the largest, by chunks.

Shapes: P probes, D distractors, E features.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from normlab.errors import UserError
from normlab.norm.pooling import num_ranks

_SCORES = 2**24  # that a chunk has
_T = TypeVar("_T")


class Rates(NamedTuple):
    """In percent.

    Attributes:
        tar: true-accept rate: of the pairs of one identity, those above the threshold that lets in no more than the
            false-accept rate of the others. It is the point of the ROC curve at that rate, not interpolated.
        rank1: of the pairs (probe, other picture of its identity), those whose score is above that of the probe with
            every distractor.
    """

    tar: float
    rank1: float


class Features:
    """Collects features and labels by the index of their picture, so that the result knows no ranks and no order."""

    def __init__(self, in_pairs: bool = False) -> None:
        """`in_pairs`: pictures 2n and 2n + 1 are compared, and labels say whether they are one identity."""
        self.in_pairs = in_pairs
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._indices: list[int] = []

    def to(self, device: torch.device) -> "Features":
        """They stay on the CPU: a million of them take two gigabytes."""
        return self

    def update(self, features_NE: Tensor, labels_N: Tensor, indices: Sequence[int]) -> None:
        self._features.append(features_NE.float().cpu())
        self._labels.append(labels_N.cpu())
        self._indices += indices

    def compute(self) -> tuple[Tensor, Tensor]:
        """Features (N, E) and labels (N,): what has a label of 0 or more of all ranks, by the indices; behind it this
        rank's own distractors, of which `rates` hears of all ranks what it needs. Of pairs both pictures, or none."""
        width = max(_everyone(self._features[0].shape[1] if self._features else 0))
        features = torch.cat([torch.empty(0, width), *self._features])  # a rank may have had no batch
        labels, indices = torch.cat([torch.empty(0).long(), *self._labels]), torch.tensor(self._indices).long()
        known = labels >= 0
        parts = _everyone((indices[known], features[known], labels[known]))
        order, *gathered = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        known_features, known_labels = (tensor[order.argsort()] for tensor in gathered)
        if self.in_pairs:
            pair_N = order.sort().values // 2
            whole_N = pair_N.bincount()[pair_N] == 2  # the other picture of one that is left out is of no use
            return known_features[whole_N], known_labels[whole_N]
        return torch.cat([known_features, features[~known]]), torch.cat([known_labels, labels[~known]])


def rates(features_NE: Tensor, labels_N: Tensor, far: float) -> Rates:
    """Of features of unit length; a label below 0 is that of a distractor, which may be of this rank alone.

    Args:
        far: false-accept rate, in (0, 1]: no more than this share of the pairs of probe and distractor is accepted.

    Raises:
        UserError: there is no distractor, or no two pictures of one identity.
    """
    is_probe_N = labels_N >= 0
    probes_PE, known_P, others_DE = features_NE[is_probe_N], labels_N[is_probe_N], features_NE[~is_probe_N]
    distractors = sum(_everyone(len(others_DE)))
    if not distractors:
        raise UserError(f"of the {len(probes_PE)} pictures evaluated none is a distractor, to be accepted by mistake")
    allowed = _allowed(far, len(probes_PE) * distractors)
    threshold, nearest_P = _impostors(probes_PE, others_DE, allowed)
    accepted = first = pairs = 0
    for chunk in torch.arange(len(probes_PE)).split(max(1, _SCORES // max(1, len(probes_PE)))):
        same_CP = known_P[chunk, None] == known_P[None]
        same_CP[torch.arange(len(chunk)), chunk] = False
        scores_CP = probes_PE[chunk] @ probes_PE.T
        accepted += int((same_CP & (scores_CP > threshold)).sum())  # each pair from both sides
        first += int((same_CP & (scores_CP > nearest_P[chunk, None])).sum())
        pairs += int(same_CP.sum())
    if not pairs:
        raise UserError(
            f"of the {len(probes_PE) + distractors} pictures evaluated no two are of one identity, to be verified"
        )
    return Rates(100 * accepted / pairs, 100 * first / pairs)


def _impostors(probes_PE: Tensor, others_DE: Tensor, allowed: int) -> tuple[float, Tensor]:
    """The score above which `allowed` pairs or fewer lie, and the largest (P,) of each probe, over all ranks."""
    largest = probes_PE.new_empty(0)
    nearest_P = probes_PE.new_full((len(probes_PE),), -math.inf)
    for chunk_CE in others_DE.split(max(1, _SCORES // max(1, len(probes_PE)))):
        scores_PC = probes_PE @ chunk_CE.T
        if len(chunk_CE):
            nearest_P = torch.maximum(nearest_P, scores_PC.amax(1))
        largest = _largest(torch.cat([largest, scores_PC.flatten()]), allowed + 1)
    largest = _largest(torch.cat(_everyone(largest)), allowed + 1)
    nearest_P = torch.stack(_everyone(nearest_P)).amax(0)
    return (largest.min().item() if len(largest) > allowed else -math.inf), nearest_P


def _largest(scores_N: Tensor, count: int) -> Tensor:
    return scores_N.topk(count).values if len(scores_N) > count else scores_N


def _everyone(own: _T) -> list[_T]:
    """What each rank has."""
    every = [own] * num_ranks()
    if num_ranks() > 1:
        dist.all_gather_object(every, own)
    return every


def accepted(scores_N: Tensor, same_N: Tensor, far: float) -> float:
    """The true-accept rate of single pairs, in percent, as in Rates. Raises UserError where all are of one kind."""
    others = scores_N[~same_N].sort(descending=True).values
    if not len(others) or not same_N.any():
        raise UserError("the pairs are all of one identity, or all of two")
    allowed = _allowed(far, len(others))
    threshold = others[allowed].item() if allowed < len(others) else -math.inf
    return 100 * (scores_N[same_N] > threshold).double().mean().item()


def _allowed(far: float, pairs: int) -> int:
    """Of so many pairs of two identities, those that may be accepted."""
    return math.floor(far * pairs * (1 + 1e-12))  # so that 1e-3 of 1000 is 1


def pair_accuracy(scores_N: Tensor, same_N: Tensor, folds: int = 10) -> float:
    """Of pairs that are one identity or not, in percent: the mean over folds, each by the threshold that is best on the
    other folds (LFW's protocol; pairs are divided in order). Of fewer pairs than folds, each is one; two are needed."""
    parts = torch.arange(len(scores_N)).tensor_split(min(folds, len(scores_N)))
    found = []
    for part in parts:
        rest = torch.ones(len(scores_N), dtype=torch.bool)
        rest[part] = False
        threshold = _best_threshold(scores_N[rest], same_N[rest])
        found.append(((scores_N[part] > threshold) == same_N[part]).double().mean())
    return 100 * torch.stack(found).mean().item()


def _best_threshold(scores_N: Tensor, same_N: Tensor) -> float:
    """The score above which pairs are accepted with the fewest mistakes; the lowest of several."""
    scores_N, order = scores_N.sort()
    right = same_N[order].logical_not().cumsum(0) + same_N.sum() - same_N[order].cumsum(0)  # with these refused
    right[:-1][scores_N[1:] == scores_N[:-1]] = -1  # no threshold lies between equal scores
    best = int(right.argmax())
    all_accepted = int(same_N.sum())
    return scores_N[best].item() if right[best] > all_accepted else -math.inf
