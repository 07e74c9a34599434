"""What a task and its settings must agree on, and numbers that do not depend on how a run is executed."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from sealed import rewrite
from test_replicas import engine, on_ranks

from normlab import schema
from normlab.cli import main
from normlab.config import compose, conf_dir, load
from normlab.dynamics.ratios import average
from normlab.engine.build import build
from normlab.engine.evaluate import evaluate
from normlab.engine.loop import Loop
from normlab.engine.session import open_session
from normlab.errors import UserError
from normlab.reading import read_json, read_jsonl
from normlab.runs.checkpoint import save_tensors
from normlab.runs.folder import RunFolder
from normlab.tasks.metrics import info_of, metrics_of, value_of
from normlab.trackers.tracker import NoTracker


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    names = ("wrong", "dense", "search", "vectors")
    monkeypatch.setenv("NORMLAB_PACKAGES", ",".join(f"toy_{name}" for name in names))


def words(task: str, out: Path, *more: str) -> list[str]:
    return [f"task._target_=toy_{task}", "norm=sn", "batch=4x2", "epochs=1", "threads=1", "tracker=none",
            "batch_average.samples=16", f"out={out}", *more]  # fmt: skip


@pytest.mark.parametrize(("task", "message"), [
    ("NoMetrics", "a task needs `metrics`"),
    ("BadField", "toy_wrong.BadField.metrics.accuracy.word: there is no such setting; did you mean 'words'"),
    ("UnknownSplit", "split 'tset' does not exist"),
    ("SamePhases", "2 phases are called one; expected a name for each"),
    ("UnknownPart", "phase one: part 'heda' does not exist; did you mean 'head'"),
    ("Overlapping", "phases one and two both train last."),
    ("Empty", "its validation split is empty"),
])  # fmt: skip
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_task_that_is_wrong_is_one_line_before_any_work(tmp_path, capsys, verb, task, message):
    assert main([verb, *words(f"wrong.{task}", tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("task", "message"), [
    ("Lacking", "results lack accuracy, which its runs are known by"),
    ("Undeclared", "results have 'acuracy', which its metrics do not declare"),
    ("Changing", "one pass measured loss, odd, and another loss; a task measures the same in each"),
])  # fmt: skip
def test_what_only_running_tells_is_one_line_too(tmp_path, capsys, task, message):
    assert main(["train", *words(f"wrong.{task}", tmp_path, "replicas_per_pass=2")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("part", ["controller", "child"])
def test_a_phase_whose_parts_are_frozen_has_nothing_to_train(tmp_path, capsys, part):
    for verb in ("plan", "train"):
        assert main([verb, *words("search.Search", tmp_path, f"parts.{part}.frozen=true")]) == 2
        assert f"phase {part} has nothing to train" in capsys.readouterr().err


def test_a_norm_that_finds_nothing_in_its_part_is_refused(tmp_path, capsys):
    assert main(["plan", *words("vectors.Vectors", tmp_path, "norm=none", "parts.last=sn")]) == 2
    assert "no batch, instance or group norm" in capsys.readouterr().err


def test_momentum_of_a_part_may_be_that_of_all_steps(tmp_path):
    model = build(load(words("vectors.Vectors", tmp_path, "parts.each.momentum=null"))).model
    assert model.each[1].momentum is None and model.all[1].momentum == 0.1


# ---- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["each", "last"])
def test_the_recorded_learning_rate_is_without_the_factors_of_parts(tmp_path, part):
    rates = []
    for more in ([], [f"parts.{part}.lr=0.1"], [f"parts.{part}.lr=0"]):
        given = words("vectors.Vectors", tmp_path, "iterations=2", *more)
        assert main(["train", *given]) == 0
        rates.append([row["batch/lr"] for row in read_jsonl(RunFolder.of(load(given)).metrics) if "batch/lr" in row])
    assert rates[0] == rates[1] == rates[2]


def evaluated(out: Path) -> dict[str, float]:
    settings = load(words("wrong.Together", out, "iterations=2", "precision=fp64"))
    engine(settings)
    session = open_session(RunFolder(Path(settings.out) / "sn-fp64"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in session.experiment.model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return evaluate(session, "dev")


def test_what_is_together_in_evaluation_does_not_depend_on_the_devices(tmp_path):
    one = evaluated(tmp_path / "one")
    two = on_ranks(2, evaluated, tmp_path / "two")
    assert one == pytest.approx(two, abs=1e-9)
    assert main(["train", *words("wrong.Together", tmp_path / "run", "iterations=2")]) == 0


def test_a_test_split_may_have_any_name(tmp_path, capsys):
    given = words("wrong.Together", tmp_path)
    assert main(["train", *given]) == 0
    folder = RunFolder.of(load(given))
    assert (folder.path / "learning_curves.png").is_file()
    capsys.readouterr()
    assert main(["show", str(folder.path)]) == 0 and "development" in capsys.readouterr().out
    assert main(["eval", str(folder.path)]) == 0 and "development" in capsys.readouterr().out
    assert main(["eval", str(folder.path), "split=val"]) == 2
    assert "split=val: expected train or dev" in capsys.readouterr().err


def test_ratios_are_averaged_over_the_layers_that_choose():
    """A frozen BN beside SN has a ratio of 1 that nobody chose."""
    sn = {"mean": {"in": 0.5, "bn": 0.5}, "var": {"in": 0.25, "bn": 0.75}}
    other = {"mean": {"in": 0.1, "bn": 0.9}, "var": {"bn": 1.0}}
    bn = {"mean": {"bn": 1.0}, "var": {"bn": 1.0}}
    assert average([sn, bn, other]) == {
        "mean": {"in": pytest.approx(0.3), "bn": pytest.approx(0.7)},
        "var": {"in": 0.25, "bn": 0.75},
    }
    assert average([bn, bn]) == {"mean": {"bn": 1.0}, "var": {"bn": 1.0}}


def test_a_phase_may_have_an_optimizer_of_its_own(tmp_path):
    """Another file, or the run's own with another setting."""
    given = words("search.Search", tmp_path, "phases.controller.optim=adam", "phases.child.optim.lr=0.7")
    config = load(given)
    assert config.phases["controller"]["optim"]["_target_"].endswith("adam")
    assert config.phases["child"]["optim"] == config.optim | {"lr": 0.7}
    assert main(["train", *given]) == 0
    more = load(words("search.Search", tmp_path, "phases.controller.optim={name: adam, lr: 0.0035}"))
    assert more.phases["controller"]["optim"]["lr"] == 0.0035
    assert RunFolder.of(more).path != RunFolder.of(config).path
    folder = RunFolder.of(config)
    loop = Loop(open_session(folder), NoTracker(folder.path, "", "", {}))
    assert [type(phase.optimizer).__name__ for phase in loop.phases] == ["SGD", "Adam"]
    with pytest.raises(UserError, match=r"phases\.child\.optim\.lrr: there is no such setting; did you mean 'lr'"):
        load(words("search.Search", tmp_path, "phases.child.optim.lrr=0.7"))


def test_a_part_may_change_a_setting_of_the_runs_norm(tmp_path):
    config = load(words("vectors.Vectors", tmp_path, "norm=gn", "parts.all.norm.groups=2"))
    assert config.parts["all"]["norm"] == config.norm | {"groups": 2}


@pytest.mark.parametrize("settings", [{"optim": None}, {"schedule": None}, {"optim": 3}, {"updates": "x"}])
def test_phases_of_a_strangers_run_are_looked_at(tmp_path, settings):
    folder = RunFolder.of(load(words("search.Search", tmp_path)))
    folder.create(load(words("search.Search", tmp_path)))
    rewrite(folder.run_file, lambda run: run["config"].update(phases={"child": settings}))
    with pytest.raises(UserError, match=r"phases\.child\."):
        folder.config()


# ---- init ----------------------------------------------------------------------------------------------------------


def test_a_file_is_taken_at_its_root_for_parts_that_name_it_alone(tmp_path):
    """`weight` of a file is no `last.weight` unless somebody says that the file is of that part."""
    file = tmp_path / "x.safetensors"
    save_tensors(file, {"weight": torch.full((2, 8), 3.0), "each.0.bias": torch.full((8,), 5.0)})
    model = build(load(words("vectors.Vectors", tmp_path, f"init={file}"))).model
    assert not (model.last.weight == 3).all() and (model.each[0].bias == 5).all()
    model = build(load(words("vectors.Vectors", tmp_path, f"parts.last.init={file}"))).model
    assert (model.last.weight == 3).all() and not (model.each[0].bias == 5).all()


# ---- what is read from a task's source -----------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "mypkg"
    folder.mkdir()
    files = {
        "__init__": "from .base import Seg\n",
        "base": "from normlab.tasks.classification import Classification\n"
        "class Seg(Classification):\n    metrics = {'iou': {'words': 'IoU', 'per_class': True}}\n",
        "relative": "from .base import Seg\nclass Mine(Seg):\n    pass\n",
        "reexported": "from mypkg import Seg\nclass Mine(Seg):\n    pass\n",
        "module": "import mypkg.base\nclass Mine(mypkg.base.Seg):\n    pass\n",
        "renamed": "import mypkg.base as b\nclass Mine(b.Seg):\n    pass\n",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("mypkg")]:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["relative", "reexported", "module", "renamed"])
def test_metrics_and_settings_are_inherited_however_the_base_is_named(package, module):
    target = f"mypkg.{module}.Mine"
    assert list(metrics_of(target)) == ["iou"]
    assert set(schema.signature(target)) == {"label_smoothing", "dropout", "pooled_norm", "zero_init_residual"}
    with pytest.raises(UserError, match="Seg"):
        schema.signature("mypkg.relative.Seg")  # imported there: no target


def test_metrics_of_further_test_sets():
    metrics = metrics_of("normlab.tasks.classification.Classification")
    assert value_of({"top1": 80.0, "test/top1": 90.0}, "test/error1", metrics) == 10.0
    assert info_of("test/top1", metrics).words == "top-1 accuracy" and info_of("test/top2", metrics) is None
    assert info_of("top1.cat", metrics) is None  # it has no values by class


def test_a_task_with_a_file_of_its_own(tmp_path, monkeypatch):
    """Its own module and a YAML, as docs/extending.md says."""
    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / "conf" / "task" / "dense.yaml").write_text("# Every pixel a class\n_target_: toy_dense.Dense\n")
    monkeypatch.setattr("normlab.config.files.conf_dir", lambda: tmp_path / "conf")
    compose._compose_files.cache_clear()
    given = ["task=dense", *words("dense.Dense", tmp_path / "runs")[1:]]
    assert main(["train", *given]) == 0
    summary = read_json(RunFolder.of(load(given)).summary_file)
    assert summary["task"] == "dense" and re.fullmatch(r"accuracy", summary["headline"]["metric"])
    compose._compose_files.cache_clear()


TABLE = """
title: Norms of the dense toy
subject: a net on blobs
task: dense
decimals: 1
seeds: [0]
scales: {toy: toy}
rows: {bn: {label: BN, overrides: [norm=bn]}, sn: {label: SN, overrides: [norm=sn]}}
columns:
  all: {label: all}
  one: {label: class 1, metric: accuracy.1}
claims:
  better_than_guessing:
    statement: SN learns
    sources: []
    tests: [{_target_: normlab.report.verdicts.lies_above, cell: [sn, all], quantity: metric, value: 34}]
"""
SCALE = """
title: toy
guessing: {accuracy: 33.3, accuracy.1: 33.3}
margin: 1.0
overrides: [batch=4x2, epochs=2, threads=1, batch_average.samples=16]
"""


def test_a_table_of_another_task_shows_any_of_its_metrics(tmp_path, monkeypatch, capsys):
    """Run, recorded and reported by one command, values by class too; a metric of another task is refused."""
    shutil.copytree(conf_dir(), tmp_path / "conf")
    written = {
        "task/dense": "# Every pixel a class\n_target_: toy_dense.Dense\n",
        "table/dense": f"# Norms of the toy\n{TABLE}",
        "scale/toy": f"# The toy's protocol\n{SCALE}",
    }
    for name, text in written.items():
        (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr("normlab.config.files.conf_dir", lambda: tmp_path / "conf")
    compose._compose_files.cache_clear()
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["reproduce", "dense", "seeds=1", "jobs=1", "scale=toy", "results=there"]) == 0
        records = read_jsonl(tmp_path / "there" / "dense-toy" / "records.jsonl")
        report = (tmp_path / "there" / "dense-toy" / "report.md").read_text()
        assert {(r["row"], r["column"], r["task"]) for r in records} == {
            (row, column, "dense") for row in ("bn", "sn") for column in ("all", "one")
        }
        for record in records:
            found = record["metrics"][record["headline"]["estimator"]]
            shown = found["accuracy" if record["column"] == "all" else "accuracy.1"]
            assert f"{shown:.1f}" in report
        assert "ixel accuracy in percent" in report
        (tmp_path / "conf" / "table" / "dense.yaml").write_text(f"# x\n{TABLE.replace('accuracy.1}', 'top1}')}")
        assert main(["report", "dense", "results=there", "scale=toy"]) == 2
        assert "dense: metric 'top1' does not exist" in capsys.readouterr().err
    finally:
        compose._compose_files.cache_clear()
