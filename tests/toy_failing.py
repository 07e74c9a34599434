"""A classification whose training ends in one of the ways a job can, and one that draws from the global generator."""

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from normlab.tasks.classification import Classification, Images
from normlab.tasks.task import Outcome


class Failing(Classification):
    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        how: Literal["no", "kill", "exit", "raise", "memory"] = "no",
        at: int = 3,
    ) -> None:
        super().__init__(model, data, seed)
        self.how, self.at, self.passes = how, at, 0

    def losses(self, model: nn.Module, batch: Images, replicas: int) -> Outcome:
        self.passes += 1
        if self.passes == self.at:
            match self.how:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exit":
                    sys.exit(7)
                case "raise":
                    raise RuntimeError("the third pass\nfails")
                case "memory":
                    raise MemoryError("no room")
        return super().losses(model, batch, replicas)


class Noisy(Classification):
    """Its model is noisy in training, as with stochastic depth."""

    def __init__(self, model: Mapping[str, Any], data: Mapping[str, Any], seed: int, *, dropout: float = 0.0) -> None:
        super().__init__(model, data, seed, dropout=dropout)

    def losses(self, model: nn.Module, batch: Images, replicas: int) -> Outcome:
        images, labels = batch
        return super().losses(model, (images + 0.1 * torch.randn(images.shape), labels), replicas)
