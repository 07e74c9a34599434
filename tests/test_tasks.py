"""Toy tasks, each asking something else of the core, and those of conf/, through all that a run can be asked for."""

import re
import signal
from pathlib import Path

import pytest
import torch
from killing import attempt, differences, outcome
from test_replicas import TOLERANCE, engine, on_ranks

from normlab.cli import main
from normlab.config import Config, load
from normlab.engine.build import build
from normlab.engine.loop import Loop
from normlab.engine.session import open_session
from normlab.reading import read_jsonl
from normlab.replicas import normalizers
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder
from normlab.tasks.metrics import metrics_of
from normlab.trackers.tracker import NoTracker

TASKS = ("dense.Dense", "unequal.Unequal", "search.Search", "vectors.Vectors", "style.Style")
MODULES = [task.partition(".")[0] for task in TASKS]
OWN = {  # tasks of conf/, small; classification has tests of its own
    "segmentation": (
        "data=synthetic_maps",
        "data.size=16",
        "data.length=40",
        "data.val_length=20",
        "model.width=4",
        "optim.lr=0.02",
    ),
    "video": ("data.length=40", "data.val_length=20", "model.backbone=scenes_resnet", "optim.lr=0.02"),
    "detection": (
        "data.length=40",
        "data.val_length=20",
        "model.mask=true",
        "model.channels=8",
        "model.hidden=16",
        "model.anchor_samples=16",
        "model.box_samples=8",
        "optim.lr=0.005",
    ),
    "points": (
        "data.length=40",
        "data.val_length=20",
        "data.points=24",
        "model.width=4",
        "model.k=4",
        "optim.lr=0.02",
    ),
    "stylization": (
        "data.size=32",
        "data.length=40",
        "data.val_length=8",
        "model.width=4",
        "model.blocks=2",
        "model.code=johnson",
        "optim.lr=1e-5",
        "task.tv_weight=1e-9",
    ),
    "face": (
        "data.size=16",
        "data.identities=10",
        "data.length=40",
        "data.probes=2",
        "data.distractors=20",
        "model.width=4",
        "model.features=8",
        "optim.lr=0.02",
        "task.scale=8",
    ),
    "search": (
        "data.fraction=0.1",
        "task.held_out=0.3",
        "task.architectures=3",
        "model.filters=2",
        "model.hidden=8",
        "parts.controller.norm.name=sn_ln_gn",
        "parts.controller.norm.groups=2",
        "phases.controller.updates=2",
        "optim.lr=0.02",
    ),
}
ALL = (*TASKS, *OWN)


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    """A run's own files may name these tasks."""
    monkeypatch.setenv("NORMLAB_PACKAGES", ",".join(f"toy_{module}" for module in MODULES))


def words(task: str, out: Path, *more: str) -> list[str]:
    chosen = [f"task={task}", *OWN[task]] if task in OWN else [f"task._target_=toy_{task}"]
    return [*chosen, "norm=sn", "batch=4x2", "epochs=2", "checkpoint.every=0.4", "threads=1",
            "batch_average.samples=16", "tracker=none", f"out={out}", *more]  # fmt: skip


def trained(out: Path, task: str, precision: str) -> dict[str, torch.Tensor]:
    return engine(load(words(task, out, f"precision={precision}", "optim=sgd")))


def source(task: str) -> str:
    return (Path(__file__).parent / f"toy_{task.partition('.')[0]}.py").read_text()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_short(task):
    assert source(task).count("\n") <= 60


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("task", ALL)
def test_two_devices_equal_one(tmp_path, task, precision):
    one = trained(tmp_path / "one", task, precision)
    two = on_ranks(2, trained, tmp_path / "two", task, precision)
    assert one.keys() == two.keys() and any("running_mean" in name for name in one)
    for name, tensor in one.items():
        # Statistics of stylization are those of pixels up to 255.
        largest = max(1.0, tensor.abs().max().item()) if task == "stylization" else 1.0
        error = (tensor.double() - two[name].double()).abs().max().item() / largest
        assert error <= TOLERANCE[precision], f"{name} differs by {error:.1e}"


@pytest.mark.parametrize("task", ALL)
def test_a_run_killed_twice_ends_as_if_it_had_not_been(tmp_path, task):
    settings = [load(words(task, tmp_path / name)) for name in ("whole", "killed")]
    assert attempt(settings[0]) == 0
    known = {"unequal.Unequal": 4, "vectors.Vectors": 6, "style.Style": 4, "search.Search": 7, "search": 14}
    per_epoch = known.get(task, 5)
    for update in (per_epoch - 1, per_epoch + 1):  # of two phases, inside the second's turn and inside the first's
        assert attempt(settings[1], ("training", update)) == -signal.SIGKILL
    assert attempt(settings[1]) == 0
    assert differences(*map(outcome, settings)) == []


@pytest.mark.parametrize("task", ALL)
def test_everything_that_a_run_can_be_asked_for(tmp_path, capsys, task):
    given = words(task, tmp_path)
    folder = RunFolder.of(load(given))
    headline = next(iter(metrics_of(load(given).task["_target_"])))
    assert main(["plan", *given]) == 0
    assert str(load(given).update_samples) in capsys.readouterr().out
    assert main(["train", *given]) == 0
    summary = folder.summary()
    assert summary["status"] == "finished" and summary["headline"]["metric"] == headline
    assert all(headline in values for values in summary["metrics"].values())
    for verb in (["show"], ["eval"], ["estimate", "samples=8", "variance=population"]):
        assert main([verb[0], str(folder.path), *verb[1:]]) == 0
        assert headline in capsys.readouterr().out
    for figure in ("learning_curves", "ratios", "layers", "ratio_curves"):
        assert main(["figure", figure, str(folder.path)]) == 0
    assert (folder.path / "ratios.png").stat().st_size > 1000
    refused = task in ("unequal.Unequal", "search")
    assert main(["export", str(folder.path)]) == (2 if refused else 0)
    assert ("export cannot give" in capsys.readouterr().err) == refused
    assert (folder.path / "export" / "model.pt2").exists() != refused


# ---- what each of them is there for --------------------------------------------------------------------------------


def run(task: str, out: Path, *more: str) -> tuple[RunFolder, Config]:
    config = load(words(task, out, *more))
    assert main(["train", *words(task, out, *more)]) == 0
    return RunFolder.of(config), config


def test_values_by_class_are_in_the_summary_alone(tmp_path):
    folder, _ = run("dense.Dense", tmp_path)
    found = folder.summary()["metrics"]["moving_average"]
    assert found["accuracy"] == pytest.approx(sum(found[f"accuracy.{k}"] for k in range(3)) / 3)
    assert not [key for row in read_jsonl(folder.metrics) for key in row if "." in key]


def test_bad_samples_of_any_target(tmp_path, capsys):
    """In training another stands in; in evaluation one is missing, and the metric knows which are there."""
    assert main(["train", *words("unequal.Unequal", tmp_path, "task.bad=5")]) == 2
    assert "5.png: it is no image" in capsys.readouterr().err
    folder, _ = run("unequal.Unequal", tmp_path, "task.bad=5", "task.on_error=skip")
    assert folder.summary()["data_errors"]["count"] == 2  # in training and in validation
    assert folder.summary()["status"] == "finished"


def test_phases_train_their_own_parameters_in_turn(tmp_path, capsys):
    folder, _ = run("search.Search", tmp_path, "phases.controller.optim=rmsprop", "phases.controller.updates=3")
    rows = read_jsonl(folder.metrics)
    turns = ["batch/controller/loss" in row for row in rows if any(key.startswith("batch/") for key in row)]
    assert turns == 2 * [*5 * [False], *3 * [True]]
    (first, last) = [row for row in rows if "val/error" in row]
    assert {"train/loss", "train/controller/loss", "train/controller/reward"} <= first.keys()
    assert last["train/controller/loss"] == pytest.approx(-last["train/controller/reward"])
    assert folder.summary()["metrics"]["moving_average"].keys() == {"error", "test/error"}
    gates = [row["batch/controller/lr"] for row in rows if "batch/controller/lr" in row]
    children = [row["batch/lr"] for row in rows if "batch/lr" in row]
    assert main(["status", f"out={tmp_path}"]) == 0
    assert re.search(r"error \d+\.\d{4}\b", capsys.readouterr().out)  # as many decimals as the task says
    assert set(gates).isdisjoint(children) and len(gates) == 6 and len(children) == 10


def test_what_a_phase_does_not_train_stays(tmp_path):
    """The same start, with and without updates of the controller: the gate moves in its turns alone."""
    folder, config = run("search.Search", tmp_path, "iterations=5")  # the child's turn
    start = build(config).model
    state = load_tensors(folder.weights)
    assert torch.equal(state["gate"], start.gate) and not torch.equal(state["last.weight"], start.last.weight)


@pytest.mark.parametrize(("more", "message"), [
    (["phases.controler.updates=3"], "phase 'controler' does not exist; did you mean 'controller'"),
    (["phases.controller.updats=3"], "phases.controller.updats: there is no such setting; did you mean 'updates'"),
    (["phases.controller.updates=0"], "phases.controller.updates=0: expected a whole number of 1 or more"),
    (["phases.controller.optim=sdg"], "phases.controller.optim=sdg: there is no such optim; did you mean 'sgd'"),
    (["parts.child.lr=-1"], "parts.child.lr=-1: expected a number of 0 or more"),
    (["parts.child.frozn=true"], "parts.child.frozn: there is no such setting; did you mean 'frozen'"),
    (["parts.child.momentum=0.1", "norm=gn"], None),
])  # fmt: skip
def test_settings_of_parts_and_phases(tmp_path, capsys, more, message):
    status = main(["plan", *words("search.Search", tmp_path, *more)])
    assert status == (0 if message is None else 2)
    assert message is None or message in capsys.readouterr().err


def test_a_network_of_no_images_has_no_receptive_fields(tmp_path, capsys):
    folder, _ = run("vectors.Vectors", tmp_path)
    rows = read_jsonl(folder.ratios)[-1]["layers"]
    assert [(row["layer"], row["part"], row["receptive_field"]) for row in rows] == [
        ("each.1", "each", None), ("all.1", "all", None)
    ]  # fmt: skip
    averages = folder.summary()["ratios_by_part"]
    assert averages["all"]["mean"] == rows[1]["mean"] and averages["each"]["var"] == rows[0]["var"]
    assert main(["figure", "learning_curves", str(folder.path), "quantities=[error]", f"out={tmp_path / 'x.png'}"]) == 0
    assert main(["status", f"out={tmp_path}"]) == 0
    assert re.search(r"accuracy \d+\.\d\d\b", capsys.readouterr().out)
    assert main(["show", str(folder.path)]) == 0
    assert "in all: mean" in capsys.readouterr().out


def test_a_layer_may_be_built_with_its_norm_or_without(tmp_path):
    """norm_layer= decides what is built; an alias sets two parts, and a part of its own counts more."""
    task = "vectors.Vectors"
    assert build(load(words(task, tmp_path))).model.all[0].bias is None
    model = build(load(words(task, tmp_path, "parts.all=none"))).model
    assert model.all[0].bias is not None and len(normalizers(model)) == 1
    model = build(load(words(task, tmp_path, "parts.head=none"))).model
    assert model.all[0].bias is not None and len(normalizers(model)) == 1
    model = build(load(words(task, tmp_path, "parts.head=none", "parts.all=ln"))).model
    assert [layer.mean_scopes for layer in normalizers(model)] == [["in", "ln", "bn"], ["ln"]]


def test_parts_have_a_momentum_and_a_learning_rate_and_may_be_frozen(tmp_path):
    more = ("parts.each.momentum=0.5", "parts.head.lr=0.1", "parts.last.frozen=true", "iterations=2")
    folder, config = run("vectors.Vectors", tmp_path, *more)
    experiment = build(config)
    assert [layer.momentum for layer in normalizers(experiment.model)] == [0.5, 0.1]

    optimizer = Loop(open_session(folder), NoTracker(folder.path, "", "", {})).phases[0].optimizer
    sizes = {group["lr"]: len(group["params"]) for group in optimizer.param_groups}
    fast, slow = sorted(sizes, reverse=True)
    assert slow == pytest.approx(0.1 * fast) and sizes == {fast: 6, slow: 5}
    state = load_tensors(folder.weights)
    assert torch.equal(state["last.weight"], experiment.model.last.weight)
    assert not torch.equal(state["all.0.weight"], experiment.model.all[0].weight)


def test_helpers_are_no_part_of_the_model(tmp_path):
    folder, _ = run("style.Style", tmp_path)
    session = open_session(folder)
    (helper,) = session.experiment.task.helpers()
    assert not helper.training and not any(p.requires_grad for p in helper.parameters())
    assert isinstance(helper[1], torch.nn.BatchNorm2d)
    assert not [name for name in load_tensors(folder.weights) if "helper" in name]
    assert {name.partition(".")[0] for name in load_tensors(folder.weights)} == {"0", "1", "3"}


def test_init_by_part_and_from_another_part(tmp_path, capsys):
    """A part begins from the part of the same name, wherever its modules are; others from what they say."""
    out = tmp_path / "runs"
    folder, _ = run("vectors.Vectors", out)
    begun = words("vectors.Vectors", out, "norm=bn", f"parts.each.init={folder.path}", "seed=4")
    config = load(begun)
    other = load(words("vectors.Vectors", out, "norm=bn", "seed=4"))
    experiment, alone = build(config), build(other)
    state = load_tensors(folder.weights)
    assert torch.equal(experiment.model.each[0].weight, state["each.0.weight"])
    assert torch.equal(experiment.model.each[1].running_mean, state["each.1.running_mean"])
    assert torch.equal(experiment.model.last.weight, alone.model.last.weight)
    assert RunFolder.of(config).path != RunFolder.of(other).path  # another start is another run
    assert main(["plan", *begun]) == 0 and "each.1.mean_logits" in capsys.readouterr().out
    assert main(["train", *begun]) == 0 and "not used of what it began from: all.0.weight" in capsys.readouterr().out
    assert "each.1.mean_logits" in experiment.unused and "last.weight" in experiment.unused
