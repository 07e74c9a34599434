"""Statistics belong to calls: layers that run twice in a pass, or not at all, and are recomputed in a backward pass.

The references are torch's BatchNorm2d, called as often, and numpy on what reached each layer.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from norm_files import build, images, randomize
from test_replicas import on_ranks
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from normlab.engine.batch_average import estimate
from normlab.replicas import RunningStatistics, normalizers, set_replicas

C = 3
LAYERS = "abc"
State = dict[str, Tensor]
Trip = tuple[Tensor, int, str]  # a pass: x (R*N, C, H, W), R, path


class Paths(nn.Module):
    """A path is what happens to x in turn: a letter calls that layer, / halves the maps."""

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        for seed, name in enumerate(LAYERS):
            self.add_module(name, randomize(make(C), seed))

    def forward(self, x: Tensor, path: str) -> Tensor:
        for step in path:
            x = F.avg_pool2d(x, 2) if step == "/" else torch.sin(2 * self.get_submodule(step)(x)) + x
        return x


def ours(**options) -> Paths:
    return Paths(lambda channels: build("bn", channels, **options)).double()


def theirs(**options) -> Paths:
    return Paths(lambda channels: nn.BatchNorm2d(channels, **options)).double()


def trip(seed: int, path: str, replicas: int = 1, per_replica: int = 3, size: int = 8) -> Trip:
    return images(replicas * per_replica, C, size, size, seed=seed), replicas, path


def collected(model: nn.Module, iterations: Sequence[Sequence[Trip]]) -> State:
    """The buffers after iterations of some passes each, as the engine makes them."""
    statistics = RunningStatistics(model)
    for iteration in iterations:
        for x, replicas, path in iteration:
            set_replicas(model, replicas)
            model(x, path)
            statistics.collect()
        statistics.advance()
    return dict(model.named_buffers())


def measured(trips: Sequence[Trip]) -> dict[str, list[list[tuple[Tensor, Tensor]]]]:
    """By layer and k: mean and unbiased variance that BatchNorm2d takes of each replica that called it a k-th time."""
    found: dict[str, list[list[tuple[Tensor, Tensor]]]] = {name: [] for name in LAYERS}
    model = theirs(momentum=1.0)  # the running statistics are those of the last call
    for x, replicas, path in trips:
        for block in x.chunk(replicas):
            k = dict.fromkeys(LAYERS, 0)

            def look(layer, _, y, k=k):
                (name,) = (name for name in LAYERS if model.get_submodule(name) is layer)
                if k[name] == len(found[name]):
                    found[name].append([])
                found[name][k[name]].append((layer.running_mean.clone(), layer.running_var.clone()))
                k[name] += 1

            handles = [model.get_submodule(name).register_forward_hook(look) for name in LAYERS]
            model(block, path)
            for handle in handles:
                handle.remove()
    return found


def expected(iterations: Sequence[Sequence[Trip]], momentum: float = 0.1) -> State:
    """Each k-th call advances by a step, with the mean over the replicas that made it."""
    state = dict(ours().named_buffers())
    for iteration in iterations:
        for name, steps in measured(iteration).items():
            for replicas in steps:
                for buffer, values in zip(("running_mean", "running_var"), zip(*replicas, strict=True), strict=True):
                    old = state[f"{name}.{buffer}"]
                    state[f"{name}.{buffer}"] = (1 - momentum) * old + momentum * torch.stack(values).mean(0)
                state[f"{name}.num_batches_tracked"] = state[f"{name}.num_batches_tracked"] + 1
    return state


def agree(found: State, wanted: State) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


# ---- running statistics ----------------------------------------------------------------------------------------------

ALONE = {
    "a head shared by two levels": ["aa"] * 3,
    "by levels of other sizes, with a layer between": ["a/ba/a"] * 3,
    "a layer skipped": ["ab", "a", "b", "aab"],
    "a layer that never runs": ["ab", "ab"],
}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("paths", ALONE.values(), ids=ALONE)
def test_one_replica_is_as_torchs_layers(paths, momentum):
    """Whether the layers advance themselves or are collected from."""
    trips = [trip(seed, path) for seed, path in enumerate(paths)]
    reference, alone = theirs(momentum=momentum), ours(momentum=momentum)
    for x, _, path in trips:
        torch.testing.assert_close(alone(x, path), reference(x, path))
    agree(alone.state_dict(), reference.state_dict())
    agree(collected(ours(momentum=momentum), [[t] for t in trips]), dict(reference.named_buffers()))


ITERATIONS = {
    "shared, several replicas": [[trip(1, "a/ba", 3)], [trip(2, "a/ba", 2)]],
    "shared, passes of some replicas": [[trip(1, "aa/b", 2), trip(2, "aa/b", 1)], [trip(3, "aa/b", 2)]],
    "passes on different paths": [[trip(1, "ab", 2), trip(2, "a", 1), trip(3, "bcb", 1)], [trip(4, "c"), trip(5, "a")]],
    "iterations on different paths": [[trip(1, "ab", 2)], [trip(2, "a", 2)], [trip(3, "/b/ab", 2)]],
    "an iteration of nothing": [[trip(1, "ab", 2)], [trip(2, "", 2)], [], [trip(3, "b", 2)]],
    "images of other sizes": [[trip(1, "ab", 2, size=8), trip(2, "ab", 1, size=2), trip(3, "a/b", 1, 1, size=4)]],
    "other sizes the other way round": [[trip(1, "a", 1, 1, size=2), trip(2, "a", 1, size=8), trip(3, "a", 2, size=2)]],
}


@pytest.mark.parametrize("iterations", ITERATIONS.values(), ids=ITERATIONS)
def test_replicas_and_passes_are_averaged_call_by_call(iterations):
    agree(collected(ours(), iterations), expected(iterations))


def test_the_reference_is_torchs_layer_where_there_is_one_replica():
    iterations = [[trip(1, "a/aba")], [trip(2, "b")]]
    reference = theirs()
    for ((x, _, path),) in iterations:
        reference(x, path)
    agree(expected(iterations), dict(reference.named_buffers()))


def test_scopes_of_other_widths_follow_their_own_sizes():
    """HN's variance pools channels: running_var_en against the unbiased variance of each call's whole map."""
    layer = build("hn", C, groups=1).double()
    statistics, sizes = RunningStatistics(layer), (8, 4, 2)
    running_var, running_mean = torch.ones(1).double(), torch.zeros(C).double()
    for iteration in range(2):
        blocks = [images(3, C, size, size, seed=10 * iteration + size) for size in sizes]
        for x in blocks:
            layer(x)
            statistics.collect()
        statistics.advance()
        running_var = 0.9 * running_var + 0.1 * np.mean([x.numpy().var(ddof=1) for x in blocks])
        running_mean = 0.9 * running_mean + 0.1 * torch.stack([x.mean((0, 2, 3)) for x in blocks]).mean(0)
    buffers = dict(layer.named_buffers())
    (name,) = (name for name in buffers if name.startswith("running_var"))
    agree({"mean": buffers["running_mean"], "var": buffers[name]}, {"mean": running_mean, "var": running_var})


def test_the_official_profile_takes_what_was_measured_of_maps_of_any_size():
    """It corrects no variance, so the sizes of the maps do not matter: a plain mean of what each call alone gives."""
    layer, alone = (build("sn", C, profile="official", momentum=m).double() for m in (0.1, 1.0))
    statistics, variances = RunningStatistics(layer), []
    for size in (8, 2):
        x = images(3, C, size, size, seed=size)
        layer(x), alone(x)
        statistics.collect()
        variances.append(alone.running_var.clone())
    statistics.advance()
    agree({"var": layer.running_var}, {"var": 0.1 * torch.stack(variances).mean(0)})


def test_what_measures_nothing_appends_nothing():
    model = ours()
    RunningStatistics(model)
    model(torch.zeros(0, C, 4, 4).double(), "abc")
    model.eval()(images(2, C, 4, 4), "abc")
    assert all(layer.calls == [] for layer in normalizers(model))
    model.train()(images(2, C, 4, 4), "aab")
    assert [len(layer.calls) for layer in normalizers(model)] == [2, 1, 0]


# ---- two ranks -------------------------------------------------------------------------------------------------------

BY_RANK = (  # iteration by iteration
    [[trip(1, "a/ab", 2)], [trip(3, "a"), trip(4, "ab", 2)], [], [trip(8, "b", size=2)], [trip(10, "")]],
    [[trip(2, "a", 1)], [trip(5, "bb", 1, size=4)], [trip(7, "aaa", 2)], [trip(9, "/b")], [trip(11, "")]],
)
MEASURED_BY_RANK = ([trip(1, "a/ab", 2), trip(2, "b")], [trip(3, "a")])


def two_ranks(out: Path) -> dict:
    """Of each rank: the running statistics, and both batch averages."""
    rank = dist.get_rank()
    found = {"running": {k: v.clone() for k, v in collected(ours(), BY_RANK[rank]).items()}}
    for variance in ("mean", "population"):
        found[variance] = averages(ours(), MEASURED_BY_RANK[rank], variance)
    everyone: list = [None, None]
    dist.all_gather_object(everyone, found)
    return dict(enumerate(everyone))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict:
    return on_ranks(2, two_ranks, tmp_path_factory.mktemp("ranks") / "run")


def test_ranks_on_different_paths_are_averaged_call_by_call(ranks):
    joined = [[*one, *two] for one, two in zip(*BY_RANK, strict=True)]
    agree(ranks[0]["running"], expected(joined))
    torch.testing.assert_close(ranks[1], ranks[0], rtol=0, atol=0)


@pytest.mark.parametrize("variance", ["mean", "population"])
def test_batch_averages_of_ranks_on_different_paths_are_joined(ranks, variance):
    agree(ranks[0][variance], in_numpy([t for trips in MEASURED_BY_RANK for t in trips], variance))


# ---- batch average ---------------------------------------------------------------------------------------------------


def averages(model: nn.Module, trips: Sequence[Trip], variance: str) -> State:
    def forward(one: Trip) -> None:
        x, replicas, path = one
        set_replicas(model, replicas)
        model(x, path)

    return estimate(model, trips, forward, variance)


def in_numpy(trips: Sequence[Trip], variance: str) -> State:
    """From what reaches each of torch's layers."""
    inputs: dict[str, list[np.ndarray]] = {name: [] for name in LAYERS}
    model = theirs()
    for name in LAYERS:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0]))
    for x, replicas, path in trips:
        for block in x.chunk(replicas):
            model(block, path)
    state = {}
    for name, blocks in inputs.items():
        if blocks:
            means = np.stack([x.detach().numpy().mean((0, 2, 3)) for x in blocks])
            variances = np.stack([x.detach().numpy().var((0, 2, 3)) for x in blocks])
            added = means.var(0) if variance == "population" else 0
            state[f"{name}.running_mean"] = torch.from_numpy(means.mean(0))
            state[f"{name}.running_var"] = torch.from_numpy(variances.mean(0) + added)
    return state


@pytest.mark.parametrize("variance", ["mean", "population"])
@pytest.mark.parametrize("paths", [["aa/ba", "aa/ba"], ["ab", "a", "bb"], ["c"]], ids=str)
def test_every_call_enters_the_batch_average(paths, variance):
    trips = [trip(seed, path, replicas) for seed, (path, replicas) in enumerate(zip(paths, (2, 1, 3), strict=False))]
    model = ours()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    found = averages(model, trips, variance)
    agree(found, in_numpy(trips, variance))
    assert {name.partition(".")[0] for name in found} == {step for path in paths for step in path if step != "/"}
    agree(model.state_dict(), own)


def test_batch_means_are_torchs_cumulative_average():
    trips = [trip(1, "aa/ba"), trip(2, "a")]
    reference = theirs(momentum=None)
    for x, _, path in trips:
        reference(x, path)
    for name, value in averages(ours(), trips, "mean").items():
        if name.endswith("running_mean"):
            torch.testing.assert_close(value, reference.get_buffer(name), rtol=1e-11, atol=1e-11)


def test_the_population_is_all_that_a_layer_saw_where_calls_are_of_one_size():
    x, y = images(3, C, 4, 4, seed=1), images(3, C, 4, 4, seed=2)
    layer = nn.Sequential(build("bn", C).double())

    def forward(_: None) -> None:
        layer(x), layer(y)

    found = estimate(layer, [None], forward, "population")
    agree({"var": found["0.running_var"]}, {"var": torch.from_numpy(torch.cat([x, y]).numpy().var((0, 2, 3)))})


def test_a_measurement_leaves_what_is_being_collected_alone():
    model, iterations = ours(), [[trip(1, "aab", 2)], [trip(2, "ab", 2)]]
    statistics = RunningStatistics(model)
    for ((x, replicas, path),) in iterations:
        set_replicas(model, replicas)
        model(x, path)
        averages(model, [trip(9, "abc", 3)], "mean")
        statistics.collect()
        statistics.advance()
    agree(dict(model.named_buffers()), expected(iterations))


# ---- activation checkpointing ----------------------------------------------------------------------------------------

Forward = Callable[[Paths, Tensor], Tensor]


def plain(model: Paths, x: Tensor) -> Tensor:
    return model(model(x, "aa/b"), "ca")


def checkpointed(reentrant: bool, nested: bool) -> Forward:
    def inner(model: Paths, x: Tensor, path: str) -> Tensor:
        return checkpoint(model, x, path, use_reentrant=reentrant) if nested else model(x, path)

    def outer(model: Paths, x: Tensor) -> Tensor:
        y = checkpoint(lambda x: inner(model, x, "aa/b"), x, use_reentrant=reentrant)
        return checkpoint(lambda y: inner(model, y, "ca"), y, use_reentrant=reentrant)

    return outer


def steps(model: Paths, forward: Forward, collects: bool, replicas: int = 1) -> tuple[State, State]:
    """Buffers and gradients after two iterations of two passes, collected after their backward passes."""
    statistics = RunningStatistics(model) if collects else None
    set_replicas(model, replicas)
    for iteration in range(2):
        for one in range(2):
            x = images(4, C, 8, 8, seed=2 * iteration + one).requires_grad_()
            forward(model, x).square().sum().backward()
            if statistics is not None:
                statistics.collect()
        if statistics is not None:
            statistics.advance()
    return dict(model.named_buffers()), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("early_stop", [True, False], ids=["early stop", "whole"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("collects", [True, False], ids=["collected", "alone"])
def test_a_recomputation_does_not_count(collects, reentrant, nested, early_stop):
    replicas = 2 if collects else 1
    wanted = steps(ours(), plain, collects, replicas)
    with set_checkpoint_early_stop(early_stop):
        found = steps(ours(), checkpointed(reentrant, nested), collects, replicas)
    for one, other in zip(found, wanted, strict=True):
        agree(one, other)
    if not collects:
        agree(found[0], steps(theirs(), plain, False)[0])


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_torchs_own_layers_count_twice(reentrant):
    """So the test above has something to find."""
    state, _ = steps(theirs(), checkpointed(reentrant, nested=False), collects=False)
    once, _ = steps(theirs(), plain, collects=False)
    assert all(state[f"{name}.num_batches_tracked"] == 2 * once[f"{name}.num_batches_tracked"] for name in LAYERS)


def test_the_pass_after_a_backward_pass_counts():
    model = ours()
    for _ in range(3):
        model(images(2, C, 4, 4).requires_grad_(), "a").sum().backward()
        with torch.no_grad():
            model(images(2, C, 4, 4), "a")
    assert model.a.num_batches_tracked == 6


# ---- compiled --------------------------------------------------------------------------------------------------------


def test_a_compiled_network_appends_its_calls_in_one_graph():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, iterations = ours(), [[trip(1, "a/ab", 2), trip(2, "a/ab", 2)], [trip(3, "a/ab", 2)]]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    statistics = RunningStatistics(model)
    for iteration in iterations:
        for x, replicas, path in iteration:
            set_replicas(model, replicas)
            compiled(x.requires_grad_(), path).sum().backward()
            statistics.collect()
        statistics.advance()
    agree(dict(model.named_buffers()), expected([[(x.detach(), *more) for x, *more in i] for i in iterations]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_compiled_network_takes_a_checkpoint_into_its_graph():
    torch._dynamo.reset()
    model, eager = ours(), ours()
    run = torch.compile(lambda x: checkpoint(model, x, "aab", use_reentrant=False), fullgraph=True, backend="aot_eager")
    x = images(4, C, 4, 4)
    for _ in range(2):
        run(x.clone().requires_grad_()).sum().backward()
        eager(x, "aab")
    agree(model.state_dict(), eager.state_dict())


def test_a_network_in_training_can_be_exported():
    layer = randomize(build("bn", C)).double()
    twin = randomize(build("bn", C)).double()
    x = images(4, C, 4, 4)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), twin(x))
    agree(dict(exported.named_buffers()), dict(twin.named_buffers()))
