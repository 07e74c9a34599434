"""How well features tell who is who: verification at a false-accept rate, and rank 1 among distractors.

Scores are cosines. A pair of pictures of one identity is to be accepted; a pair of a probe and a distractor is not.
MegaFace has 3.5 thousand million of the latter, of which a few thousand are looked at: the largest, by chunks.

Shapes: P probes, D distractors, E features.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from normlab.errors import UserError
from normlab.norm.pooling import num_ranks

_SCORES = 2**24  # that a chunk has


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
        """Of all ranks, in the order of the indices: features (N, E) and labels (N,)."""
        own = (self._indices, self._features, self._labels)
        everyone: list[tuple[list[int], list[Tensor], list[Tensor]]] = [own]
        if num_ranks() > 1:
            everyone = [own] * num_ranks()
            dist.all_gather_object(everyone, own)
        order = torch.tensor([index for indices, _, _ in everyone for index in indices]).argsort()
        features = torch.cat([t for _, parts, _ in everyone for t in parts])
        labels = torch.cat([t for _, _, parts in everyone for t in parts])
        return features[order], labels[order]


def rates(features_NE: Tensor, labels_N: Tensor, far: float) -> Rates:
    """Of features of unit length; a label below 0 is that of a distractor.

    Args:
        far: false-accept rate, in (0, 1]: no more than this share of the pairs of probe and distractor is accepted.

    Raises:
        UserError: there is no distractor, or no two pictures of one identity.
    """
    is_probe_N = labels_N >= 0
    probes_PE, known_P, others_DE = features_NE[is_probe_N], labels_N[is_probe_N], features_NE[~is_probe_N]
    if not len(others_DE):
        raise UserError("the split has no distractors, and nothing to accept by mistake")
    allowed = _allowed(far, len(probes_PE) * len(others_DE))
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
        raise UserError("the split has no two pictures of one identity, and nothing to verify")
    return Rates(100 * accepted / pairs, 100 * first / pairs)


def _impostors(probes_PE: Tensor, others_DE: Tensor, allowed: int) -> tuple[float, Tensor]:
    """The score above which `allowed` pairs or fewer lie, and the largest (P,) of each probe."""
    largest = torch.empty(0)
    nearest_P = torch.full((len(probes_PE),), -math.inf)
    for chunk_CE in others_DE.split(max(1, _SCORES // len(probes_PE))):
        scores_PC = probes_PE @ chunk_CE.T
        nearest_P = torch.maximum(nearest_P, scores_PC.amax(1))
        largest = torch.cat([largest, scores_PC.flatten()])
        if len(largest) > allowed + 1:
            largest = largest.topk(allowed + 1).values
    return (largest.min().item() if len(largest) > allowed else -math.inf), nearest_P


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
    other folds (LFW's protocol; pairs are divided in order)."""
    parts = torch.arange(len(scores_N)).tensor_split(folds)
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
