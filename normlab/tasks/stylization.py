"""Artistic stylization: a network that gives any image the style of one, learned from perceptual losses."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from normlab.data.decode import DecodeError, decode
from normlab.data.photographs import painting
from normlab.errors import UserError
from normlab.models.stylizers import STEP
from normlab.schema import bind
from normlab.tasks.perceptual import KINDS, LEAST_SIDE, LossNetwork, gram, perceptual_losses
from normlab.tasks.task import Declaration, Evaluation, Metric, Outcome, Task, Traced, by_replica

_log = logging.getLogger(__name__)
_PIXELS_AT_ONCE = 2**20  # of an evaluation's pass
LOSSES = ("content", "style", "tv")


class Images(NamedTuple):
    """Images (rows, 3, H, W), in bytes or as numbers from 0 to 255."""

    images: Tensor


class Stylized(NamedTuple):
    """Images (rows, 3, H, W), as bytes, and the losses (rows,) of each."""

    images: Tensor
    losses: Mapping[str, Tensor]


class Stylization(Task):
    """Content, style and total-variation losses by the features of a loss network, each with its weight.

    The loss network is a helper: it has the weights of a file, or those of the classifier that `init` names. What
    `init` names may be another run of stylization, too: then the network that is trained begins from it.

    Args:
        model, data: settings of the network and of the dataset.
        seed: of the augmentation.
        style: an image file; null: a painting that normlab draws. What is in it makes the run, not where it lies.
        style_size: pixels of the longer side of the style image; null: as it is.
        network: whose features are compared: scenes_vgg, of a classifier of coloured scenes; vgg16, with torchvision's
            weights; vgg16_caffe, with Caffe's, in BGR. Each comes with the losses of its code (tasks/perceptual.py).
        loss_weights: file of the loss network's weights with torchvision's names, as vgg16-397923af.pth; a hash in its
            name is checked. null: those of `init`.
        content_weight, style_weight, tv_weight: of a loss; null: as goes with the loss network.
    """

    metrics: ClassVar = {
        "total": {"words": "perceptual loss", "unit": "", "better": "lower", "decimals": 3},
        "content": {"words": "content loss", "unit": "", "better": "lower", "decimals": 3, "curve": True},
        "style": {"words": "style loss", "unit": "", "better": "lower", "decimals": 3, "curve": True},
        "tv": {"words": "total-variation loss", "unit": "", "better": "lower", "decimals": 3, "curve": True},
    }
    takes: ClassVar = {"model": ["stylizer"], "data": ["pictures"]}

    def __init__(
        self,
        model: Mapping[str, Any],
        data: Mapping[str, Any],
        seed: int,
        *,
        style: Path | None = None,
        style_size: Annotated[int, Ge(16), Le(2**13)] | None = 256,
        network: Literal["scenes_vgg", "vgg16", "vgg16_caffe"] = "scenes_vgg",
        loss_weights: Path | None = None,
        content_weight: Annotated[float, Ge(0)] | None = None,
        style_weight: Annotated[float, Ge(0)] | None = None,
        tv_weight: Annotated[float, Ge(0)] | None = None,
    ) -> None:
        super().__init__(model, data, seed)
        self.terms = KINDS[network].terms.changed(content_weight, style_weight, tv_weight)
        self.style_13HW = _style(style, style_size)
        self.network = LossNetwork(network, list(dict.fromkeys([self.terms.content, *self.terms.style])))
        self.called = network
        self.has_weights = loss_weights is not None
        if loss_weights is not None:
            self.network.load(loss_weights)
        self._grams: dict[str, Tensor] = {}

    # ---- networks and data ---------------------------------------------------------------------------------------

    @property
    def example(self) -> tuple[int, ...]:
        return self.of_data("shape", "(3, H, W)")

    def build(self, declared: Mapping[str, Declaration]) -> nn.Module:
        for split in self.splits:
            side = self.dataset(split).shape[-1]  # type: ignore[attr-defined]
            if side % STEP or side < LEAST_SIDE:
                raise UserError(
                    f"data: images for {self.splits[split]} have {side} pixels a side; expected a multiple of {STEP}, "
                    f"and {LEAST_SIDE} or more"
                )
        return bind(self.model)(self.example, 3)

    def weighted(self, name: str) -> bool:
        return name != "output"

    def initial(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        """The loss network takes its tensors, if they are all there; the rest is for the model."""
        if self.has_weights or not self.network.take(state):
            return state
        self.has_weights = True
        taken = self.network.state_dict().keys()
        return {name: tensor for name, tensor in state.items() if name not in taken}

    def helpers(self) -> Sequence[nn.Module]:
        """Raises UserError where VGG-16 has no weights; a small loss network may keep its random ones."""
        if not self.has_weights and self.called != "scenes_vgg":
            raise UserError(f"task.network={self.called}: it has no weights; task.loss_weights=FILE names them")
        if not self.has_weights:
            _log.warning(
                "task.network=%s has random weights; init=RUN takes those of a classifier (model=%s)",
                *(self.called, self.called),
            )
            self.has_weights = True  # such as they are
        return (self.network,)

    def collate(self, samples: Sequence[tuple[Tensor, None]], split: str) -> Images:
        return Images(torch.stack([image for image, _ in samples]))

    def prepare(self, batch: Images, split: str) -> Images:
        return Images(batch.images.float())

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, batch: Images, replicas: int) -> Outcome:
        found = self._losses(model(batch.images), batch.images)
        return Outcome({name: by_replica(loss_N, replicas) for name, loss_N in found.items()}, {})

    def _losses(self, output_N3HW: Tensor, content_N3HW: Tensor) -> dict[str, Tensor]:
        return perceptual_losses(self.network, self.terms, output_N3HW, content_N3HW, self._style_grams())

    @torch.no_grad()
    def _style_grams(self) -> dict[str, Tensor]:
        """Of the style image, made once the loss network is where it is to stay."""
        if not self._grams:
            with torch.autocast(self.network.mean_311.device.type, enabled=False):
                found = self.network(self.style_13HW.to(self.network.mean_311))
                self._grams = {layer: gram(found[layer]) for layer in self.terms.style}
        return self._grams

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluation(self, split: str) -> Evaluation:
        side = self.dataset(split).shape[-1]  # type: ignore[attr-defined]
        return Evaluation(at_once=max(1, min(64, _PIXELS_AT_ONCE // side**2)))

    def predict(self, model: nn.Module, batch: Images) -> Stylized:
        output_N3HW = model(batch.images)
        found = self._losses(output_N3HW, batch.images)
        total_N = torch.stack([found[name] for name in LOSSES]).sum(0)
        return Stylized(_as_bytes(output_N3HW), {"total": total_N} | found)

    def update(self, metric: Metric, predictions: Stylized, batch: Images, indices: Sequence[int]) -> None:
        super().update(metric, predictions.losses, batch, indices)

    def pictures(self, batch: Images, predictions: Stylized) -> Sequence[Mapping[str, Tensor]]:
        style_3HW = _as_bytes(self.style_13HW)[0]
        contents = _as_bytes(batch.images)
        return [
            {"image": content, "style": style_3HW, "stylized": stylized}
            for content, stylized in zip(contents, predictions.images, strict=True)
        ]

    def write(self, predicted: Iterable[tuple[Any, Sequence[int]]], split: str, folder: Path) -> int:
        """A PNG of each image, by the name of its file where it has one."""
        from PIL import Image

        dataset: Any = self.dataset(split)
        number = 0
        for stylized, indices in predicted:
            for image_3HW, index in zip(stylized.images.cpu().numpy(), indices, strict=True):
                name = dataset.name(index) if hasattr(dataset, "name") else f"{index:05}"
                Image.fromarray(image_3HW.transpose(1, 2, 0)).save(folder / f"{name}.png")
            number += len(indices)
        return number

    def exported(self, batch: Images) -> Traced:
        return Traced((batch.images,))


def _as_bytes(pixels_N3HW: Tensor) -> Tensor:
    return pixels_N3HW.clamp(0, 255).round().to(torch.uint8)


def _style(path: Path | None, longer: int | None) -> Tensor:
    """The style image (1, 3, H, W), from 0 to 255. Raises UserError on a file that is none, or on one too small."""
    if path is None:
        image_HW3 = painting(longer or 256)
    else:
        try:
            image = decode(path)
        except DecodeError as error:
            raise UserError(f"task.style={path}: {error}") from None
        if longer is not None:
            factor = longer / max(image.size)
            width, height = (max(1, round(side * factor)) for side in image.size)
            image = image.resize((width, height))
        if min(image.size) < LEAST_SIDE:
            width, height = image.size
            raise UserError(
                f"task.style={path}: it has {width} x {height} pixels as it is used; expected {LEAST_SIDE} or more on "
                "each side"
            )
        image_HW3 = np.array(image)
    return torch.from_numpy(image_HW3).permute(2, 0, 1)[None].float()
