"""Detection against torchvision's own detectors, COCO's own evaluation, and plain DDP."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_detectors import C4, MASK, SMALL
from test_replicas import engine, on_ranks
from torch import nn
from torchvision.models import detection as theirs
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from normlab.cli import main
from normlab.config import load
from normlab.engine.batch_average import estimate
from normlab.engine.build import build, build_task
from normlab.engine.evaluate import evaluate
from normlab.engine.session import open_session
from normlab.errors import UserError
from normlab.figures.samples import predictions
from normlab.norm.layer import Normalizer
from normlab.reading import read_jsonl
from normlab.replicas import RunningStatistics, permutation, together
from normlab.report.summary import print_metrics
from normlab.runs.checkpoint import load_tensors, save_tensors
from normlab.runs.folder import RunFolder
from normlab.runs.records import Run
from normlab.seeding import mix_seed
from normlab.tasks.detection import Images
from normlab.tasks.metrics import metrics_of

# ---- losses --------------------------------------------------------------------------------------------------------


def test_twenty_steps_are_torchvisions(tmp_path):
    """Its own model, in a bare loop, of the same weights, samples and random numbers: the losses of each update.

    In float64 and in small steps, since roundings decide which of two proposals is kept.
    """
    words = ["task=detection", "data.length=32", "data.val_length=2", "data.channels=3", "model=mask_rcnn_fpn",
             "model.backbone=resnet18", "model.channels=64", "model.hidden=128", "model.box_head=2fc",
             "model.min_size=64", "model.max_size=64", "model.proposals=[200,100]", "model.box_samples=32",
             "norm=none", "parts.backbone=bn", "batch=1x2", "iterations=20", "optim=sgd", "optim.lr=0.001",
             "optim.lr_batch=2", "schedule=step", "schedule.milestones=[]", "seed=5", "tracker=none", "threads=1",
             "figures=summary", "batch_average.samples=2", "precision=fp64", f"out={tmp_path}"]  # fmt: skip
    torch.manual_seed(0)
    levels = {f"layer{k}": str(k - 1) for k in (1, 2, 3, 4)}
    trunk = BackboneWithFPN(torchvision.models.resnet18(), levels, [64, 128, 256, 512], 64)
    model = theirs.MaskRCNN(
        trunk, min_size=64, max_size=64, image_mean=[0.0] * 3, image_std=[1.0] * 3,
        box_head=theirs.faster_rcnn.TwoMLPHead(64 * 49, 128),
        box_predictor=theirs.faster_rcnn.FastRCNNPredictor(128, 11),
        mask_head=theirs.mask_rcnn.MaskRCNNHeads(64, (64, 64, 64, 64), 1),
        mask_predictor=theirs.mask_rcnn.MaskRCNNPredictor(64, 64, 11),
        rpn_post_nms_top_n_train=200, box_batch_size_per_image=32,
    ).double()  # fmt: skip
    save_tensors(tmp_path / "start.safetensors", model.state_dict())
    settings = load([*words, f"init={tmp_path / 'start.safetensors'}"])
    assert build(settings).unused == []
    assert main(["train", *words, f"init={tmp_path / 'start.safetensors'}"]) == 0
    recorded = [row for row in read_jsonl(RunFolder.of(settings).metrics) if "batch/loss" in row]
    data = build_task(settings).dataset("train")
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, weight_decay=1e-4)
    model.train()
    for step, row in enumerate(recorded):
        epoch, i = divmod(step, 16)
        torch.manual_seed(mix_seed(5, step, 0))
        samples = [data[epoch, index] for index in permutation(5, epoch, 32)[2 * i : 2 * i + 2]]
        targets = [target | {"boxes": target["boxes"].double()} for _, target in samples]
        losses = model([image.double() for image, _ in samples], targets)
        for ours, name in (("class", "classifier"), ("box", "box_reg"), ("objectness", "objectness"),
                           ("rpn_box", "rpn_box_reg"), ("mask", "mask")):  # fmt: skip
            assert row[f"batch/{ours}"] == pytest.approx(losses[f"loss_{name}"].item(), abs=1e-5), (step, ours)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(recorded) == 20


def batch_of(task, *keep: bool):
    """Two scenes; of those that are not kept, every box is taken out."""
    samples = [task.dataset("train").take(0, k, k) for k in range(len(keep))]
    for (_, target), kept in zip(samples, keep, strict=True):
        if not kept:
            target |= {name: target[name][:0] for name in ("boxes", "labels", "masks", "area", "iscrowd")}
    return task.prepare(task.collate(samples, "train"), "train")


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("words", [(*SMALL, MASK), C4])
def test_nothing_in_an_image_and_no_positive(words, precision):
    """Finite losses, and a gradient for every parameter, which DDP waits for; the mask head measures nothing."""
    experiment = build(load([*words, "norm=sn"]))
    model = experiment.model.to(precision).train()
    for keep in ((True, False), (False, False)):
        batch = batch_of(experiment.task, *keep)
        images, targets = [i.to(precision) for i in batch.images], batch.targets
        targets = [t | {name: t[name].to(precision) for name in ("boxes", "area")} for t in targets]
        for layer in model.modules():
            if isinstance(layer, Normalizer):
                layer.calls = []
        model.zero_grad()
        losses = experiment.task.losses(model, type(batch)(images, targets), 1).losses
        total = sum(losses.values()).sum()
        total.backward()
        assert total.isfinite() and losses["class"].shape == (1,)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        if words != C4:
            assert (losses["mask"] > 0) == any(keep)
            assert len(model.roi_heads.mask_head[0][1].calls) == any(keep)
        assert len(model.backbone.body.bn1.calls) == 1


def test_statistics_of_heads_are_of_the_boxes_of_all_levels():
    """Each replica counts alike, however many boxes it has: moving and batch average, by hand in float64."""
    experiment = build(load([*SMALL, MASK, "norm=bn", "seed=2"]))
    model, task = experiment.model.train(), experiment.task
    heads = [model.roi_heads.box_head[0][1], model.roi_heads.mask_head[0][1]]
    seen: dict[nn.Module, list[torch.Tensor]] = {head: [] for head in heads}
    for head in heads:
        head.register_forward_pre_hook(lambda head, given: seen[head].append(given[0].detach().double()))
    batches = [batch_of(task, True, True), batch_of(task, True, False), batch_of(task, False, False)]

    def forward(batch: Images) -> None:
        torch.manual_seed(0)
        task.losses(model, batch, 1)

    statistics = RunningStatistics(model)
    for batch in batches:
        forward(batch)
        statistics.collect()
    statistics.advance()
    for head, number in zip(heads, (3, 2), strict=True):  # the last one has no box for a mask
        inputs = [x for x in seen[head] if len(x)]
        assert len(seen[head]) == 3 and len(inputs) == number
        assert len({len(x) for x in inputs}) == (1 if number == 3 else 2)  # samples of boxes, and positive ones
        means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
        unbiased = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(head.running_mean.double(), 0.1 * means.mean(0), rtol=1e-4, atol=1e-6)
        expected = 0.9 + 0.1 * unbiased
        torch.testing.assert_close(head.running_var.double(), expected, rtol=1e-4, atol=1e-6)
        seen[head].clear()
    measured = estimate(model, batches, forward)
    for head, name in zip(heads, ("box", "mask"), strict=True):
        inputs = [x for x in seen[head] if len(x)]
        for what, expected in (("mean", [x.mean((0, 2, 3)) for x in inputs]),
                               ("var", [x.var((0, 2, 3), correction=0) for x in inputs])):  # fmt: skip
            found = measured[f"roi_heads.{name}_head.0.1.running_{what}"]
            torch.testing.assert_close(found.double(), torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)


def test_crowds_are_no_targets():
    task = build(load([*SMALL, "norm=gn"])).task
    batch = batch_of(task, True, True)
    given = []
    batch.targets[0]["iscrowd"][0] = 1

    def model(images, targets):
        given.extend(targets)
        return {"loss_classifier": torch.zeros(())}

    task.losses(model, batch, 1)
    assert given[0].keys() == {"boxes", "labels"}  # no masks where nothing learns from them
    assert len(given[0]["boxes"]) == len(batch.targets[0]["boxes"]) - 1
    assert len(given[1]["boxes"]) == len(batch.targets[1]["boxes"])


# ---- metrics -------------------------------------------------------------------------------------------------------


def judged(seed: int = 0, images: int = 50) -> tuple[list[dict], list[dict]]:
    """Truth and predictions of images of unequal sizes: crowds, images without either, boxes of all sizes."""
    draw = torch.Generator().manual_seed(seed)

    def instances(number: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        height, width = size
        sides = torch.rand(number, 2, generator=draw) ** 2 * torch.tensor([width, height]) * 0.8 + 4
        corner = torch.rand(number, 2, generator=draw) * (torch.tensor([width, height]) - sides)
        boxes = torch.cat([corner, corner + sides], 1).round()
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        masks = torch.stack([
            ((columns - (left + right) / 2) / (right - left)) ** 2 + ((rows - (top + bottom) / 2) / (bottom - top)) ** 2
            <= 0.25 for left, top, right, bottom in boxes
        ]) if number else torch.zeros(0, height, width, dtype=torch.bool)  # fmt: skip
        labels = torch.randint(1, 4, (number,), generator=draw)
        return {"boxes": boxes, "labels": labels, "masks": masks, "area": masks.sum((1, 2)).float(),
                "iscrowd": (torch.rand(number, generator=draw) < 0.15).long()}  # fmt: skip

    truth, found = [], []
    for k in range(images):
        size = tuple(torch.randint(100, 300, (2,), generator=draw).tolist())
        target = instances(0 if k % 7 == 3 else int(torch.randint(1, 6, (), generator=draw)), size)
        kept = {name: t for name, t in target.items() if name in ("boxes", "labels", "masks")}
        shift = torch.randint(-4, 5, kept["boxes"].shape, generator=draw)
        kept["boxes"] = (kept["boxes"] + shift).clamp(min=0)
        kept["masks"] = kept["masks"].roll(2, 2)
        more = instances(0 if k % 5 == 1 else 3, size)
        joined = {name: torch.cat([t, more[name]]) for name, t in kept.items()}
        truth.append(target)
        found.append(joined | {"scores": torch.rand(len(joined["labels"]), generator=draw)})
    return truth, found


def by_coco(folder: Path, task, truth: list[dict], found: list[dict]) -> dict[str, float]:
    """The twelve numbers of pycocotools, of files as COCO has them."""
    task.write([([one], [k]) for k, one in enumerate(found)], "val", folder)
    images = [{"id": k, "height": t["masks"].shape[1], "width": t["masks"].shape[2]} for k, t in enumerate(truth)]
    rows = [(k, row) for k, target in enumerate(truth) for row in as_annotations(target)]
    annotations = [row | {"id": n, "image_id": k} for n, (k, row) in enumerate(rows, 1)]
    categories = [{"id": label} for label in (1, 2, 3)]
    (folder / "truth.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    reference = COCO(str(folder / "truth.json"))
    names = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l")
    values = {}
    for kind, before in (("bbox", ""), ("segm", "mask_")):
        judge = COCOeval(reference, reference.loadRes(str(folder / f"{kind}.json")), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        values |= {f"{before}{name}": 100 * value for name, value in zip(names, judge.stats.tolist(), strict=True)}
    return values


def as_annotations(target: dict) -> list[dict]:
    from pycocotools import mask as coco_mask

    rows = []
    for k, (left, top, right, bottom) in enumerate(target["boxes"].tolist()):
        rle = coco_mask.encode(target["masks"][k].numpy().astype("uint8", order="F"))
        rows.append({"category_id": int(target["labels"][k]), "bbox": [left, top, right - left, bottom - top],
                     "segmentation": rle | {"counts": rle["counts"].decode()}, "area": float(target["area"][k]),
                     "iscrowd": int(target["iscrowd"][k])})  # fmt: skip
    return rows


def test_the_twelve_numbers_are_pycocotools(tmp_path):
    task = build_task(load([*SMALL, "data.val_length=50"]))
    truth, found = judged()
    expected = by_coco(tmp_path, task, truth, found)
    metric = task.metric("val")
    for k in torch.randperm(50, generator=torch.Generator().manual_seed(1)).tolist():  # the order does not matter
        task.update(metric, [found[k]], Images([truth[k]["masks"]], [truth[k]]), [k])
    results = task.results(metric)
    assert results.keys() == expected.keys() and len(expected) == 24
    assert 5 < results["ap"] < 95 and results["ap_s"] != results["ap_l"]
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, abs=1e-6), name


def test_what_there_is_none_of_has_no_number():
    task = build_task(load(list(SMALL)))
    truth, found = judged(images=1)
    truth[0] |= {"area": torch.full_like(truth[0]["area"], 50.0), "iscrowd": torch.zeros_like(truth[0]["iscrowd"])}
    metric = task.metric("val")
    task.update(metric, found, Images([truth[0]["masks"]], truth), [0])
    results = task.results(metric)
    assert "ap_s" in results and not {"ap_m", "ap_l", "mask_ar_l"} & results.keys()


def evaluated(out: Path) -> dict[str, float]:
    settings = load([*SMALL, MASK, "norm=gn", "batch=2x2", "iterations=1", "data.val_length=33", f"out={out}"])
    engine(settings)
    session = open_session(RunFolder(Path(settings.out) / "gn-fp32"))
    return evaluate(session, "val")


def test_ranks_with_unequal_numbers_of_images(tmp_path):
    """33 images in passes of 16: torchmetrics' way of gathering them would wait for ever."""
    assert evaluated(tmp_path / "one") == on_ranks(2, evaluated, tmp_path / "two")


# ---- runs ----------------------------------------------------------------------------------------------------------


def run(out: Path, *more: str) -> RunFolder:
    words = [*SMALL, "batch=4x2", "iterations=2", f"out={out}", *more]
    assert main(["train", *words]) == 0
    return RunFolder.of(load(words))


def test_predictions_are_files_and_pictures(tmp_path, monkeypatch):
    """Boxes in the pixels of the images, whatever size the network sees, under the statistics of the headline."""
    folder = run(tmp_path, MASK, "norm=sn", "model.min_size=64", "model.max_size=64", "model.least_score=0.01")
    assert main(["predict", str(folder.path), f"out={tmp_path / 'found'}"]) == 0
    rows = {kind: json.loads((tmp_path / "found" / f"{kind}.json").read_text()) for kind in ("bbox", "segm")}
    assert len(rows["bbox"]) == len(rows["segm"]) > 0
    assert {row["segmentation"]["size"] == [96, 96] for row in rows["segm"]} == {True}
    right = max(row["bbox"][0] + row["bbox"][2] for row in rows["bbox"])
    assert 64 < right <= 96 and {row["category_id"] for row in rows["bbox"]} <= set(range(1, 11))
    kept = Run.load(folder).predictions
    assert len(kept) == 8 and kept[0]["truth"]["masks"].shape[1:] == (96, 96)
    assert set(kept[0]["predicted"]) == {"boxes", "labels", "masks"}
    assert main(["figure", "predictions", str(folder.path), str(folder.path), f"out={tmp_path / 'two.png'}"]) == 0
    assert Run.load(folder).classes == ["background", *"0123456789"]
    drawn = {text.get_text() for axis in predictions([Run.load(folder)]).axes for text in axis.texts}
    labels = {label - 1 for sample in kept for of in ("truth", "predicted") for label in sample[of]["labels"].tolist()}
    assert drawn == {str(digit) for digit in labels} and "10" not in drawn  # the digit, not its label
    tensors = load_tensors(folder.predictions)
    monkeypatch.setattr(Run, "_whole", lambda run, name: folder.path / name)  # as if the run had left what follows
    for name, other, message in (
        ("0.truth.boxes", None, "a sample is not whole"),
        ("0.predicted.labels", torch.ones(50), "a sample is not whole"),
        ("0.truth.masks", torch.zeros(len(tensors["0.truth.masks"]), 3, 3), "a sample is not whole"),
        ("0.truth.boxes", torch.zeros(2), "nothing that a run keeps"),
        ("0.truth.scores", torch.zeros(2), "nothing that a run keeps"),
    ):
        changed = tensors | {name: other}
        save_tensors(folder.predictions, {key: tensor for key, tensor in changed.items() if tensor is not None})
        with pytest.raises(UserError, match=message):
            _ = Run.load(folder).predictions
    save_tensors(folder.predictions, tensors)
    assert Run.load(folder).classes == []
    drawn = {text.get_text() for axis in predictions([Run.load(folder)]).axes for text in axis.texts}
    assert drawn == {str(digit + 1) for digit in labels}
    for words in ("[{}]", "{", '{"a": "b"}', "[" * 10_000):
        save_tensors(folder.predictions, tensors, {"classes": words})
        with pytest.raises(UserError, match="the names of its classes are damaged"):
            _ = Run.load(folder).classes


def test_many_metrics_stand_below_each_other(capsys):
    names = [*task_metrics()]
    print_metrics("validation", {"moving_average": dict.fromkeys(names, 12.34)}, task_metrics())
    shown = capsys.readouterr().out.splitlines()
    assert all(any(name in line and "12.3" in line for line in shown) for name in names)
    print_metrics("validation", {"moving_average": dict.fromkeys(names[:8], 12.34)}, task_metrics())
    assert sum("12.3" in line for line in capsys.readouterr().out.splitlines()) == 1


def task_metrics():
    return metrics_of("normlab.tasks.detection.Detection")


@pytest.mark.parametrize("words", [SMALL, C4])
def test_export_gives_the_backbone(tmp_path, capsys, words):
    """With its pyramid. What finds boxes is left out."""
    given = [*words, "norm=bn", "batch=2x2", "iterations=1", f"out={tmp_path / 'runs'}"]
    assert main(["train", *given]) == 0
    folder = RunFolder.of(load(given))
    assert main(["export", str(folder.path), f"out={tmp_path / 'out'}"]) == 0
    assert "its backbone" in capsys.readouterr().out
    exported = torch.export.load(tmp_path / "out" / "model.pt2").module()
    model = build(load(given)).model
    model.load_state_dict(load_tensors(folder.weights))
    images = torch.randn(3, 1, 96, 96)
    for one, other in zip(exported(images).values(), model.backbone.eval()(images).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_synchronized_norms_of_what_all_replicas_have(tmp_path, capsys):
    """In the backbone and the pyramid, a replica on each device; on fewer it says how many it needs."""
    words = ["norm=syncsn", "parts.box=gn"]
    given = [*SMALL, "batch=2x2", "iterations=1", f"out={tmp_path}", *words]
    assert main(["train", *given]) == 2
    assert "use devices=2" in capsys.readouterr().err
    assert main(["train", *given, "devices=2"]) == 0


def test_blocks_of_one_group():
    """A replica's images are all wide or all tall, and each image is there once."""
    groups = [int(k % 3 == 0) for k in range(50)]
    for epoch in range(3):
        order = permutation(7, epoch, 50)
        found = together(order, groups, 4)
        assert sorted(found) == list(range(50))
        blocks = [{groups[index] for index in found[k : k + 4]} for k in range(0, 48, 4)]
        assert [len(block) for block in blocks].count(1) >= 11
        assert found != together(permutation(7, epoch + 1, 50), groups, 4)
    assert together(order, [0] * 50, 4) == order


@pytest.mark.long
def test_digits_in_scenes_are_found(tmp_path):
    """The pilot's protocols and handwriting, which no table is measured on, and its classifier; the bound was fixed
    before."""
    pilot = ["norm=sn", "data.validation=pilot", "seed=100", "threads=1", "figures=summary", "tracker=none",
             f"out={tmp_path}"]  # fmt: skip
    classifier = ["scale=scenes_pretraining", "batch=8x2", *pilot]
    assert main(["train", *classifier]) == 0
    words = ["scale=scenes_fpn", "task=detection", f"init={RunFolder.of(load(classifier)).path}", *pilot]
    assert main(["train", *words]) == 0
    assert RunFolder.of(load(words)).summary()["metrics"]["batch_average"]["ap50"] >= 50
