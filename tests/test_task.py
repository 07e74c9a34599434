"""The engine with a task that is no classification: losses per replica, parts, init, replica by replica."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_replicas import agree, average_running_statistics, engine, on_ranks
from torch.nn.parallel import DistributedDataParallel
from toy_dense import VOID

from normlab.config import Config, load
from normlab.engine.build import build, build_task
from normlab.errors import UserError
from normlab.launch.life import train
from normlab.replicas import normalizers, permutation
from normlab.runs import checkpoint
from normlab.runs.folder import RunFolder, checkpoint_files

G, N, STEPS = 4, 2, 8


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    """A run's own files may name this task."""
    monkeypatch.setenv("NORMLAB_PACKAGES", "toy_dense")


def config(out: Path, *more: str) -> Config:
    return load(["task._target_=toy_dense.Dense", "norm=sn", f"batch={G}x{N}", "precision=fp64", f"iterations={STEPS}",
                 "schedule=cosine", "optim=sgd", "tracker=none", f"out={out}", *more])  # fmt: skip


def reference(out: Path) -> dict[str, torch.Tensor]:
    """Plain DDP: each rank's loss is the mean over its own counted pixels."""
    settings = config(out)
    experiment = build(settings)
    model = DistributedDataParallel(experiment.model.double(), forward_sync_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=1e-4)
    data = experiment.task.dataset("train")
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * G * N / 256 * 0.5 * (1 + math.cos(step / STEPS * math.pi))
        epoch, i = divmod(step, len(data) // (G * N))
        start = i * G * N + dist.get_rank() * N
        samples = [data[epoch, index] for index in permutation(settings.seed, epoch, len(data))[start : start + N]]
        images, labels = (torch.stack(t) for t in zip(*samples, strict=True))
        torch.nn.functional.cross_entropy(model(images.double()), labels, ignore_index=VOID).backward()
        average_running_statistics(model)
        optimizer.step()
        optimizer.zero_grad()
    return model.module.state_dict()


def test_dense_task_on_virtual_replicas_equals_ddp(tmp_path):
    expected = on_ranks(G, reference, tmp_path / "ddp")
    agree(expected, engine(config(tmp_path / "stacked")), "fp64")
    agree(expected, engine(config(tmp_path / "looped", "task.stackable=false")), "fp64")
    agree(expected, engine(config(tmp_path / "parts", "replicas_per_pass=3")), "fp64")


def test_mean_over_the_stacked_batch_would_be_wrong(tmp_path):
    """Replicas count different numbers of pixels, so that one mean over all of them weighs them unequally."""
    task = build(config(tmp_path)).task
    batch = task.stack(
        [task.collate([task.dataset("train")[0, 2 * g + k] for k in range(2)], "train") for g in range(G)]
    )
    model = task.build({})
    per_replica = task.losses(model, batch, G).losses["loss"].mean()
    stacked = torch.nn.functional.cross_entropy(model(batch[0]), batch[1], ignore_index=VOID)
    assert (per_replica - stacked).abs() > 1e-3


def test_parts_have_norms_of_their_own(tmp_path):
    model = build(config(tmp_path, "parts.decoder=gn", "weight=ws")).model
    assert [layer.mean_scopes for layer in normalizers(model)] == [["in", "ln", "bn"], ["gn"]]
    model = build(config(tmp_path, "parts.decoder.norm=none", "parts.decoder.weight=ws")).model
    assert len(normalizers(model)) == 1
    assert not hasattr(model[0][0], "parametrizations") and hasattr(model[1][0], "parametrizations")


def test_unknown_part_is_refused(tmp_path):
    with pytest.raises(UserError, match="'decodr' does not exist; did you mean 'decoder'"):
        build(config(tmp_path, "parts.decodr=gn"))


def test_whole_life_of_a_dense_run_and_init_from_it(tmp_path):
    settings = config(tmp_path)
    folder = RunFolder.of(settings)
    folder.create(settings)
    assert train(folder) == "finished"
    summary = folder.summary()
    assert summary["headline"]["metric"] == "accuracy" and summary["updates"] == STEPS
    assert 0 < summary["headline"]["value"] <= 100

    tuned = config(tmp_path, f"init={folder.path}", "parts.backbone=bn_frozen")
    assert RunFolder.of(tuned).path != folder.path
    start = build(tuned)
    trained = build(settings).model
    trained.load_state_dict(checkpoint.load(checkpoint_files(folder.checkpoints)[-1], folder.run()["id"])["model"])
    assert torch.equal(start.model[2].weight, trained.float()[2].weight)
    assert torch.equal(start.model[0][1].running_mean, trained[0][1].running_mean)
    assert start.unused == ["0.1.mean_logits", "0.1.var_logits"]


def test_accuracies_are_those_of_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassAccuracy

    task = build_task(load(["data=synthetic", "tracker=none"]))
    K = task.num_classes
    theirs = {f"top{k}": MulticlassAccuracy(K, top_k=k, average="micro") for k in (1, 5)}
    ours = task.metric("val")
    generator = torch.Generator().manual_seed(0)
    losses: list[torch.Tensor] = []
    for rows in (7, 1, 16):
        logits, labels = torch.randn(rows, K, generator=generator), torch.randint(K, (rows,), generator=generator)
        task.update(ours, logits, (torch.empty(rows), labels), range(rows))
        for metric in theirs.values():
            metric.update(logits, labels)
        losses += list(-logits.double().log_softmax(1)[range(rows), labels])
    expected = {name: 100 * metric.compute().item() for name, metric in theirs.items()}
    expected["loss"] = torch.stack(losses).mean().item()
    assert task.results(ours) == pytest.approx(expected, abs=1e-5)
