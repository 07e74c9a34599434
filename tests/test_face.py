"""ArcFace against its arccos form, verification against scikit-learn's ROC curve, IR networks, and runs."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from data_files import as_pairs, jpeg, write_faces
from sklearn.metrics import roc_curve
from test_replicas import engine, on_ranks
from torch import nn

from normlab.cli import main
from normlab.config import choices, kinds_of, load
from normlab.engine.build import build, build_task
from normlab.errors import UserError
from normlab.models.faces import Identities
from normlab.norm.convert import is_replaceable
from normlab.norm.layer import Normalizer
from normlab.replicas import set_replicas
from normlab.report.runs import plan
from normlab.report.tables import load_table
from normlab.runs.folder import RunFolder
from normlab.tasks import verification
from normlab.tasks.face import Faces, arcface
from normlab.tasks.verification import Features, accepted, pair_accuracy, rates

SMALL = ("task=face", "model.width=4", "model.features=8", "data.size=16", "data.identities=20", "data.length=64",
         "data.probes=3", "data.distractors=30", "parts.embedding=bn", "batch_average.samples=32", "threads=1",
         "tracker=none")  # fmt: skip
NORMS = {"ir50": 79, "ir100": 154, "ir_small": 19}


# ---- ArcFace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "margin"), [(64.0, 0.5), (16.0, 0.2), (64.0, 0.0), (8.0, 1.2)])
def test_arcface_is_its_arccos_form(scale, margin):
    """In float64, with gradients; beyond pi - margin it is the line that the released code has there."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (300,), generator=draw)
    cosines = (2 * torch.rand(300, 7, generator=draw, dtype=torch.float64) - 1).requires_grad_()
    angles = torch.acos(cosines)
    beyond = angles > math.pi - margin
    moved = torch.where(beyond, cosines - margin * math.sin(margin), torch.cos(angles + margin))
    right = nn.functional.one_hot(labels, 7).bool()
    expected = scale * torch.where(right, moved, cosines)
    found = arcface(cosines, labels, scale, margin)
    assert (beyond & right).any() == (margin > 0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    losses = [nn.functional.cross_entropy(logits, labels) for logits in (found, expected)]
    for mine, theirs in zip(
        *(torch.autograd.grad(loss, cosines, retain_graph=True)[0] for loss in losses), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_arcface_at_its_ends():
    """Angles of 0 and pi have finite gradients, where a root's would not be; the value never rises with the angle."""
    cosines = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    arcface(cosines, torch.tensor([0, 0]), 64.0, 0.5).sum().backward()
    assert cosines.grad.isfinite().all()
    angles = torch.linspace(0.001, math.pi - 0.001, 2000, dtype=torch.float64)
    values = arcface(torch.cos(angles)[:, None], torch.zeros(2000, dtype=torch.int64), 1.0, 0.5)[:, 0]
    assert (values.diff() < 0).sum() >= 1998  # but where the line begins


# ---- verification --------------------------------------------------------------------------------------------------


def features(probes: int, others: int, seed: int = 0, spread: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of 10 identities and of others, shuffled."""
    draw = torch.Generator().manual_seed(seed)
    centres, labels = torch.randn(10, 6, generator=draw), torch.arange(probes) % 10
    known = centres[labels] + spread * torch.randn(probes, 6, generator=draw)
    every = nn.functional.normalize(torch.cat([known, torch.randn(others, 6, generator=draw)]))
    order = torch.randperm(len(every), generator=draw)
    return every[order], torch.cat([labels, torch.full((others,), -1)])[order]


def scored(every: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair of two probes of one identity, and of a probe and a distractor: the answer and the cosine."""
    answers, scores = [], []
    for i in range(len(labels)):
        for j in range(len(labels)):
            if labels[i] >= 0 and i != j and (labels[j] < 0 or labels[i] == labels[j]):
                answers.append(int(labels[i] == labels[j]))
                scores.append(float(every[i] @ every[j]))
    return np.array(answers), np.array(scores)


@pytest.mark.parametrize("far", [1.0, 0.3, 0.01, 1e-3, 1e-9])
@pytest.mark.parametrize("chunk", [2**24, 50])
def test_the_verification_rate_is_scikit_learns(monkeypatch, far, chunk):
    """The point of its ROC curve with the largest rate of false accepts that is allowed; in chunks or at once."""
    monkeypatch.setattr(verification, "_SCORES", chunk)
    for seed in range(3):
        every, labels = features(40, 50, seed)
        every = every.double()
        false, true, _ = roc_curve(*scored(every, labels), drop_intermediate=False)
        assert rates(every, labels, far).tar == pytest.approx(100 * true[false <= far].max(), abs=1e-9)


def test_rank_1_is_that_of_loops():
    every, labels = features(30, 60)
    hits = pairs = 0
    for i in range(90):
        for j in range(90):
            if i != j and labels[i] >= 0 and labels[i] == labels[j]:
                pairs += 1
                hits += all(every[i] @ every[j] > every[i] @ every[d] for d in range(90) if labels[d] < 0)
    assert 0 < hits < pairs and rates(every, labels, 0.1).rank1 == pytest.approx(100 * hits / pairs)


def test_equal_scores_are_not_accepted_by_mistake():
    """All features alike: whatever accepts one pair accepts all, so that none may be below a rate of 1."""
    every, labels = torch.ones(20, 4) / 2, torch.tensor(10 * [0, -1])
    assert rates(every, labels, 0.5) == (0, 0) and rates(every, labels, 1.0).tar == 100


def test_shuffled_labels_are_verified_at_the_rate_of_false_accepts():
    """Pairs that labels join by chance are as pairs of a probe and a distractor."""
    draw = torch.Generator().manual_seed(0)
    identities = torch.arange(600) // 2
    known = torch.randn(300, 6, generator=draw)[identities] + 0.2 * torch.randn(600, 6, generator=draw)
    every = nn.functional.normalize(torch.cat([known, torch.randn(600, 6, generator=draw)]))
    labels = torch.cat([identities, torch.full((600,), -1)])
    assert rates(every, labels, 0.1).tar > 95
    labels[:600] = identities[torch.randperm(600, generator=draw)]
    assert rates(every, labels, 0.1).tar == pytest.approx(10, abs=4)


def test_splits_that_cannot_be_verified():
    every, labels = features(10, 4)
    with pytest.raises(UserError, match="pictures evaluated none is a distractor"):
        rates(every, labels.clamp(min=0), 0.1)
    with pytest.raises(UserError, match="of the 14 pictures evaluated no two are of one identity"):
        rates(every, labels, 0.1)
    with pytest.raises(UserError, match="all of one identity, or all of two"):
        accepted(torch.rand(5), torch.ones(5, dtype=torch.bool), 0.1)


def test_collected_features_know_no_order():
    every, labels = features(12, 8)
    collected = Features()
    for rows in (range(10, 20), range(0, 3), range(3, 10)):
        collected.update(every[list(rows)], labels[list(rows)], rows)
    found, known = collected.compute()
    is_known = labels >= 0
    assert torch.equal(found[: is_known.sum()], every[is_known]) and torch.equal(known[:12], labels[is_known])
    assert rates(found, known, 0.1) == rates(every, labels, 0.1)


def test_pairs_are_judged_by_the_threshold_of_the_other_folds():
    """As by trying every threshold."""
    draw = torch.Generator().manual_seed(0)
    same = torch.rand(60, generator=draw) < 0.5
    scores = (torch.randn(60, generator=draw) + same).round(decimals=1)
    expected = []
    for part in np.array_split(np.arange(60), 10):
        rest = np.setdiff1d(np.arange(60), part)
        candidates = [-math.inf, *sorted(set(scores[rest].tolist()))]
        right = [((scores[rest] > t) == same[rest]).sum().item() for t in candidates]
        best = candidates[int(np.argmax(right))]
        expected.append(((scores[part] > best) == same[part]).double().mean().item())
    assert pair_accuracy(scores, same) == pytest.approx(100 * np.mean(expected))
    false, true, _ = roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    assert accepted(scores, same, 0.2) == pytest.approx(100 * true[false <= 0.2].max())


def test_pairs_that_lack_a_picture_are_left_out():
    """A picture of 4 and 5, and one of 10 and 11, could not be read: the others are still compared with their own."""
    draw = torch.Generator().manual_seed(0)
    every = torch.nn.functional.normalize(torch.randn(14, 8, generator=draw))
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 0]).repeat_interleave(2)
    collected = Features(in_pairs=True)
    for rows in ([13, 0, 4, 1], [2, 3, 6, 11], [12, 7, 8, 9]):
        collected.update(every[rows], labels[rows], rows)
    found, same = collected.compute()
    whole = [0, 1, 2, 3, 6, 7, 8, 9, 12, 13]
    assert torch.equal(found, every[whole]) and torch.equal(same, labels[whole])


def test_of_fewer_pairs_than_folds_each_is_one():
    assert pair_accuracy(torch.tensor([0.9, 0.1, 0.8]), torch.tensor([True, False, True])) == pytest.approx(200 / 3)
    assert pair_accuracy(torch.tensor([0.1, 0.9]), torch.tensor([True, False])) == 0


def nothing_of_its_own(out: Path) -> dict[str, float]:
    """What a rank finds that has no picture, as the second of two where one pass takes all."""
    every, labels = features(12, 8)
    collected = Features()
    if not dist.is_initialized() or dist.get_rank() == 0:
        collected.update(every, labels, range(len(labels)))
    return rates(*collected.compute(), 0.05)._asdict()


def test_a_rank_without_pictures(tmp_path):
    assert on_ranks(2, nothing_of_its_own, tmp_path / "two") == nothing_of_its_own(tmp_path)


def shared(out: Path) -> dict[str, float]:
    """What a rank finds that has every second picture."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    every, labels = features(40, 50)
    collected = Features()
    for rows in torch.arange(90)[rank::ranks].split(7):
        collected.update(every[rows], labels[rows], rows.tolist())
    return rates(*collected.compute(), 0.05)._asdict()


def test_ranks_find_what_one_finds(tmp_path):
    """Distractors stay where they are; probes, and the largest scores, go around."""
    assert on_ranks(2, shared, tmp_path / "two") == shared(tmp_path) == rates(*features(40, 50), 0.05)._asdict()


# ---- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in choices("model") if "embedding" in kinds_of("model", n)])
def test_norm_layers_by_part(name, capsys):
    assert main(["plan", "task=face", f"model={name}", "norm=bn", "tracker=none"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{NORMS[name]} (backbone {NORMS[name] - 1}, embedding 1)" in said


@pytest.mark.parametrize("depth", [50, 100])
def test_a_pretrained_body_has_the_names_of_the_embeddings(depth):
    own, first = (
        build(load([f"model={model}", *words, "norm=bn", "tracker=none"])).model
        for model, words in ((f"ir{depth}", ["task=face"]), (f"ir{depth}_classifier", ["data=glyph_images"]))
    )
    shapes = [{n: t.shape for n, t in m.state_dict().items() if n.startswith("backbone.")} for m in (own, first)]
    assert shapes[0] == shapes[1] and sum(map(is_replaceable, own.modules())) == 0
    assert sum(isinstance(m, Normalizer) for m in first.modules()) == NORMS[f"ir{depth}"] - 1


def test_ir50_sees_112_pixels():
    """7 x 7 positions of 512 channels, 512 features of unit length; parameters counted by hand."""
    task = build_task(load(["task=face", "model=ir50", "data=glyphs", "data.size=112", "tracker=none"]))
    model = task.build({})
    assert model.output[2].in_features == 512 * 49 and model.output[2].out_features == 512
    blocks = [(64, 64, 3, 64), (64, 128, 4, 128), (128, 256, 14, 256), (256, 512, 3, 512)]
    expected = 9 * 64 + 2 * 64 + 1 + 2 * 512 + (512 * 49 + 1) * 512 + 2 * 512 + 500 * 512
    for before, after, count, _ in blocks:
        expected += before * after + 2 * after  # projection
        for k in range(count):
            first = before if k == 0 else after
            expected += 2 * first + 9 * first * after + 2 * after + 1 + 9 * after * after + 2 * after
    assert sum(p.numel() for p in model.parameters()) == expected
    found = model.eval()(torch.randn(2, 1, 112, 112))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert model.train()(torch.randn(2, 1, 112, 112)).shape == (2, 500)


def batch(rows: int) -> Faces:
    draw = torch.Generator().manual_seed(0)
    return Faces(
        torch.randn(rows, 1, 16, 16, generator=draw, dtype=torch.float64), torch.randint(20, (rows,), generator=draw)
    )


@pytest.mark.parametrize("norm", ["bn", "sn", "hn"])
def test_stacked_replicas_are_those_of_a_loop(norm):
    gradients = []
    for together in (True, False):
        experiment = build(load([*SMALL, f"norm={norm}", "precision=fp64"]))
        model, whole = experiment.model.double().train(), batch(8)
        replicas = 4 if together else 1
        for r in range(4 // replicas):
            rows = slice(None) if together else slice(2 * r, 2 * r + 2)
            set_replicas(model, replicas, [0] * replicas)
            outcome = experiment.task.losses(model, Faces(whole.images[rows], whole.labels[rows]), replicas)
            assert outcome.losses["arc"].shape == (replicas,)
            (outcome.losses["arc"].sum() / 4).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("sync", "plain"), [("syncbn", "bn"), ("syncsn", "sn")])
def test_synchronized_replicas_are_one_large_one(tmp_path, sync, plain):
    """With the exact gradient: four steps of SGD, the last norm synchronized too."""
    common = [*SMALL, "precision=fp64", "iterations=4", "optim=sgd", "optim.lr_batch=8"]
    common.remove("parts.embedding=bn")
    many = engine(load([*common, f"norm={sync}", "batch=4x2", f"out={tmp_path / 'many'}"]))
    one = engine(load([*common, f"norm={plain}", "batch=1x8", f"out={tmp_path / 'one'}"]))
    for name, tensor in one.items():
        if "num_batches" not in name:
            torch.testing.assert_close(many[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cosines_and_their_loss_are_never_in_half_precision(dtype):
    """Those of a feature that lies on its identity too, where the angle has no derivative."""
    head = Identities(8, 5)
    features = torch.nn.functional.normalize(torch.randn(6, 8))
    features[0] = torch.nn.functional.normalize(head.weight[2].detach(), dim=0)
    labels = torch.tensor([2, 0, 1, 2, 3, 4])
    features = features.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        cosines = head(features)
        arcface(cosines, labels, 64, 0.5).logsumexp(1).sum().backward()
    assert cosines.dtype == torch.float32 and torch.equal(cosines, head(features.float()))
    assert features.grad.isfinite().all() and head.weight.grad.isfinite().all()


def test_features_of_a_picture_and_its_mirror_image():
    experiment = build(load([*SMALL, "norm=gn", "task.flip=true"]))
    model, images = experiment.model.eval(), batch(3).images.float()
    found = experiment.task.predict(model, Faces(images, torch.zeros(3)))
    torch.testing.assert_close(found, nn.functional.normalize(model(images) + model(images.flip(3))))


# ---- runs ----------------------------------------------------------------------------------------------------------


def run(out: Path, *words: str) -> RunFolder:
    given = [*words, "batch=2x4", "iterations=2", "figures=summary", f"out={out}"]
    assert main(["train", *given]) == 0
    return RunFolder.of(load(given))


def test_faces_train_and_are_tested(tmp_path, capsys):
    """Records, distractors and pairs; features as MegaFace's code takes them."""
    write_faces(tmp_path / "data")
    words = ["scale=megaface_sn", "task=face", f"data.root={tmp_path / 'data'}", "data.distractors=5", "data.pairs=lfw",
             "model=ir_small", "model.width=4", "model.features=8", "norm=sn", "iterations=1", "threads=1",
             "task.far=0.2", "tracker=none"]  # fmt: skip
    folder = run(tmp_path / "runs", *words)
    found = folder.summary()["metrics"]["batch_average"]
    assert {"tar", "rank1", "pairs/tar", "pairs/pair_accuracy"} <= found.keys() and "pairs/rank1" not in found
    assert main(["predict", str(folder.path), f"out={tmp_path / 'features'}"]) == 0
    files = sorted(str(f.relative_to(tmp_path / "features")) for f in (tmp_path / "features").rglob("*.bin"))
    assert len(files) == 10 and files[0] == "facescrub/Ann_Lee/Ann_Lee_0.png.bin"
    header = struct.unpack("<4i", (tmp_path / "features" / files[0]).read_bytes()[:16])
    assert header == (8, 1, 4, 5)
    assert found["rank1"] == pytest.approx(rank_1_of_files(tmp_path / "features"))


def rank_1_of_files(folder: Path) -> float:
    """By MegaFace's rule, from feature files alone: a probe, its identity's other pictures, all distractors."""
    read = {f: np.fromfile(f, "<f4", offset=16) for f in sorted(folder.rglob("*.bin"))}
    probes = {f: f.parent.name for f in read if f.relative_to(folder).parts[0] == "facescrub"}
    others = [feature for f, feature in read.items() if f not in probes]
    hits = [
        all(read[f] @ read[mate] > read[f] @ other for other in others)
        for f in probes
        for mate in probes
        if f != mate and probes[f] == probes[mate]
    ]
    return 100 * sum(hits) / len(hits)


def test_a_damaged_picture_of_a_pair_is_left_out(tmp_path):
    write_faces(tmp_path / "data")
    pictures = [b"no image" if k == 2 else jpeg((112, 112)) for k in range(12)]
    (tmp_path / "data/faces_emore/lfw.bin").write_bytes(as_pairs(pictures, [True, False, True, False, True, False]))
    words = ["task=face", "data=faces", f"data.root={tmp_path / 'data'}", "data.distractors=5", "data.pairs=lfw",
             "model.width=4", "model.features=8", "norm=gn", "parts.embedding=bn", "data.on_error=skip", "threads=1",
             "tracker=none"]  # fmt: skip
    summary = run(tmp_path / "runs", *words).summary()
    assert 0 <= summary["metrics"]["moving_average"]["pairs/pair_accuracy"] <= 100
    assert summary["data_errors"]["count"] == 1


def test_a_plan_knows_the_published_sizes(tmp_path, capsys):
    words = ["scale=megaface_sn", "task=face", "norm=sn", f"data.root={tmp_path / 'none'}", "data.pairs=lfw"]
    assert main(["plan", *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "5822653 for training, 1003530 for validation" in said and "(as published:" in said
    assert "79 (backbone 78, embedding 1)" in said


@pytest.mark.parametrize("model", ["ir_small", "ir_small_classifier"])
def test_a_network_has_a_stage(capsys, model):
    words = ["task=face"] if model == "ir_small" else ["data=glyph_images"]
    assert main(["plan", *words, f"model={model}", "model.layers=[]"]) == 2
    assert "model.layers=[]: expected the blocks of a stage or more" in capsys.readouterr().err


def test_it_begins_from_a_classifier(tmp_path):
    classifier = ["data=glyph_images", "data.size=16", "data.identities=20", "data.length=64", "data.val_length=8",
                  "model=ir_small_classifier", "model.width=4", "norm=sn", "tracker=none", "threads=1"]  # fmt: skip
    first = run(tmp_path, *classifier)
    folder = run(tmp_path, *SMALL, "norm=syncsn", f"init={first.path}", "optim.lr=1e-30")
    assert folder.summary()["not_used_of_init"] == ["fc.bias", "fc.weight"]


def test_the_embedding_stays_bn():
    model = build(load([*SMALL, "norm=syncsn"])).model
    assert model.embedding.mean_scopes == ["bn"] and not model.embedding.sync
    others = [m for m in model.modules() if isinstance(m, Normalizer) and m is not model.embedding]
    assert len(others) == 18 and all(layer.sync for layer in others)


# ---- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["glyphs", "papers"])
def test_the_table_of_faces(tmp_path, monkeypatch, scale):
    """SN and SyncSN begin from one classifier of their network; BN from random weights. The last norm is BN in all."""
    for folder in ("faces", "imagenet"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    found = plan(load_table("sn_table9"), scale, [3], [f"out={tmp_path / 'runs'}"], tmp_path)
    configs = {(cell.row, cell.column): found.config_of(cell) for cell in found.cells}
    assert len({found.ids[row, column, 3] for row, column in configs}) == 8 and len(found.pretraining) == 2
    begun = {found.ids["pretraining", cell.column, 3]: found.configs[found.ids["pretraining", cell.column, 3]]
             for cell in found.pretraining}  # fmt: skip
    for (row, column), config in configs.items():
        assert config.choices["task"] == "face" and config.parts["embedding"]["norm"]["mean"] == ["bn"]
        assert (config.init == "none") == (column in ("bn", "syncbn"))
        if config.init != "none":
            first = next(one for run, one in begun.items() if run in config.init)
            assert first.choices["norm"] == "sn" and first.batch == "8x32"
            assert first.model["layers"] == config.model["layers"] and first.model["width"] == config.model["width"]
        if scale == "papers":
            assert config.batch == "8x64" and config.optim["lr"] == 0.1 and config.task["far"] == 1e-6
            assert config.model["layers"] == [3, 4, 14, 3] if row == "r50" else [3, 13, 30, 3]


def test_instance_norm_is_refused_for_features(tmp_path, capsys):
    words = [word for word in SMALL if not word.startswith("parts.")]
    assert main(["train", *words, "data.size=32", "norm=in", "batch=1x8", "iterations=1", f"out={tmp_path}"]) == 2
    assert "scope 'in' cannot give the mean of embedding, a layer of 8 channels" in capsys.readouterr().err


@pytest.mark.long
def test_glyphs_are_learned(tmp_path):
    """The pilot's protocol and characters, which no table is measured on; the bound was fixed before."""
    words = ["scale=glyphs_sn", "task=face", "norm=bn", "data.validation=pilot", "seed=100", "threads=1",
             "figures=summary", "tracker=none", f"out={tmp_path}"]  # fmt: skip
    assert main(["train", *words]) == 0
    assert RunFolder.of(load(words)).summary()["headline"]["value"] >= 80
