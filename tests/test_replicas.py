"""Virtual replicas against the real thing: torch's DDP with one gloo rank a replica.

The reference below knows nothing of the engine: plain DDP, each rank with its own N samples and its own layers, running
statistics averaged over the ranks after each step.
"""

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from normlab.config import Config, load
from normlab.engine.build import build
from normlab.engine.loop import Loop
from normlab.engine.session import open_session
from normlab.replicas import Share, normalizers, passes, permutation, seed_dropout, set_replicas
from normlab.runs.folder import RunFolder
from normlab.trackers.tracker import NoTracker

G, N, STEPS = 4, 2, 20
NORMS = ("bn", "sn", "syncbn", "syncsn", "hn", "en", "gn", "brn", "group_sn")
TOLERANCE = {"fp32": 1e-6, "fp64": 1e-13}
State = dict[str, torch.Tensor]


def config(norm: str, precision: str, out: Path, *more: str) -> Config:
    more = ("model.width=4", f"iterations={STEPS}", "seed=3", "optim=sgd", "tracker=none", f"out={out}", *more)
    return load([f"norm={norm}", f"batch={G}x{N}", f"precision={precision}", *more])


def average_running_statistics(model: torch.nn.Module) -> None:
    """Over the ranks, all layers in one go."""
    running = [b for name, b in model.named_buffers() if name.rpartition(".")[2].startswith("running_")]
    if running:
        flat = torch.cat([b.flatten() for b in running])
        dist.all_reduce(flat)
        for buffer, mean in zip(
            running, (flat / dist.get_world_size()).split([b.numel() for b in running]), strict=True
        ):
            buffer.copy_(mean.view_as(buffer))


def reference(settings: Config, accumulate: int = 1) -> State:
    """One rank of plain DDP; every rank hosts one replica."""
    rank, dtype = dist.get_rank(), torch.float64 if settings.precision == "fp64" else torch.float32
    experiment = build(settings)
    model = DistributedDataParallel(experiment.model.to(dtype), forward_sync_buffers=False)
    lr = 0.1 * G * N * accumulate / 256
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    data = experiment.task.dataset("train")
    order = permutation(settings.seed, 0, len(data))
    for step in range(STEPS):
        for group in optimizer.param_groups:  # the step schedule, written out
            group["lr"] = lr * 0.1 ** sum(step >= round(m * STEPS) for m in (0.3, 0.6, 0.9))
        for a in range(accumulate):
            start = (step * accumulate + a) * G * N + rank * N
            images, labels = zip(*(data[0, i] for i in order[start : start + N]), strict=True)
            logits = model(torch.stack(images).to(dtype))
            (torch.nn.functional.cross_entropy(logits, torch.tensor(labels)) / accumulate).backward()
            average_running_statistics(model)
        optimizer.step()
        optimizer.zero_grad()
    return model.module.state_dict()


def engine(settings: Config) -> State:
    """The same run by the engine, on as many ranks as there are."""
    folder = RunFolder(Path(settings.out) / f"{settings.choices['norm']}-{settings.precision}")
    if not dist.is_initialized() or dist.get_rank() == 0:
        folder.create(settings)
    if dist.is_initialized():
        dist.barrier()
    session = open_session(folder)
    assert Loop(session, NoTracker(folder.path, "", "", {})).run() == "finished"
    return session.experiment.model.state_dict()


def rank_main(rank: int, ranks: int, work, out: Path, arguments: tuple, trusted: str) -> None:
    os.environ["NORMLAB_PACKAGES"] = trusted  # the server of processes began with what a test before had set
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=ranks)
    results = work(out, *arguments)
    gc.collect()  # as ranks do at their end: see normlab.launch.peer
    if rank == 0:
        torch.save(results, out / "results.pt")
    dist.destroy_process_group()
    threads = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name]  # one that is left aborts the process now and then


mp.set_forkserver_preload(["normlab.engine.loop", "normlab.tasks.classification", "normlab.data.digits"])


def on_ranks(ranks: int, work, out: Path, *arguments) -> dict:
    out.mkdir(parents=True)
    mp.start_processes(
        rank_main,
        (ranks, work, out, arguments, os.environ.get("NORMLAB_PACKAGES", "")),
        nprocs=ranks,
        start_method="forkserver",
    )
    return torch.load(out / "results.pt")


def run_references(out: Path) -> dict:
    every = {(n, p): reference(config(n, p, out)) for n in NORMS for p in TOLERANCE}
    return every | {("accumulated", "fp64"): reference(config("sn", "fp64", out), accumulate=2)}


def run_engines(out: Path, norms: tuple, more: tuple, precisions: tuple = tuple(TOLERANCE)) -> dict:
    return {(n, p): engine(config(n, p, out, *more)) for n in norms for p in precisions}


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict:
    return on_ranks(G, run_references, tmp_path_factory.mktemp("ddp") / "run")


def agree(expected: State, found: State, precision: str) -> None:
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        error = (tensor.double() - found[name].double()).abs().max().item()
        assert error <= TOLERANCE[precision], f"{name} differs by {error:.1e}"


def test_one_process_equals_ddp(references, tmp_path):
    for (norm, precision), state in run_engines(tmp_path, NORMS, ()).items():
        agree(references[norm, precision], state, precision)


def test_two_ranks_of_two_replicas_equal_ddp(references, tmp_path):
    for (norm, precision), state in on_ranks(2, run_engines, tmp_path / "run", NORMS, ()).items():
        agree(references[norm, precision], state, precision)


@pytest.mark.parametrize("per_pass", [1, 3])
def test_passes_of_some_replicas_equal_ddp(references, tmp_path, per_pass):
    norms = tuple(n for n in NORMS if not n.startswith("sync"))  # these need all replicas of a rank in one pass
    for (norm, precision), state in run_engines(tmp_path, norms, (f"replicas_per_pass={per_pass}",)).items():
        agree(references[norm, precision], state, precision)


def test_two_ranks_in_passes_equal_ddp(references, tmp_path):
    states = on_ranks(2, run_engines, tmp_path / "run", ("sn", "bn"), ("replicas_per_pass=1",))
    for (norm, precision), state in states.items():
        agree(references[norm, precision], state, precision)


def test_accumulation_equals_ddp_that_accumulates(references, tmp_path):
    expected = references["accumulated", "fp64"]
    agree(expected, run_engines(tmp_path, ("sn",), ("accumulate=2",), ("fp64",))["sn", "fp64"], "fp64")
    more = ("accumulate=2", "replicas_per_pass=1")
    agree(expected, on_ranks(2, run_engines, tmp_path / "run", ("sn",), more, ("fp64",))["sn", "fp64"], "fp64")


def test_the_comparison_can_fail(references, tmp_path):
    """Joining the replicas' samples, or leaving one out, is far outside the tolerance."""
    with pytest.raises(AssertionError, match="differs"):
        agree(references["syncbn", "fp64"], references["bn", "fp64"], "fp64")


def test_shares_cover_all_replicas_once():
    for ranks in (1, 2, 4):
        for per_pass in (None, 1, 3):
            shares = [Share(G, N, rank, ranks, per_pass) for rank in range(ranks)]
            assert sorted(g for share in shares for chunk in share.passes() for g in chunk) == list(range(G))


def test_ranks_take_the_samples_of_their_replicas():
    """Iteration i of an epoch takes the i-th block of G*N of the permutation; what is left over is left out."""
    length, per_epoch = 19, 2
    for epoch in range(2):
        order = permutation(7, epoch, length)
        for i in range(per_epoch):
            whole = passes(Share(G, N), 7, length, per_epoch, epoch * 2 + i, epoch * 2 + i + 1)
            block = order[i * G * N : (i + 1) * G * N]
            assert [key for p in whole for key in p.keys] == [(epoch, index) for index in block]
            halves = [
                passes(Share(G, N, r, 2, 1), 7, length, per_epoch, epoch * 2 + i, epoch * 2 + i + 1) for r in (0, 1)
            ]
            assert [index for half in halves for p in half for _, index in p.keys] == block


def test_permutations_differ_between_epochs_and_seeds():
    orders = [permutation(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_engine_layers_wait_for_the_iteration(tmp_path):
    """Under the engine a forward pass alone does not move running statistics."""
    settings = config("bn", "fp32", tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.create(settings)
    session = open_session(folder)
    Loop(session, NoTracker(folder.path, "", "", {}))
    layer = normalizers(session.experiment.model)[0]
    before = layer.running_mean.clone()
    session.experiment.model.train()(torch.randn(8, 1, 8, 8))
    assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("kind", [torch.nn.Dropout, torch.nn.Dropout2d])
def test_dropout_draws_for_each_replica_however_they_are_stacked(kind):
    model = torch.nn.Sequential(kind(0.4)).train()
    seed_dropout(model)
    x = torch.ones(6, 50, 4, 5)
    set_replicas(model, 3, [7, 8, 9])
    together = model(x)
    for k, seed in enumerate((7, 8, 9)):
        set_replicas(model, 1, [seed])
        assert torch.equal(model(x[2 * k : 2 * k + 2]), together[2 * k : 2 * k + 2])
    kept = together != 0
    assert together.unique().tolist() == pytest.approx([0, 1 / 0.6])
    whole = kept.flatten(2).all(2) | ~kept.flatten(2).any(2)  # of a channel, all values or none
    assert whole.all() == (kind is torch.nn.Dropout2d)
    assert 0.5 < kept.float().mean() < 0.7
