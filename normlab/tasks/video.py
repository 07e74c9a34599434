"""Video classification: what is done in a clip."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from normlab.dynamics.receptive_field import NormSite, trace
from normlab.models.video import FrameByFrame, ShiftedConv2d, inflated
from normlab.norm.layer import Normalizer
from normlab.tasks.classification import Classification, Images
from normlab.tasks.task import Evaluation, Traced

_AT_ONCE = 64  # clips that pass through the network together in an evaluation


class Video(Classification):
    """Cross entropy; top-1 and top-5 accuracy in percent of the mean of the softmax over the clips of a video.

    Arguments as of Classification. The data say which clips of a video a test looks at (data.clips).
    """

    metrics: ClassVar = {
        "top1": {"words": "top-1 accuracy"},
        "top5": {"words": "top-5 accuracy"},
        "error1": {"words": "top-1 error", "better": "lower", "complement": "top1"},
        "error5": {"words": "top-5 error", "better": "lower", "complement": "top5"},
        "loss": {"words": "cross entropy", "unit": "nats", "better": "lower", "decimals": 4, "partial": True},
    }
    takes: ClassVar = {"model": ["video"], "data": ["clips"]}

    @property
    def example(self) -> tuple[int, ...]:
        return self.of_data("shape", "(C, T, H, W) of a clip")

    @property
    def parts(self) -> Mapping[str, str]:
        """The backbone of a network that sees frame by frame is inside of it."""
        return {"backbone": self._inside, "head": self._classifier}

    _inside = ""

    def build(self, declared: Mapping[str, object]) -> nn.Module:  # type: ignore[override]
        model = super().build(declared)  # type: ignore[arg-type]
        self._inside = "network" if isinstance(model, FrameByFrame) else ""
        return model

    def sites(self, model: nn.Module) -> list[NormSite]:
        """Of a network that sees frame by frame those of one frame; what comes from others has the same place."""
        if not isinstance(model, FrameByFrame):
            return super().sites(model)
        inside, example = copy.deepcopy(model.network), self.example
        for module in inside.modules():
            if isinstance(module, ShiftedConv2d):
                module.moved = 0
        found = trace(inside, (example[0], *example[2:]), lambda module: isinstance(module, Normalizer))
        return [replace(site, name=f"network.{site.name}") for site in found]

    def initial(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        """Of a network for images: inside of one that sees frame by frame, or its filters inflated."""
        own, found = model.state_dict(), {}
        for name, tensor in state.items():
            there = name if name in own else f"{self._inside}.{name}"
            shape: tuple[int, ...] = tuple(own[there].shape) if there in own else ()
            if len(shape) == 5 and tensor.shape == shape[:2] + shape[3:]:
                tensor = inflated(tensor, shape[2])
            found[there if tensor.shape == shape else name] = tensor
        return found

    def exported(self, batch: Images) -> Traced:
        clips_NKCTHW, _ = batch
        return Traced((clips_NKCTHW.flatten(0, 1),))

    def prepare(self, batch: Images, split: str) -> Images:
        """Frames, numbered last but three, go behind the channels, as networks take them."""
        clips, labels = super().prepare(batch, split)
        return clips.transpose(-3, -4), labels

    def evaluation(self, split: str) -> Evaluation:
        return Evaluation(at_once=max(1, _AT_ONCE // self.of_data("tested_clips", "a whole number")))

    def predict(self, model: nn.Module, batch: Images) -> Tensor:
        """Probabilities (N, num_classes) of clips (N, K, C, T, H, W): the mean of each video's K."""
        clips_NKCTHW = batch[0]
        logits = model(clips_NKCTHW.flatten(0, 1)).float()
        return logits.softmax(1).unflatten(0, clips_NKCTHW.shape[:2]).mean(1)

    def loss_of(self, predictions: Tensor, labels_N: Tensor) -> Tensor:
        """Of the mean of the clips' softmax, which is what a test predicts."""
        return super().loss_of(predictions.clamp_min(torch.finfo(predictions.dtype).tiny).log(), labels_N)
