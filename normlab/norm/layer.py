"""The one layer: a normalizer declared by the scopes of its mean and of its variance, and how several are mixed.

    Normalizer(64, mean=["bn"], var=["bn"])                           BN
    Normalizer(64, mean=["in", "ln", "bn"], var=["in", "ln", "bn"])   SN, Eq. 3
    Normalizer(64, mean=["bn"], var=["en"], groups=1)                 HN, Eq. 5

    y = weight * (x - sum_k ratio_k mean_k) / sqrt(sum_k ratio'_k var_k + eps) + bias

Shapes: rows R*N (R virtual replicas of N samples, replica by replica), C channels, L positions; S scopes; W values of
a scope's compact statistics (see scopes.py).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.norm import official
from normlab.norm.algebra import Algebra, ratios
from normlab.norm.kernels import in_transform
from normlab.norm.normalize import normalize, plain
from normlab.norm.ops import accumulation_dtype, advance
from normlab.norm.pooling import num_ranks
from normlab.norm.scopes import Scope, check_declaration, check_profile

_LEAST_MOMENTUM = 0.01  # that halving comes to


class BatchStatistics(NamedTuple):
    """What one training call measured in a batch scope: one row a replica (a single row when synchronized)."""

    mean_RW: Tensor
    var_RW: Tensor  # biased
    size: int  # values in each pixel set


def within_backward() -> bool:
    """Whether autograd runs a backward pass in this thread, so that a forward call is a recomputation.

    Activation checkpointing calls layers again there, on what they have seen: a second call that must not count. There
    is no public way to ask; torch.utils.checkpoint itself asks for this number, which is -1 outside of any pass.
    torch.compile and torch.export cannot trace the question, and need not: a checkpoint that they trace recomputes its
    activations, not its side effects. A layer compiled alone, inside a checkpoint that is not, does count twice.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class ScopeError(UserError, ValueError):
    """A scope that holds a single value cannot give a statistic."""


@cache
def _warn_of_single_values(scopes: str, num_samples: int) -> None:
    """Once in a process: a mixture goes on, by its other scopes."""
    warnings.warn(
        f"a mixture's scope '{scopes}' holds one value in each of its pixel sets, with {num_samples} sample(s) a "
        "replica and maps of one position: its mean is the input itself, and its variance 0",
        stacklevel=2,
    )


class Normalizer(nn.Module):
    """Normalize (N, C), (N, C, L), (N, C, H, W) or (N, C, T, H, W) input; output of the same shape and dtype.

    It is no subclass of torch's layers, so torch.optim.swa_utils.update_bn passes it by without a word: after weights
    were averaged (SWA, EMA), normlab.batch_average(model, loader) measures its statistics.

    Args:
        num_channels: C.
        mean: scopes that give the mean: in, ln, bn, gn, en; a number sets the groups of gn and en, as in "gn16".
        var: scopes that give the variance.
        groups: groups of a bare gn or en (fitted to C, see scopes.fit_groups).
        group_channels: channels in each group of a bare gn or en, in the place of `groups`, where a network's layers
            differ in their groups and not in their size (SN-TPAMI, Sec. 4.3.2: 32).
        tied: one set of ratios for mean and variance (SNtied, Distinct); needs the same scopes in both.
        mix: mix variances (SN, Eq. 3) or standard deviations (Distinct, Eq. 1).
        ratio_groups: channel groups that have ratios of their own (group SN, SN-TPAMI, Sec. 3.2).
        hard: use the scope of the largest ratio alone; the ratios are then constants (sparse SN, SN-TPAMI).
        start: ratio of each scope at the start, {in: 0.6, ln: 0.2, bn: 0.2}, for mean and variance; None: all equal, as
            the papers advise (Distinct, Table 4, practice 1).
        sync: batch scopes pool over all replicas and ranks (SyncBN, SyncSN).
        frozen: all that it holds is constant, in training too: weight, bias and logits are buffers of the same names,
            and batch scopes use the stored statistics. With bn this is torchvision's FrozenBatchNorm2d.
        profile: paper, or official: SN as its released code computes it (see official.py, docs/deviations.md).
        eps: added to the variance.
        momentum: weight of the new value in the moving average, as in torch; None averages all steps equally.
        halve_momentum: steps after each of which the momentum is halved, down to 0.01 (the code of PointNet and DGCNN,
            from 0.5).
        affine: learn weight (gamma) and bias (beta), from 1 and 0.

    Raises:
        UserError: unknown scope, or a combination that has no meaning.
        ScopeError: in forward, if all scopes of the mean or of the variance hold one value (1x1 maps under IN).
        ValueError: in forward, if the rows are no multiple of `replicas`.

    Attributes:
        name: in the model that it is of, if that was told; messages say it.
        replicas: virtual replicas stacked in the rows of a training pass.
        calls: None: each training call advances the running statistics by a step, as torch's layers do. A list: each
            training call appends what it measured, scope name -> BatchStatistics, and leaves the running statistics
            alone; whoever collects takes the items out and calls update_running. A layer that runs twice in a pass
            appends twice. Two kinds of call measure nothing: one of no rows, and one inside a backward pass, where
            activation checkpointing computes activations again (torch's layers count those twice). In a transform of
            torch.func nothing is appended, since its tensors end with it.
        mean_scopes, var_scopes: the scopes' names, as declared.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean_logits: Tensor | None
    var_logits: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_channels: int,
        *,
        mean: Sequence[str],
        var: Sequence[str],
        groups: Annotated[int, Ge(1)] = 32,
        group_channels: Annotated[int, Ge(2)] | None = None,
        tied: bool = False,
        mix: Literal["var", "std"] = "var",
        ratio_groups: Annotated[int, Ge(1)] = 1,
        hard: bool = False,
        start: Mapping[str, Annotated[float, Gt(0), Lt(1)]] | None = None,
        sync: bool = False,
        frozen: bool = False,
        profile: Literal["paper", "official"] = "paper",
        eps: Annotated[float, Gt(0)] = 1e-5,
        momentum: Annotated[float, Ge(0), Le(1)] | None = 0.1,
        halve_momentum: Annotated[int, Ge(1)] | None = None,
        affine: bool = True,
    ) -> None:
        super().__init__()
        check_declaration(mean, var, tied)
        check_profile(profile, mean, var, sync)
        if momentum is None and halve_momentum is not None:
            raise UserError(f"norm.halve_momentum={halve_momentum}: norm.momentum=null averages all steps equally")
        if mix not in ("var", "std"):
            raise UserError(f"norm.mix={mix} does not exist; allowed: var, std")
        if ratio_groups < 1 or num_channels % ratio_groups:
            raise UserError(f"norm.ratio_groups={ratio_groups} does not divide a layer of {num_channels} channels")
        if group_channels is not None:
            groups = max(1, num_channels // group_channels)
        self.num_channels = num_channels
        self.mean_scopes, self.var_scopes = list(mean), list(var)
        self._scopes = {name: Scope.parse(name, groups, num_channels) for name in (*mean, *var)}
        self._batch_scopes = [s for s in self._scopes.values() if s.across_samples]
        self.tied, self.mix, self.ratio_groups, self.hard = tied, mix, ratio_groups, hard
        self.sync, self.frozen, self.eps = sync, frozen, eps
        self.momentum, self.halve_momentum = momentum, halve_momentum
        self.algebra = Algebra(
            across=tuple(scope.across_samples for scope in self._scopes.values()),
            widths=tuple(scope.width(num_channels) for scope in self._scopes.values()),
            mean=tuple(list(self._scopes).index(name) for name in mean),
            var=tuple(list(self._scopes).index(name) for name in var),
            std=mix == "std",
            hard=hard,
            eps=eps,
        )
        self.profile = profile
        self.name = ""
        self.replicas = 1
        self.calls: list[Mapping[str, BatchStatistics]] | None = None

        self._register("weight", torch.ones(num_channels) if affine else None)
        self._register("bias", torch.zeros(num_channels) if affine else None)
        self._register("mean_logits", self._new_logits(self.mean_scopes, start), learned=not hard)
        self._register("var_logits", None if tied else self._new_logits(self.var_scopes, start), learned=not hard)
        for scope in self._batch_scopes:
            if scope.name in mean:
                self.register_buffer(_buffer("mean", scope), torch.zeros(scope.width(num_channels)))
            if scope.name in var:
                first = torch.zeros if profile == "official" else torch.ones
                self.register_buffer(_buffer("var", scope), first(scope.width(num_channels)))
        self.register_buffer("num_batches_tracked", torch.tensor(0) if self._batch_scopes else None)

    def _register(self, name: str, start: Tensor | None, learned: bool = True) -> None:
        """A parameter; in a frozen layer a buffer, which no optimizer, count of parameters or DDP takes for one."""
        if start is None:
            self.register_parameter(name, None)  # torch.export miscounts the buffers of a layer that has None ahead
        elif self.frozen:
            self.register_buffer(name, start)
        else:
            self.register_parameter(name, nn.Parameter(start, requires_grad=learned))

    def _new_logits(self, scopes: list[str], start: Mapping[str, float] | None) -> Tensor | None:
        """Logits of 1, so all ratios start at 1/S (SN, Sec. 4.1); (S,), or (ratio_groups, S) for group SN."""
        S = len(scopes)
        if S == 1:
            return None
        shape = (S,) if self.ratio_groups == 1 else (self.ratio_groups, S)
        if start is None:
            return torch.ones(shape)
        if sorted(start) != sorted(scopes) or not math.isclose(sum(start.values()), 1, abs_tol=1e-6):
            given = ", ".join(f"{scope}: {ratio:g}" for scope, ratio in start.items())
            raise UserError(f"norm.start={{{given}}}: expected a ratio for each of {', '.join(scopes)}, whose sum is 1")
        return (1 + torch.tensor([S * start[scope] for scope in scopes]).log()).expand(shape).clone()

    @property
    def is_switchable(self) -> bool:
        """Whether it learns ratios."""
        return len(self.mean_scopes) > 1 or len(self.var_scopes) > 1

    @property
    def tracks_statistics(self) -> bool:
        """Whether training passes measure statistics that evaluation uses later."""
        return bool(self._batch_scopes) and not self.frozen

    def ratios(self) -> tuple[Tensor, Tensor]:
        """Importance ratios of mean and variance, (S,) each, or (ratio_groups, S): softmax, or one-hot if hard.

        Of a layer that FSDP has sharded, all ranks ask together.
        """
        mean = self._ratio(self.mean_logits)
        return mean, mean if self.tied else self._ratio(self.var_logits)

    def _ratio(self, logits: Tensor | None) -> Tensor:
        if logits is not None and hasattr(logits, "full_tensor"):  # a DTensor: its own argmax fails
            logits = logits.full_tensor()
        found = ratios(logits, self.hard)
        return torch.ones(1) if logits is None or found is None else found.view_as(logits)

    # ---- forward -----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # whose sizes are tensors: kernels that take them as numbers would end the process
            raise RuntimeError("torch.jit.trace cannot follow this layer; torch.export.export can")
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"expected (N, {self.num_channels}, ...), got {tuple(x.shape)}")
        if x.numel() == 0:  # joined to the parameters: their gradients are zeros then, not missing, which DDP waits for
            return x + sum(parameter.sum() for parameter in self.parameters())
        return self._normalize(x.unsqueeze(-1)).squeeze(-1) if x.ndim == 2 else self._normalize(x)

    def __prepare_scriptable__(self) -> "Normalizer":
        """What torch.jit.script asks of every module ahead of its own work, whose errors tell of this file's inside."""
        raise RuntimeError("torch.jit.script cannot compile this layer; torch.compile and torch.export.export can")

    def _normalize(self, x: Tensor) -> Tensor:
        measures_batch = self.training and not self.frozen
        rows, C = x.shape[:2]
        R = self.replicas if measures_batch else 1
        if rows % R:
            raise ValueError(f"{rows} rows cannot be {R} replicas of equal size")
        N, num_positions = rows // R, math.prod(x.shape[2:])
        self._refuse_single_values(N, num_positions, measures_batch)

        dtype = accumulation_dtype(x)
        stored = None if measures_batch else self.stored_statistics(dtype)
        mean_NC: Tensor | None
        var_NC: Tensor | None
        if stored is not None and len(self._batch_scopes) == len(self._scopes):
            width = self.algebra.widths[0]  # of the first scope of the mean, whose stored mean serves as the anchor
            mean_NC = stored[:width].repeat_interleave(C // width).expand(rows, C)
            var_NC = mean_NC.view_as(mean_NC)  # torch.compile refuses the same tensor twice; so for tied logits below
        else:
            mean_NC, var_NC = self._moments(x)
        joined = 1 if self.sync else R
        gain, offset = self._gain(mean_NC, var_NC, R) if measures_batch else self.stored_gain()
        var_logits = self.var_logits
        if self.tied and self.mean_logits is not None:
            var_logits = self.mean_logits.view_as(self.mean_logits)
        parameters = (gain, offset, self.mean_logits, var_logits)
        wide = [t if t is None or t.dtype == dtype else t.to(dtype) for t in parameters]
        apply = plain if self.profile == "official" else normalize
        y, statistics = apply(x, mean_NC, var_NC, wide, self.algebra, joined, stored, self.sync)
        if measures_batch and self._batch_scopes and not within_backward():
            self._observe(statistics, joined, rows, num_positions)
        return y

    def _moments(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Mean and variance of every sample and channel (N, C), where they are needed before `normalize` takes them."""
        return official.moments(x) if self.profile == "official" else (None, None)

    def _gain(
        self, mean_NC: Tensor | None, var_NC: Tensor | None, replicas: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias of a training pass: (C,), or (R, C) for methods that correct each replica (Batch Renorm)."""
        return self.weight, self.bias

    def stored_gain(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias, (C,) each, of a pass with stored statistics."""
        return self.weight, self.bias

    def _refuse_single_values(self, N: int, num_positions: int, measures_batch: bool) -> None:
        """A pixel set of one value has no variance, and is its own mean: its scope alone erases the input."""
        if self.profile == "official" and num_positions == 1:
            raise ScopeError(
                f"norm.profile=official divides the variance of a map by its positions less one, and {self._called()} "
                "has maps of a single position; use norm.profile=paper, or larger images"
            )
        if num_positions > 1:
            return
        sizes = {
            name: self._size(scope, N, num_positions)
            for name, scope in self._scopes.items()
            if measures_batch or not scope.across_samples
        }
        for what, names in (("mean", self.mean_scopes), ("variance", self.var_scopes)):
            if all(sizes.get(name) == 1 for name in names):
                raise ScopeError(
                    f"scope '{'+'.join(names)}' cannot give the {what} of {self._called()}: "
                    f"with {N} sample(s) a replica and {num_positions} position(s) each of its pixel sets holds one "
                    "value; use a scope with more samples or channels (bn with a larger batch, ln, gn), or none here"
                )
        single = sorted(name for name, size in sizes.items() if size == 1)
        if single and not torch.compiler.is_compiling():
            _warn_of_single_values("+".join(single), N)

    def _called(self) -> str:
        return (f"{self.name}, " if self.name else "") + f"a layer of {self.num_channels} channels"

    def _size(self, scope: Scope, N: int, num_positions: int) -> int:
        joined = self.replicas * num_ranks() if self.sync and scope.across_samples else 1
        return joined * scope.size(N, self.num_channels, num_positions)

    # ---- statistics across samples -----------------------------------------------------------------------------

    def _observe(self, statistics: Tensor, replicas: int, rows: int, num_positions: int) -> None:
        """Count a training call, by its flat statistics (Algebra.layout)."""
        measured = {}
        layout = self.algebra.layout(replicas, rows, self.num_channels)
        for scope, (mean, var, (R, _, W)) in zip(self._scopes.values(), layout, strict=True):
            if scope.across_samples:
                mean_RW, var_RW = (statistics.as_strided((R, W), (W, 1), at.start) for at in (mean, var))
                size = self._size(scope, rows // self.replicas, num_positions)
                measured[scope.name] = BatchStatistics(mean_RW, var_RW, size)
        if self.calls is None:
            self._update_within_call(measured)
        elif not in_transform():
            self.calls.append(measured)

    def _update_within_call(self, measured: Mapping[str, BatchStatistics]) -> None:
        try:
            self.update_running(measured)
        except RuntimeError as error:
            if not in_transform():
                raise
            raise RuntimeError(
                "a transform of torch.func cannot advance running statistics that are not among its inputs: pass them, "
                "torch.func.functional_call(model, (parameters, buffers), x), or use model.eval()"
            ) from error

    @torch.no_grad()
    def update_running(self, batch: Mapping[str, BatchStatistics]) -> None:
        """Advance the moving averages by one step: scope name -> statistics, whose rows are averaged.

        As in torch, the running variance takes the unbiased estimate; in the official profile, what was measured.
        """
        assert self.num_batches_tracked is not None
        for scope in self._batch_scopes:
            mean_RW, var_RW, size = batch[scope.name]
            for buffer, measured_RW, factor in (("mean", mean_RW, 1), ("var", var_RW, self.correction(size))):
                running = self._buffers.get(_buffer(buffer, scope))
                if running is not None:
                    advance(running, measured_RW, self.weight_of_step(running.dtype), factor)
        self.num_batches_tracked.add_(1)  # += would go through Module.__setattr__, which takes longer than adding

    @property
    def steady_momentum(self) -> float | None:
        """The momentum, where it is the same at each step."""
        return self.momentum if self.halve_momentum is None else None

    def weight_of_step(self, dtype: torch.dtype) -> float | Tensor:
        """What a new value counts in the moving average.

        A tensor where it depends on the count, which torch.compile and transforms have no value of.
        """
        assert self.num_batches_tracked is not None
        if self.momentum is None:
            return (self.num_batches_tracked + 1).to(dtype).reciprocal()
        if self.halve_momentum is None:
            return self.momentum
        halvings = (self.num_batches_tracked // self.halve_momentum).to(dtype)
        return (self.momentum * torch.exp2(-halvings)).clamp(min=min(self.momentum, _LEAST_MOMENTUM))

    def correction(self, size: int) -> float:
        """What the running variance takes of a measured one, as a factor; `size` values are in a pixel set."""
        return 1 if self.profile == "official" else size / max(size - 1, 1)

    def stored_names(self) -> dict[str, tuple[str, str]]:
        """Buffer name -> (scope name, "mean" or "var"): what evaluation uses in place of batch statistics."""
        return {
            _buffer(what, scope): (scope.name, what)
            for scope in self._batch_scopes
            for what in ("mean", "var")
            if _buffer(what, scope) in self._buffers
        }

    def stored_statistics(self, dtype: torch.dtype) -> Tensor | None:
        """The stored statistics of the batch scopes, flat: mean, variance, of each; zeros for a half not asked for."""
        flat = []
        for scope in self._batch_scopes:
            pair = [self._buffers.get(_buffer(what, scope)) for what in ("mean", "var")]
            known = next(t_W for t_W in pair if t_W is not None)
            flat += [torch.zeros_like(known) if t_W is None else t_W for t_W in pair]
        return torch.cat(flat).to(dtype) if flat else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """A frozen layer takes no steps, so it asks for no count of them: FrozenBatchNorm2d holds none."""
        if self.frozen and self.num_batches_tracked is not None:
            state_dict.setdefault(f"{prefix}num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        groups = {s.name: s.groups for s in self._scopes.values() if s.kind in ("gn", "en")}
        flags = [name for name in ("tied", "hard", "sync", "frozen") if getattr(self, name)]
        flags += ["official"] * (self.profile == "official")
        parts = [
            str(self.num_channels),
            f"mean={'+'.join(self.mean_scopes)}",
            f"var={'+'.join(self.var_scopes)}",
        ]
        return ", ".join(parts + [f"groups={groups}"] * bool(groups) + flags)


def _buffer(what: str, scope: Scope) -> str:
    """bn keeps torch's names (running_mean, running_var); en adds its own (running_var_en32)."""
    return f"running_{what}" if scope.name == "bn" else f"running_{what}_{scope.name}"
