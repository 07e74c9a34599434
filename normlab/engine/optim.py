"""Optimizers: torch's, with the learning rate scaled to the samples of an update and decay on the chosen parameters.

Fused, where torch has it: one operation for all parameters. In a small network their number is what a step costs.
"""

import inspect
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

from normlab.norm.layer import Normalizer


def _without_compiler(optimizer: Any) -> Any:
    """The class with methods that torch.compile would compile, or not skip.

    torch's own import the compiler at their first call, to be skipped by it: a second ahead of a run's first update.
    """
    methods = {
        name: inspect.unwrap(getattr(optimizer, name))
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    }
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods | {"step": step})


_SGD, _RMSprop, _Adam = map(_without_compiler, (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam))


def sgd(
    model: nn.Module,
    update_samples: int,
    *,
    lr: Annotated[float, Gt(0)] = 0.1,
    lr_batch: Annotated[int, Ge(1)] = 256,
    momentum: Annotated[float, Ge(0)] = 0.9,
    nesterov: bool = False,
    weight_decay: Annotated[float, Ge(0)] = 1e-4,
    decay: Literal["all", "not_norm"] = "all",
) -> torch.optim.Optimizer:
    """SGD with momentum (SN, Sec. 4.1); the learning rate is lr * update_samples / lr_batch (Distinct)."""
    groups = _groups(model, weight_decay, decay)
    scaled = _scaled(lr, lr_batch, update_samples)
    return _SGD(groups, scaled, momentum=momentum, nesterov=nesterov, fused=True)


def rmsprop(
    model: nn.Module,
    update_samples: int,
    *,
    lr: Annotated[float, Gt(0)] = 0.01,
    lr_batch: Annotated[int, Ge(1)] = 256,
    momentum: Annotated[float, Ge(0)] = 0.9,
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9,
    eps: Annotated[float, Ge(0)] = 1.0,
    weight_decay: Annotated[float, Ge(0)] = 1e-4,
    decay: Literal["all", "not_norm"] = "all",
) -> torch.optim.Optimizer:
    """RMSProp (Distinct, Sec. 4.1); alpha is the kept fraction of the squared gradient's average."""
    groups = _groups(model, weight_decay, decay)
    return _RMSprop(groups, _scaled(lr, lr_batch, update_samples), alpha=alpha, eps=eps, momentum=momentum)


def adam(
    model: nn.Module,
    update_samples: int,
    *,
    lr: Annotated[float, Gt(0)] = 0.001,
    lr_batch: Annotated[int, Ge(1)] | None = None,
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9,
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999,
    eps: Annotated[float, Gt(0)] = 1e-8,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    decay: Literal["all", "not_norm"] = "all",
) -> torch.optim.Optimizer:
    """Adam; its learning rate scales with the samples of an update only where lr_batch says with which."""
    groups = _groups(model, weight_decay, decay)
    scaled = lr if lr_batch is None else _scaled(lr, lr_batch, update_samples)
    return _Adam(groups, scaled, betas=(beta1, beta2), eps=eps, fused=True)


def _scaled(lr: float, lr_batch: int, update_samples: int) -> float:
    return lr * update_samples / lr_batch


def _groups(model: nn.Module, weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """Parameter groups; `not_norm` exempts gamma, beta and the logits of the ratios."""
    norms = {id(p) for m in model.modules() if isinstance(m, Normalizer) for p in m.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    if decay == "all":
        return [{"params": trained, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": 0.0},
    ]
