"""What `import normlab` offers by the names of conf/: normlab.convert(model, "sn"). See docs/library.md."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from normlab.config import choices, import_own_modules, node_of
from normlab.dynamics.ratios import MOMENTS, of_layer
from normlab.dynamics.receptive_field import trace
from normlab.errors import UserError, unknown
from normlab.norm import convert as conversions
from normlab.norm.convert import Conversion
from normlab.norm.layer import Normalizer
from normlab.norm.weight import Convolution
from normlab.schema import bind, check_target


def norms() -> dict[str, str]:
    """The names that `convert` and `create_norm_layer` know, and what each is.

    >>> normlab.norms()["gn"]
    'Group Normalization: moments of each sample over channel groups (32, as in the papers)'
    """
    return choices("norm")


def weights() -> dict[str, str]:
    """The names of reparametrized weights that `convert` knows, and what each is.

    >>> normlab.weights()["ws"]
    'Weight Standardization: filters of zero mean and unit standard deviation (WS, Eq. 2-4).'
    """
    return choices("weight")


def create_norm_layer(norm: str, num_channels: int, **settings: Any) -> nn.Module:
    """A layer by its name; for models that take a class of norms, `norm_layer=partial(create_norm_layer, "sn")`.

    >>> normlab.create_norm_layer("gn", 64, groups=16)
    Normalizer(64, mean=gn, var=gn, groups={'gn': 16})

    Args:
        norm: a name of `norms()`; "none" gives torch's nn.Identity.
        num_channels: C of the input (N, C), (N, C, L), (N, C, H, W) or (N, C, T, H, W).
        settings: in place of those in conf/norm/NAME.yaml; `Normalizer` explains them.

    Raises:
        UserError: an unknown name or setting, or a value that cannot be; the message names the nearest that can.
    """
    build = _by_name("norm", norm, settings)
    return nn.Identity() if build is None else build(num_channels)


def convert(
    model: nn.Module,
    norm: str | Callable[..., nn.Module] | None = None,
    weight: str | Callable[[Convolution], None] | None = None,
    *,
    select: Callable[[str], bool] = lambda name: True,
    keep: Collection[Literal["eps", "momentum"]] = (),
    **settings: Any,
) -> Conversion:
    """Replace every batch, instance and group norm of a model, in place, and reparametrize its convolutions.

    Before the model is given to an optimizer, DistributedDataParallel or fully_shard: the layers are new.

    >>> normlab.convert(model, "sn")                           # Switchable Normalization
    >>> normlab.convert(model, "gn", "ws", groups=16)          # GN of 16 groups, Weight Standardization
    >>> normlab.convert(model, "hn", keep=("eps", "momentum"), select=lambda name: name.startswith("layer4"))
    >>> len(normlab.convert(timm.create_model("resnet50"), "sn").norms)
    53

    What means the same in both layers is kept: gamma, beta, running statistics, device, dtype, and whether they learn.

    Args:
        model: of timm, torchvision or your own; LayerNorms over the last axis stay as they are.
        norm: a name of `norms()`, "none" to take the norms out, or what makes a layer of num_channels; None leaves
            the model's own.
        weight: a name of `weights()`, or what reparametrizes a convolution; None leaves the weights alone.
        select: limits both to modules whose name it accepts.
        keep: the settings that new layers take over from the old ones.
        settings: of the norm, in place of those in conf/norm/NAME.yaml; `Normalizer` explains them.

    Returns:
        The names of the layers that are new and of the convolutions that were reparametrized; eps and momentum, old
        and new, of each layer.

    Warns:
        NothingReplacedWarning: a norm was given, and the model has none to replace, as most transformers.

    Raises:
        UserError: an unknown name or setting, or a value that cannot be; the message names the nearest that can.
    """
    if settings and norm is None:
        raise UserError(f"convert: {', '.join(settings)}: settings are those of a norm, and none was given")
    if isinstance(weight, str):
        weight = _by_name("weight", weight, {})
    if norm is None:
        return Conversion(weights=[] if weight is None else conversions.parametrize_weights(model, weight, select))
    build = _by_name("norm", norm, settings) if isinstance(norm, str) else partial(norm, **settings)
    return conversions.convert(model, build, weight, select=select, keep=keep, stacklevel=3)


def ratios(model: nn.Module) -> dict[str, dict[str, dict[str, float]]]:
    """The importance ratios of every layer now: how much each scope counts in its mean and in its variance.

    >>> normlab.ratios(model)["layer1.0.bn1"]
    {'mean': {'in': 0.33, 'ln': 0.33, 'bn': 0.34}, 'var': {'in': 0.31, 'ln': 0.35, 'bn': 0.34}}

    Of each they sum to 1; a layer of a single scope has a ratio of 1. With ratio_groups these are the averages over
    the groups; `layer.ratios()` has all, (ratio_groups, S). Where the model is sharded by FSDP, all ranks ask together.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Normalizer)}
    rows = {name: of_layer(layer) for name, layer in layers.items()}
    return {name: {moment: row[moment] for moment in MOMENTS} for name, row in rows.items()}


def receptive_fields(model: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """How large a patch of the input each norm layer's values see, in pixels along its larger side, in network order.

    >>> normlab.receptive_fields(torchvision.models.resnet50(), (3, 224, 224))["layer4.2.bn3"]
    427

    Of normlab's layers and of those that `convert` would replace, as far as a forward pass runs them. It may exceed
    the image. The model is left as it is, and no values are computed where that can be avoided.

    Args:
        model: before it is wrapped by FSDP, which makes no copies.
        shape: of one sample, without the batch: (C, H, W), (C, T, H, W), (C, L) or (D,).

    Raises:
        UserError: a copy of the model does not run on such a sample.
    """
    try:
        sites = trace(model, shape, lambda m: isinstance(m, Normalizer) or conversions.is_replaceable(m))
    except Exception as error:  # of any kind: it is the model's own
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"receptive_fields: the model does not run on a sample of {tuple(shape)}: {reason}") from error
    return {site.name: site.receptive_field for site in sites if site.receptive_field is not None}


def _by_name(group: str, name: str, settings: dict[str, Any]) -> Callable[..., Any] | None:
    """What a file of conf/ builds, with some settings changed; None for that of nothing. Raises UserError."""
    known = choices(group)
    if name not in known:
        raise unknown(group, name, known)
    import_own_modules()
    node = check_target(node_of(group, name) | settings, group)
    return None if node is None else bind(node)
