"""Architecture search: a controller learns which cells a network should have (ENAS, Pham et al. 2018).

Two phases take turns in each epoch. The child's weights are trained under architectures that the controller draws; the
controller's are trained by REINFORCE, the reward being the child's accuracy on a minibatch that it was not trained on.
SN, Sec. 4.4, and SN-TPAMI, Sec. 4.7, put norms into the controller's LSTM.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from normlab.data.part import Minibatches, Part, parted
from normlab.errors import UserError
from normlab.models.controller import CELLS, OPERATIONS, number_of_choices, uniform_architectures
from normlab.models.enas import SearchNetwork
from normlab.norm.lstm import NormLSTMCell
from normlab.replicas import own_statistics
from normlab.schema import bind, check_call
from normlab.seeding import mix_seed
from normlab.tasks.task import Batch, Declaration, Evaluation, Metric, Outcome, Phase, Task, Traced, by_replica
from normlab.writing import write_text


class Found(NamedTuple):
    """An architecture (2, B, 4) and how many of a pass's samples it gets right."""

    architecture: list[list[list[int]]]
    correct: int
    samples: int


class Predicted(NamedTuple):
    """Of each sample the share of architectures that get it right, in percent; of each drawn one what it gets right."""

    drawn_N: Tensor
    random_N: Tensor
    entropy_A: Tensor
    found: list[Found]


class Search(Task):
    """Cross entropy of the child; REINFORCE with a moving baseline for the controller.

    Everything but training sees images under the statistics of their own batch, as in ENAS's code: those that norm
    layers store are of all architectures together, and fit none.

    Args:
        model, data: settings of the network and of the dataset, whose training split is parted in two.
        seed: of the augmentation, and of what is drawn in an evaluation: at each the same numbers.
        held_out: share of the training split for rewards; the accuracy on it is the search's validation accuracy.
        architectures: drawn for an update of the controller, each with a minibatch of its own.
        evaluated: architectures drawn for each batch of an evaluation.
        at_once: samples in such a batch.
        auxiliary: what the loss of the child's second head counts, if it has one.
        entropy: what a nat of entropy counts in the reward.
        baseline_decay: what the baseline keeps of itself with each architecture.
    """

    metrics: ClassVar = {
        "accuracy": {"words": "accuracy of drawn architectures"},
        "random_accuracy": {"words": "accuracy of random architectures", "curve": True},
        "entropy": {"words": "entropy of drawn architectures", "unit": "nats", "curve": True},
    }
    takes: ClassVar = {"model": ["search"], "data": ["images"]}
    parts: ClassVar = {"child": "child", "controller": "controller"}
    splits: Mapping[str, str] = {
        "train": "training",
        "reward": "minibatches for rewards",
        "valid": "validation",
        "test": "test",
    }
    tested = ("valid", "test")

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        held_out: Annotated[float, Gt(0), Lt(1)] = 0.1,
        architectures: Annotated[int, Ge(1)] = 10,
        evaluated: Annotated[int, Ge(1)] = 1,
        at_once: Annotated[int, Ge(1)] = 100,
        auxiliary: Annotated[float, Ge(0)] = 0.4,
        entropy: Annotated[float, Ge(0)] = 1e-4,
        baseline_decay: Annotated[float, Ge(0), Lt(1)] = 0.99,
    ) -> None:
        super().__init__(model, data, seed)
        self.held_out, self.architectures, self.evaluated, self.at_once = held_out, architectures, evaluated, at_once
        self.auxiliary, self.entropy, self.baseline_decay = auxiliary, entropy, baseline_decay
        self._own: dict[str, Dataset] = {}
        self._nodes = 0
        self._followed: set[str] = set()

    # ---- network and data ----------------------------------------------------------------------------------------

    @property
    def phases(self) -> Sequence[Phase]:
        """The child's passes leave out what an architecture does not have."""
        child = Phase("child", self.losses, parts=("child",), skips=True)
        return child, Phase("controller", self.policy, parts=("controller",), split="reward", updates=30)

    def build(self, declared: Mapping[str, Declaration]) -> nn.Module:
        check_call(self.model["_target_"], ("shape", "num_classes", "norm"), "model")
        norm = declared["controller"].norm
        try:
            NormLSTMCell(64, 64, norm=norm)
        except UserError as error:
            raise UserError(f"parts.controller: {error}, as parts.controller=sn_ln_gn has them") from None
        shape, num_classes = self.of_data("shape", "(C, H, W)"), self.of_data("num_classes", "a whole number")
        model = bind(self.model)(shape, num_classes, norm)
        if not isinstance(model, SearchNetwork):
            raise UserError(f"model._target_={self.model['_target_']}: expected a {SearchNetwork.__name__}")
        model.rewards.steady_momentum = 1 - self.baseline_decay**self.architectures
        self._nodes = model.controller.nodes
        convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        self._followed = {name for name, convolution in convolutions if convolution.groups == 1}
        return model

    def weighted(self, name: str) -> bool:
        """The convolutions that a norm follows: not those of each channel by itself."""
        return name in self._followed

    def frozen(self, name: str) -> bool:
        """The second head stays as it begins, and passes gradients on: ENAS's code trains all but its variables."""
        return name.startswith("child.auxiliary.")

    def dataset(self, split: str) -> Dataset:
        if split not in self._own:
            self._own[split] = self._part(split)
        return self._own[split]

    def _part(self, split: str) -> Dataset:
        if split == "test":
            whole = super().dataset("val")
            return Part(whole, np.arange(len(whole)), numbered=True)  # type: ignore[arg-type]
        whole = super().dataset("train")
        trained, rewarded = parted(whole, self.held_out)
        if split == "train":
            return Part(whole, trained)
        if split == "valid":
            return Part(whole, rewarded, augmented=False, numbered=True)
        return Minibatches(Part(whole, rewarded, augmented=False), self.architectures, self.seed)

    def stack(self, batches: Sequence[Batch]) -> Batch | None:
        """Each replica has architectures of its own."""
        return None

    def prepare(self, batch: Batch, split: str) -> Batch:
        images, *others = batch
        return self.normalized(images, split), *others

    def evaluation(self, split: str) -> Evaluation:
        return Evaluation(at_once=self.at_once)

    # ---- the two phases ------------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, batch: Batch, replicas: int) -> Outcome:
        """Of the child, under an architecture drawn by the seed of iteration and replica."""
        images_NCHW, labels_N = batch
        logits_NK, auxiliary_NK = model(images_NCHW, self._uniform(1, images_NCHW.device))
        losses = {"loss": by_replica(cross_entropy(logits_NK, labels_N, reduction="none"), replicas)}
        if auxiliary_NK is not None and self.auxiliary:
            second = by_replica(cross_entropy(auxiliary_NK, labels_N, reduction="none"), replicas)
            losses = {"main": losses["loss"], "auxiliary": self.auxiliary * second}
        return Outcome(losses, {"accuracy": by_replica(_correct(logits_NK, labels_N), replicas)})

    def policy(self, model: nn.Module, batch: Batch, replicas: int) -> Outcome:
        """REINFORCE: the mean over A architectures of -(reward - baseline) log p, where a reward is the accuracy.

        The baseline is that of all updates before, and no function of what is drawn: gradients have no bias.
        """
        images_NACHW, labels_NA = batch
        network = _network(model)
        drawn = model(None, self._uniform(self.architectures, images_NACHW.device))
        with torch.no_grad(), own_statistics(network.child):
            accuracies = [
                _correct(network.child(images_NACHW[:, a], architecture)[0], labels_NA[:, a]).mean()
                for a, architecture in enumerate(drawn.architectures.tolist())
            ]
        reward_A = torch.stack(accuracies) / 100 + self.entropy * drawn.entropy
        baseline = network.rewards.average.clone()
        network.rewards.note(reward_A.mean()[None])
        loss = reinforce(drawn.log_probability, reward_A, baseline)
        measures = {"reward": reward_A.mean(), "baseline": baseline[0], "entropy": drawn.entropy.mean()}
        return Outcome({"loss": loss[None]}, {name: value.detach()[None] for name, value in measures.items()})

    def _uniform(self, architectures: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Numbers (A, D) in [0, 1), made on the CPU: the same for all devices."""
        numbers = number_of_choices(self._nodes)
        return torch.rand(architectures, numbers, dtype=torch.float64, generator=generator).to(device)

    # ---- the test ------------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, batch: Batch) -> Predicted:
        """Under architectures that the controller draws, and under as many that nobody chose."""
        images_NCHW, labels_N, numbers_N = batch
        network = _network(model)
        generator = torch.Generator().manual_seed(mix_seed(self.seed, int(numbers_N[0])))
        uniform_AD = self._uniform(self.evaluated, images_NCHW.device, generator)
        drawn = network.controller(uniform_AD)
        chosen = drawn.architectures.tolist()
        others = uniform_architectures(uniform_AD.cpu(), self._nodes).tolist()
        with own_statistics(network.child):
            drawn_AN, random_AN = (
                torch.stack([_correct(network.child(images_NCHW, one)[0], labels_N) for one in architectures])
                for architectures in (chosen, others)
            )
        right = [round(correct_N.sum().item() / 100) for correct_N in drawn_AN]
        found = [Found(one, number, len(labels_N)) for one, number in zip(chosen, right, strict=True)]
        return Predicted(drawn_AN.mean(0), random_AN.mean(0), drawn.entropy, found)

    def update(self, metric: Metric, predictions: Predicted, batch: Batch, indices: Sequence[int]) -> None:
        metric["accuracy"].update(predictions.drawn_N)
        metric["random_accuracy"].update(predictions.random_N)
        metric["entropy"].update(predictions.entropy_A)

    def write(self, predicted: Iterable[tuple[Predicted, Sequence[int]]], split: str, folder: Path) -> int:
        """architectures.jsonl: those that were drawn, the best first, with their accuracy on the samples of a pass."""
        rows = [_row(one) for predictions, _ in predicted for one in predictions.found]
        rows.sort(key=lambda row: -row["accuracy"])
        write_text(folder / "architectures.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        return 1

    def exported(self, batch: Batch) -> Traced:
        raise UserError(
            "export cannot give a search, which is a network for each architecture; `normlab predict` writes those"
        )


def _network(model: nn.Module) -> SearchNetwork:
    """Inside DDP's wrapper, where there is one."""
    return cast(SearchNetwork, getattr(model, "module", model))


def reinforce(log_probability_A: Tensor, reward_A: Tensor, baseline: Tensor | float) -> Tensor:
    """A loss whose gradient estimates that of minus the expected reward (Williams 1992)."""
    return -(log_probability_A * (reward_A - baseline).detach()).mean()


def _correct(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """(N,): 100 where the highest logit is the right one, else 0."""
    return (logits_NK.argmax(1) == labels_N).to(logits_NK.dtype) * 100


def _row(found: Found) -> dict[str, Any]:
    """With the names of operations; inputs 0 and 1 are those of the cell, 2 is its first node."""
    cells = {
        name: [[a, OPERATIONS[on_a], b, OPERATIONS[on_b]] for a, on_a, b, on_b in cell]
        for name, cell in zip(CELLS, found.architecture, strict=True)
    }
    return {"accuracy": round(100 * found.correct / found.samples, 2), "samples": found.samples, **cells}
