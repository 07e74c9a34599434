"""The last layer of a classifier: dropout goes before it, and it is the part called head."""

from typing import Any

from torch import nn

from normlab.errors import UserError

Scoring = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d  # a few networks classify by a 1x1 convolution


def find_classifier(model: nn.Module) -> str:
    """Name in `model` of the layer that gives the logits.

    timm's models say where it is; elsewhere it is the last linear or convolutional layer. Raises UserError where
    there is none, or several (distilled transformers).
    """
    head = getattr(model, "get_classifier", lambda: model)()
    scoring = [m for m in head.modules() if isinstance(m, Scoring)] if isinstance(head, nn.Module) else []
    if not scoring:
        raise UserError(f"model '{type(model).__name__}' has no single final linear layer; choose another model")
    return next(name for name, module in model.named_modules() if module is scoring[-1])


def start_residuals_at_zero(model: nn.Module) -> None:
    """Gamma 0 for the last norm of each residual block, so that a block begins as its shortcut (Goyal et al. 2017).

    SN trains without it (Sec. 4.1, footnote 2). Raises UserError if there are no blocks as torchvision and timm have
    them.
    """
    blocks: list[Any] = [m for m in model.modules() if hasattr(m, "downsample") and hasattr(m, "bn2")]
    if not blocks:
        raise UserError(
            f"task.zero_init_residual=true: model '{type(model).__name__}' has no residual blocks with norms bn1, bn2"
        )
    for block in blocks:
        last = getattr(block, "bn3", block.bn2)
        nn.init.zeros_(last.get_parameter("weight"))


def norm_of_features(classifier: nn.Module) -> nn.Module:
    """A norm for what a final layer takes, to be converted as every other."""
    if isinstance(classifier, nn.Linear):
        return nn.BatchNorm1d(classifier.in_features)
    return nn.BatchNorm2d(classifier.in_channels)  # type: ignore[arg-type]
