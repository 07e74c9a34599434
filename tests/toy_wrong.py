"""Tasks that do not go together with themselves, each refused in a line before any work."""

from typing import Any, ClassVar

import toy_vectors
from torch import Tensor, nn
from toy_data import Samples
from toy_dense import Dense

from normlab.tasks.task import Evaluation, Outcome, Phase, Task


class NoMetrics(Task):
    def build(self, declared: Any) -> nn.Module:
        return nn.Linear(1, 1)

    dataset = losses = predict = None


class BadField(toy_vectors.Vectors):
    metrics: ClassVar = {"accuracy": {"word": "accuracy"}}


class UnknownSplit(toy_vectors.Vectors):
    tested = ("tset",)


class SamePhases(toy_vectors.Vectors):
    @property
    def phases(self) -> Any:
        return (Phase("one", self.losses), Phase("one", self.losses))


class UnknownPart(toy_vectors.Vectors):
    @property
    def phases(self) -> Any:
        return (Phase("one", self.losses, parts=("heda",)),)


class Overlapping(toy_vectors.Vectors):
    @property
    def phases(self) -> Any:
        return (Phase("one", self.losses), Phase("two", self.losses, parts=("last",), skips=True))


class Empty(toy_vectors.Vectors):
    def dataset(self, split: str) -> Samples:
        return Samples(48 if split == "train" else 0, toy_vectors.clouds)


class Lacking(toy_vectors.Vectors):
    def predict(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {}

    def results(self, metric: Any) -> dict[str, float]:
        return {}


class Undeclared(toy_vectors.Vectors):
    def results(self, metric: Any) -> dict[str, float]:
        return super().results(metric) | {"acuracy": 1.0}


class Changing(toy_vectors.Vectors):
    calls = 0

    def losses(self, model: nn.Module, batch: Any, replicas: int) -> Outcome:
        self.calls += 1
        losses = super().losses(model, batch, replicas).losses
        return Outcome(losses, {"odd": losses["loss"].detach()} if self.calls % 2 else {})


class Together(Dense):
    """Its metric is of all that passes through the network together; its test split is called otherwise."""

    splits: ClassVar = {"train": "training", "dev": "development"}
    tested = ("dev",)

    def evaluation(self, split: str) -> Evaluation:
        return Evaluation(at_once=4)

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0] - batch[0].amax(0, keepdim=True))
