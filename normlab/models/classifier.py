"""The last layer of a classifier: dropout goes before it, and it is the part called head."""

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
