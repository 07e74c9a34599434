"""Converted models in DDP and FSDP2: two gloo ranks on the CPU do what one process does.

No GPU has seen FSDP2 here. tests/test_replicas.py holds the engine against DDP.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from norm_files import images
from test_replicas import on_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import normlab
from normlab.errors import UserError

C, STEPS = 6, 3
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
CASES = [  # norm, its settings, weight
    *((norm, {}, None) for norm in ("bn", "sn", "syncsn", "sn_hard", "sn_tied")),
    *(("group_sn", {}, "ws"), ("bn", {"frozen": True}, "wn"), ("sn", {"profile": "official"}, None)),
]
EVERY = [(case, dtype, wrapper) for case in CASES for dtype in TOLERANCE for wrapper in ("fsdp", "ddp")]
State = dict[str, Tensor]


def network(norm: str, settings: dict, weight: str | None, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3 if k == 0 else C, C, 3), nn.BatchNorm2d(C), nn.ReLU()) for k in range(2)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(C * 16, 5)).to(dtype)
    normlab.convert(model, norm, weight, **settings)
    return model


def sharded(model: nn.Sequential, **options) -> nn.Sequential:
    for block in model[:2]:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def trained(
    model: nn.Sequential, rows: slice, replicas: int, dtype: torch.dtype, wrapped: nn.Module | None = None
) -> dict[str, State]:
    """Steps on these rows of batches of two replicas of three samples: the last gradients, the state, the ratios."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    statistics = normlab.RunningStatistics(model)
    normlab.set_replicas(model, replicas)
    for step in range(STEPS):
        optimizer.zero_grad()
        x = images(6, 3, 8, 8, seed=step, dtype=dtype)[rows]
        (wrapped or model)(x).square().mean().backward()
        statistics.collect()
        statistics.advance()
        optimizer.step()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    found = {
        f"{layer} {moment} {scope}": torch.tensor(ratio, dtype=dtype)
        for layer, moments in normlab.ratios(model).items()
        for moment, by_scope in moments.items()
        for scope, ratio in by_scope.items()
    }
    return {"gradients": whole, "state": state, "ratios": found}


def of_trained() -> list[dict[str, State]]:
    rows, found = slice(3 * dist.get_rank(), 3 * dist.get_rank() + 3), []
    for case, dtype, wrapper in EVERY:
        model = network(*case, dtype)
        wrapped = sharded(model) if wrapper == "fsdp" else DistributedDataParallel(model)
        found.append(trained(model, rows, 1, dtype, wrapped))
    return found


def of_measured() -> State:
    model = sharded(network("sn", {}, None, torch.float64))
    normlab.batch_average(model, [images(3, 3, 8, 8, seed=2 * step + dist.get_rank()) for step in range(2)])
    return dict(model.named_buffers())


def of_refused() -> list[str]:
    model, said = sharded(network("sn", {}, None, torch.float64)), []
    for refused in (
        lambda: normlab.convert(model, "gn"),
        lambda: normlab.convert(model, weight="ws"),
        lambda: normlab.receptive_fields(model, (3, 8, 8)),
    ):
        with pytest.raises(UserError) as error:
            refused()
        said.append(str(error.value))
    with pytest.raises(UserError) as error:
        normlab.convert(DistributedDataParallel(network("sn", {}, None, torch.float64)), "gn")
    return [*said, str(error.value)]


def of_narrow() -> list[str]:
    """Dtypes of a running statistic and of a gradient, where parameters are gathered in bfloat16."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(network("sn", {}, None, torch.float32), mp_policy=policy)
    model(images(3, 3, 8, 8, dtype=torch.float32)).square().mean().backward()
    return [str(model[0][1].running_mean.dtype), str(model[0][1].mean_logits.grad.dtype)]


def on_a_rank(out: Path) -> None:
    results = [of_trained(), of_measured(), of_refused(), of_narrow()]
    if dist.get_rank() == 0:
        torch.save(results, out / "results.pt")
    dist.barrier()
    os._exit(0)  # torch's caches keep the mesh, and so gloo's threads, which may abort a process that ends as usual


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory) -> list[Any]:
    return on_ranks(2, on_a_rank, tmp_path_factory.mktemp("fsdp") / "run")


@pytest.mark.parametrize("wrapper", ["fsdp", "ddp"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_on_two_ranks_are_those_of_one_process(of_ranks, case, dtype, wrapper):
    found = of_ranks[0][EVERY.index((case, dtype, wrapper))]
    wanted = trained(network(*case, dtype), slice(None), 2, dtype)
    assert wanted["state"]["0.1.num_batches_tracked"] == (0 if "frozen" in case[1] else STEPS)
    for what, tensors in wanted.items():
        assert found[what].keys() == tensors.keys()
        torch.testing.assert_close(found[what], tensors, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_batch_average_joins_the_ranks(of_ranks):
    model = network("sn", {}, None, torch.float64)
    normlab.batch_average(model, [images(3, 3, 8, 8, seed=seed) for seed in range(4)])
    torch.testing.assert_close(of_ranks[1], dict(model.named_buffers()), rtol=0, atol=1e-12)


def test_what_comes_too_late_is_refused_in_a_line(of_ranks):
    *sharded, traced, of_ddp = of_ranks[2]
    assert all("wrapped by FSDPModule" in line and "convert it before" in line for line in sharded)
    assert "FSDP does not support deepcopy" in traced
    assert "wrapped by DistributedDataParallel" in of_ddp


def test_statistics_and_gradients_stay_wide(of_ranks):
    assert of_ranks[3] == ["torch.float32", "torch.float32"]
