"""Runs of a table: which cells share one, which begin from another, and that nothing runs twice."""

import io
import json
import re
import shutil
import signal
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import Told
from rich.console import Console

from normlab.config import identity, load
from normlab.engine import provenance
from normlab.errors import UserError
from normlab.launch.start import start
from normlab.progress import silent
from normlab.reading import read_jsonl
from normlab.report import quantities
from normlab.report.metrics import guessed, quantities_of
from normlab.report.quantities import measured, of_layers
from normlab.report.records import collect
from normlab.report.results import load_results
from normlab.report.runs import plan
from normlab.report.table import BatchAverage, Line, Scale, Start, Table, cells
from normlab.report.tables import all_tables, load_table
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder
from normlab.runs.lock import locked
from normlab.sweeps import reproduce as module
from normlab.sweeps.reproduce import reproduce
from normlab.tasks.metrics import MetricInfo, metrics_of

HARD = load_table("distinct_hard")


def made_table(**settings) -> Table:
    """SN with its BN part measured in three ways, and hard SN that goes on from 50% of it; both metrics of each."""
    rows = {
        "sn": Line("SN", ["norm=sn"]),
        "moving": Line("moving", ["norm=sn"], estimator="moving_average"),
        "anew": Line("anew", ["norm=sn"], estimator=BatchAverage("64", "population", False)),
        "hard": Line("hard", ["norm=sn_hard"], start=Start(row="sn", at=0.5, goes_on=True)),
        "again": Line("again", ["norm=sn_hard"], start=Start(row="sn", at=0.5, take="ratios")),
        "tuned": Line("tuned", ["norm=sn"], start=Start(row="hard", at=1)),
    }
    columns = {"top1": Line("top1", metric="top1"), "error5": Line("error5", metric="error5")}
    return Table("made", "A made table", 1, [0], {"digits": "digits"}, rows, columns, **settings)


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_cells_of_one_run_share_it(tmp_path):
    found = plan(made_table(), "digits", [0, 1], [], tmp_path)
    assert len(found.cells) == 6 * 2 * 2 and len(found.configs) == 4 * 2
    assert len({found.ids[row, column, 1] for row in ("sn", "moving", "anew") for column in ("top1", "error5")}) == 1
    assert list(found.ids.values()) == [identity(found.config_of(cell)) for cell in found.cells]


def test_tables_share_their_runs(tmp_path):
    """The runs of SN's inference study are all of Table 2."""
    table2 = plan(load_table("table2"), "digits", [0], [], tmp_path)
    inference = plan(load_table("sn_inference"), "digits", [0], [], tmp_path)
    assert set(inference.configs) < set(table2.configs)
    hard = plan(HARD, "digits", [0], [], tmp_path)
    sparse = plan(load_table("sn_variants"), "digits", [0], [], tmp_path)
    assert sparse.ids["sparse", "top1", 0] == hard.ids["30", "finetune_top1", 0]


@pytest.mark.parametrize(("scale", "epochs"), [("digits", 30), ("cifar10", 30), ("imagenet", 100)])
def test_going_on_is_the_rest_of_the_other_run(tmp_path, monkeypatch, scale, epochs):
    """Its epochs and its milestones, wherever the protocol counts them from."""
    monkeypatch.setattr("normlab.config.compose.check_paths", lambda config: None)
    table = HARD
    table.scales |= {"cifar10": "cifar10_sn"}
    found = plan(table, scale, [0], [], tmp_path)
    soft = found.ids["soft", "scratch_top1", 0]
    assert found.configs[soft].snapshots == [0.3, 0.6, 0.9] and found.configs[soft].init == "none"
    for row, rest, milestones in (("30", 0.7, [0, 0.3, 0.6]), ("60", 0.4, [0, 0, 0.3]), ("90", 0.1, [0, 0, 0])):
        config = found.configs[found.ids[row, "finetune_top1", 0]]
        assert config.init == f"{soft}@0.{row[0]}" and config.epochs == rest * epochs
        assert config.schedule["unit"] == "epochs"
        assert config.schedule["milestones"] == pytest.approx([m * epochs for m in milestones])
        scratch = found.configs[found.ids[row, "scratch_top5", 0]]
        assert scratch.init == f"{soft}@0.{row[0]}:ratios" and scratch.epochs == epochs
        assert scratch.schedule == found.configs[soft].schedule


@pytest.mark.parametrize("words", [["schedule=cosine"], ["iterations=3"], ["schedule.warmup=1"]])
def test_going_on_needs_a_step_schedule(tmp_path, words):
    with pytest.raises(UserError, match=r"start\.goes_on needs a run in epochs, on a step schedule"):
        plan(HARD, "digits", [0], words, tmp_path)


# ---- running ---------------------------------------------------------------------------------------------------------

SMALL = ["epochs=2", "data.fraction=0.1", "model.width=4", "batch=4x8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    table = made_table()
    words = [*SMALL, f"out={folder / 'runs'}"]
    assert reproduce([table], "digits", 1, 2, words, folder) == 0
    return table, words, folder


def test_every_cell_is_measured(run):
    table, words, folder = run
    results = load_results(table, "digits", folder)
    assert all(entry.missing == 0 for entry in results.entries.values())
    assert len(list((folder / "runs").glob("*/run.json"))) == 4
    summary = RunFolder.of(
        plan(table, "digits", [0], words, folder).config_of(cells(table, "digits", [0])[0])
    ).summary()
    for row, estimator in (("sn", "batch_average"), ("moving", "moving_average")):
        assert results.entries[row, "top1"].mean == summary["metrics"][estimator]["top1"]
        assert results.entries[row, "error5"].mean == 100 - summary["metrics"][estimator]["top5"]


def test_an_estimate_is_measured_once(run):
    table, words, folder = run
    (run_folder,) = {one.path for one, _ in plan(table, "digits", [0], words, folder).measurements()}
    (row,) = read_jsonl(run_folder / "estimates.jsonl")
    assert (row["samples"], row["variance"], row["augment"]) == ("64", "population", False)
    assert load_results(table, "digits", folder).entries["anew", "top1"].mean == row["top1"]


def test_a_run_that_another_command_is_at_costs_its_own_measurement_alone(run, tmp_path):
    """As in a sweep: the rest is recorded, and the same command goes on with it."""
    table, _, folder = run
    copy = Path(shutil.copytree(folder, tmp_path / "made"))
    words = [*SMALL, f"out={copy / 'runs'}"]
    measured, _ = next(plan(table, "digits", [0], words, copy).measurements())
    (measured.path / "estimates.jsonl").unlink()
    (copy / "made-digits" / "records.jsonl").unlink()
    with locked(measured.path):
        assert reproduce([table], "digits", 1, 1, words, copy) == 1
    rows = {record["row"] for record in read_jsonl(copy / "made-digits" / "records.jsonl")}
    assert rows == table.rows.keys() - {"anew"}
    assert reproduce([table], "digits", 1, 1, words, copy) == 0
    assert load_results(table, "digits", copy).entries["anew", "top1"].missing == 0


def test_a_start_takes_what_it_says(run):
    """Fine-tuning has gone on with the snapshot's weights; from scratch, only the choices are the snapshot's."""
    table, words, folder = run
    found = plan(table, "digits", [0], words, folder)
    paths = {row: RunFolder.of(found.configs[found.ids[row, "top1", 0]]) for row in table.rows}
    assert paths["hard"].config().epochs == 1 and paths["tuned"].config().init == f"{found.ids['hard', 'top1', 0]}@1"
    half = load_tensors(paths["sn"].path / "snapshots" / "0.5.safetensors")
    choices = {row: read_jsonl(paths[row].ratios)[0]["layers"] for row in ("hard", "again")}
    for layer, again in zip(choices["hard"], choices["again"], strict=True):
        assert layer["mean"] == again["mean"] and layer["var"] == again["var"]
        chosen = list(layer["mean"])[int(half[f"{layer['layer']}.mean_logits"].argmax())]
        assert layer["mean"][chosen] == 1


def test_nothing_runs_twice(run, monkeypatch):
    table, words, folder = run
    for name in ("sweep", "estimate_run"):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(name) if name == "estimate_run" else 0)
    before = (folder / "made-digits" / "records.jsonl").read_text()
    assert reproduce([table], "digits", 1, 1, words, folder) == 0
    assert (folder / "made-digits" / "records.jsonl").read_text() == before


def test_a_lost_snapshot_is_made_again(run, tmp_path):
    """The run is the same; only one that begins from it, and has not run, needs it."""
    table, words, folder = run
    found = plan(table, "digits", [0], words, folder)
    assert not any(config.rerun for config in module._shared([found]).values())
    snapshot = RunFolder.of(found.configs[found.ids["sn", "top1", 0]]).path / "snapshots" / "0.5.safetensors"
    aside = snapshot.rename(tmp_path / "aside")
    assert not any(config.rerun for config in module._shared([found]).values())
    hard = RunFolder.of(found.configs[found.ids["hard", "top1", 0]])
    hard.set_status("interrupted")
    fresh = plan(table, "digits", [0], words, folder)
    again = [run_id for run_id, config in module._shared([fresh]).items() if config.rerun]
    assert again == [found.ids["sn", "top1", 0]]
    aside.rename(snapshot)
    hard.set_status("finished")


def test_a_run_without_what_a_table_records_is_made_again(run):
    """Batch averages of each epoch are no part of a run's identity; a table may ask for them of another's run."""
    table, words, folder = run
    first = plan(table, "digits", [0], words, folder)
    asks = plan(table, "digits", [0], [*words, "record.estimators=true"], folder)
    assert first.ids == asks.ids
    for plans in ([first, asks], [asks, first]):
        shared = module._shared(plans)
        assert all(config.record.estimators and config.rerun for config in shared.values())
    assert not any(config.rerun for config in module._shared([plan(table, "digits", [0], words, folder)]).values())


def test_a_scale_says_how_many_seeds(tmp_path, monkeypatch, capsys):
    """Where its pilots do; else the table, and always the command first."""
    table = load_table("sn_gamma")
    monkeypatch.setattr(type(table), "protocol", lambda self, file: Scale("t", 10, 1.0, ["epochs=1"], seeds=5))
    for asked, number in ((None, 5), (2, 2)):
        assert reproduce([table], "digits", asked, 1, [f"out={tmp_path}"], tmp_path, dry=True) == 0
        assert f"{4 * number} cells of {4 * number} runs" in capsys.readouterr().out


def test_records_of_other_seeds_stay_while_their_settings_do(run, tmp_path):
    table, words, folder = run
    into = tmp_path / "made-digits"
    into.mkdir()
    found = plan(table, "digits", [0], words, folder)
    records = read_jsonl(folder / "made-digits" / "records.jsonl")
    later = plan(table, "digits", [1], words, folder)
    same = records[0] | {"seed": 1, "id": later.ids["sn", "top1", 1]}
    other = records[0] | {"seed": 1, "column": "error5", "id": "00000000"}
    (into / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (same, other)))
    ids = plan(table, "digits", [0], words, tmp_path).ids
    kept = collect(table, found.cells, found.runs(), ids, into, found.changed)
    assert len(kept) == len(records) + 1 and [r for r in kept if r["seed"] == 1] == [same]


def test_records_that_came_while_a_reproduction_ran_stay(run, tmp_path):
    """One planned with seed 0 alone ends after another has recorded seed 1."""
    table, words, folder = run
    found = plan(table, "digits", [0], words, tmp_path)  # when nothing was recorded
    records = read_jsonl(folder / "made-digits" / "records.jsonl")
    others = [record | {"seed": 1, "id": "12345678"} for record in records]
    into = tmp_path / "made-digits"
    into.mkdir()
    (into / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, *others]))
    kept = collect(table, found.cells, found.runs(), found.ids, into, found.changed)
    assert sorted(record["seed"] for record in kept) == len(records) * [0] + len(others) * [1]


def test_what_was_changed_stays_in_the_records(run, tmp_path):
    table, words, folder = run
    found = plan(table, "digits", [0], ["tracker=none", "out=there", "checkpoint.keep=1", "epochs=1"], tmp_path)
    assert found.changed == ["epochs=1"] and plan(table, "digits", [0], ["tracker=none"], tmp_path).changed == []
    ours = plan(table, "digits", [0], words, folder)
    science = [word for word in words if not word.startswith(("out=", "tracker="))]
    assert ours.changed == science
    assert all(one["changed"] == science for one in read_jsonl(folder / "made-digits" / "records.jsonl"))
    for other, name in ([*words, "epochs=1"], "epochs=1"), ([f"out={tmp_path}"], "the scale as it is"):
        with pytest.raises(UserError, match=f"made-digits holds records of .* and this is .*{name}; results=FOLDER"):
            reproduce([table], "digits", 1, 2, other, folder)


def test_what_cannot_begin_is_not_run(run, tmp_path, monkeypatch):
    table, words, _ = run
    console = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(module, "PlainConsole", lambda: console)
    monkeypatch.setattr(module, "sweep", lambda configs, jobs: 1)  # all fail
    assert reproduce([table], "digits", 1, 1, [*words, f"out={tmp_path}"], tmp_path) == 1
    assert console.file.getvalue().count("which it begins from, has not finished") == 3


# ---- quantities ------------------------------------------------------------------------------------------------------


def test_guessing():
    metrics = metrics_of("normlab.tasks.classification.Classification")
    both = {"top1": 10.0, "top5": 50.0}
    assert [guessed(metric, both, metrics) for metric in ("top1", "top5", "error1", "error5")] == [10, 50, 90, 50]
    assert guessed("error1", 0.1, metrics) == 99.9
    with pytest.raises(UserError, match="guessing: there is no value for top5; expected one beside top1"):
        guessed("top5", 0.1, metrics)


def test_every_scale_says_what_guessing_gives_of_all_that_its_tables_show():
    for table in all_tables():
        for name in table.scales:
            for row, column in product(table.rows, table.columns):
                assert guessed(table.metric_of(row, column), table.scale(name).guessing, table.metrics) >= 0


def layer(field: int, mean: tuple, var: tuple) -> dict:
    ratios = {moment: dict(zip(("in", "ln", "bn"), r, strict=True)) for moment, r in (("mean", mean), ("var", var))}
    return {"layer": "x", "receptive_field": field} | ratios


LAYERS = [
    layer(7, (0.2, 0.2, 0.6), (0.5, 0.3, 0.2)),
    layer(47, (0.2, 0.3, 0.5), (0.3, 0.3, 0.4)),
    layer(300, (0.2, 0.4, 0.4), (0.1, 0.8, 0.1)),
]


def test_quantities_of_layers():
    found = of_layers(LAYERS)
    assert found["differing"] == pytest.approx(1 / 3)  # the last has LN, the first declared of equal ones, for both
    assert found["depth.mean.bn"] == pytest.approx(-0.2) and found["depth.mean.ln"] == pytest.approx(0.2)
    assert found["depth.mean.in"] == pytest.approx(0)
    assert found["first.var.in"] == 0.5 and found["ratio.mean.bn.<49"] == pytest.approx(0.55)
    assert found["ratio.var.ln.>299"] == 0.8 and "ratio.var.ln.49-99" not in found
    assert found["divergence.>299"] > found["divergence"] > found["divergence.<49"] > 0
    assert of_layers([]) == {} and of_layers([{"mean": {"bn": 1.0}, "var": {"bn": 1.0}}]) == {}


def test_quantities_of_a_run(run):
    table, _, folder = run
    (record,) = (
        r for r in read_jsonl(folder / "made-digits" / "records.jsonl") if (r["row"], r["column"]) == ("sn", "top1")
    )
    choices = {"0.3": [["in", "bn"], ["bn", "bn"]], "0.6": [["in", "in"], ["bn", "bn"]]}
    epochs = {"train/loss": [2.0, 0.5], "train/top1": [40.0, 90.0], "val/top1": [50.0, 80.0]}
    found = measured([record | {"choices": choices, "epochs_of": epochs}], table, 10.0)
    expected = {"differing@0.3": 0.5, "differing@0.6": 0, "changed@0.3@0.6": 0.5}
    expected |= {"learning": 65.0, "train.loss": 0.5, "gap": 10.0, "early_lead": 10.0, "setbacks": 0.0}
    expected |= {"metric": record["metrics"]["batch_average"]["top1"], "ratio.mean.bn": record["ratios"]["mean"]["bn"]}
    assert {name: found.of(name, ("sn", "top1"))[0] for name in expected} == pytest.approx(expected)


def test_records_tell_of_every_epoch_and_of_the_choices(run):
    table, words, folder = run
    config = load([*cells(table, "digits", [0], words)[0].overrides])
    rows = read_jsonl(RunFolder.of(config).ratios)
    (record,) = (
        r for r in read_jsonl(folder / "made-digits" / "records.jsonl") if (r["row"], r["column"]) == ("sn", "top1")
    )
    updates = record["updates"]
    assert record["epochs_of"]["step"] == [updates // 2, updates]
    assert len(record["epochs_of"]["val/top1"]) == 2 and len(record["layers"]) == 9
    at_60 = max((row for row in rows if row["step"] <= 0.6 * record["updates"] + 0.5), key=lambda row: row["step"])
    assert record["choices"]["0.6"] == [
        [max(one[moment], key=one[moment].get) for moment in ("mean", "var")] for one in at_60["layers"]
    ]


def test_learning_is_higher_for_the_better_whatever_the_metric():
    record = {"headline": {"metric": "error"}, "epochs_of": {"train/loss": [3.0, 1.0], "val/error": [0.5, 0.1]}}
    lower = {"error": MetricInfo("squared error", unit="", better="lower")}
    assert quantities._of_epochs(record, lower) == {"train.loss": 1.0, "learning": pytest.approx(-0.3), "setbacks": 0}
    measured_too = record["epochs_of"] | {"val_batch_average/error": [0.2, 0.5, 0.4, 0.6]}
    found = quantities._of_epochs(record | {"epochs_of": measured_too}, lower)
    assert found["batch_average.learning"] == pytest.approx(-0.425)
    assert found["batch_average.setbacks"] == pytest.approx(0.3 + 0.2)
    assert quantities._of_epochs(record, {"error": MetricInfo("hits")})["learning"] == pytest.approx(0.3)
    both = record["epochs_of"] | {"train/error": [0.4, 0.2]}
    found = quantities._of_epochs(record | {"epochs_of": both}, lower)
    assert found["gap"] == pytest.approx(-0.1) and found["early_lead"] == pytest.approx(-0.1)


def test_the_area_under_a_curve_is_its_mean_height_between_evaluations():
    """By numpy's trapezoids, also where evaluations are not evenly spaced; of headline and curves alone."""
    metrics = {
        "content": MetricInfo("content loss", unit="", better="lower"),
        "style": MetricInfo("style loss", unit="", better="lower", curve=True),
        "tv": MetricInfo("total variation", unit="", better="lower"),
        "hits": MetricInfo("hits", curve=True),
    }
    steps, style, hits = [10, 20, 50], [9.0, 4.0, 1.0], [10.0, 30.0, 50.0]
    epochs = {"step": steps, "train/loss": [1.0] * 3, "val/content": [3.0, 2.0, 2.5], "val/tv": [1.0] * 3}
    epochs |= {"val/style": style, "val_batch_average/style": style[::-1], "val/hits": hits}
    found = quantities._of_epochs({"headline": {"metric": "content"}, "epochs_of": epochs}, metrics)
    areas = {name: value for name, value in found.items() if "area." in name}
    assert areas == pytest.approx({
        "area.content": -np.trapezoid([3, 2, 2.5], steps) / 40,
        "area.style": -np.trapezoid(style, steps) / 40,
        "batch_average.area.style": -np.trapezoid(style[::-1], steps) / 40,
        "area.hits": np.trapezoid(hits, steps) / 40,
    })  # fmt: skip
    assert set(areas) < set(quantities_of(metrics)) and "area.tv" not in quantities_of(metrics)
    older = {name: values for name, values in epochs.items() if name != "step"}
    assert not [n for n in quantities._of_epochs({"headline": {"metric": "content"}, "epochs_of": older}, metrics)
                if "area" in n]  # fmt: skip


def test_a_run_that_learns_faster_has_the_larger_area():
    """Of two curves with one start and one end."""
    metrics = {"style": MetricInfo("style loss", unit="", better="lower")}

    def area(curve):
        epochs = {"step": [0, 1, 2], "train/loss": [0.0] * 3, "val/style": curve}
        return quantities._of_epochs({"headline": {"metric": "style"}, "epochs_of": epochs}, metrics)["area.style"]

    assert area([8.0, 2.0, 1.0]) > area([8.0, 6.0, 1.0])


# ---- versions --------------------------------------------------------------------------------------------------------


def test_what_another_version_made_is_run_again_on_demand(run, tmp_path, monkeypatch, capsys):
    """--renew: all of it under the new version, seeds beyond those asked for too; without it nothing runs."""
    table, words, folder = run
    shutil.copytree(folder, tmp_path / "all")
    words = [*SMALL, f"out={tmp_path / 'all' / 'runs'}"]
    monkeypatch.setattr("normlab.engine.provenance._code", lambda modules: "22222222")
    assert reproduce([table], "digits", 1, 1, words, tmp_path / "all", dry=True) == 0
    assert "4 runs, 0 of them missing" in capsys.readouterr().out
    assert reproduce([table], "digits", 1, 1, words, tmp_path / "all", dry=True, renew=True) == 0
    assert "4 runs, 4 of them missing" in capsys.readouterr().out


def test_records_say_by_what_they_were_made(run):
    made = {tuple(record["made_by"]) for record in read_jsonl(run[2] / "made-digits" / "records.jsonl")}
    ((by,),) = made
    torch_and_kernels = rf"torch {re.escape(torch.__version__)}, (C\+\+ kernels|torch operations)"
    assert re.fullmatch(rf"code [0-9a-f]{{8}}, {torch_and_kernels}", by)


def test_a_run_that_goes_on_under_another_version_says_both(tmp_path, monkeypatch, caplog):
    words = [*SMALL, "tracker=none", f"out={tmp_path}", "checkpoint.every=0.5"]
    config = load(words)
    folder = RunFolder.of(config)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "training" and done == 3:
            signal.raise_signal(signal.SIGINT)

    assert start(config, folder, Told(interrupt)) == "interrupted"
    monkeypatch.setattr("normlab.engine.provenance._code", lambda modules: "22222222")
    assert start(load(words), folder, silent) == "finished"
    made_by = folder.summary()["made_by"]
    assert len(made_by) == 2 and made_by[1].startswith("code 22222222")
    assert "goes on with code 22222222" in caplog.text


def test_code_that_computes_is_told_from_code_that_does_not(tmp_path, monkeypatch):
    """Another byte of a layer is another version, one of a report or of a page is not."""
    package = shutil.copytree(Path(provenance.__file__).parents[1], tmp_path / "normlab")
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    digest = provenance._code.__wrapped__
    before = digest(())
    for name, computes in (
        ("norm/algebra.py", True), ("norm/kernels/native.cpp", True), ("replicas.py", True), ("engine/phase.py", True),
        ("report/render.py", False), ("figures/bars.py", False), ("cli/main.py", False), ("runs/folder.py", False),
    ):  # fmt: skip
        file = package / name
        assert file.is_file(), name
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert (digest(()) != before) == computes, name
        file.write_bytes(content)
    assert digest(("toy_failing",)) != before == digest(())
