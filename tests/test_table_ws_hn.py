"""The tables of WS and HN: cells, protocols and claims, against results/paper and the papers' own numbers."""

import io
import math
import re

import pytest
import torch
from rich.console import Console

from normlab.config import identity, load
from normlab.launch.start import start
from normlab.reading import read_json, read_jsonl
from normlab.report.printed import papers, printed
from normlab.report.quantities import Measured, measured
from normlab.report.records import collect
from normlab.report.render import report
from normlab.report.runs import plan
from normlab.report.tables import load_table, tables
from normlab.report.verdicts import most_exceed
from normlab.runs.folder import RunFolder
from normlab.schema import bind

NAMES = sorted(
    name
    for name, path in tables().items()
    if name == path.stem and name.startswith(("ws_", "hn_")) and load_table(name).task is None
)
PAPER_SCALES = {  # scale file -> the protocol that it follows
    "imagenet_ws_r50": ("ws", "imagenet_resnet50"),
    "imagenet_ws_r101": ("ws", "imagenet_resnet101"),
    "cifar10_hn": ("hn", "cifar10"),
    "cifar100_hn": ("hn", "cifar100"),
    "caltech256_hn": ("hn", "caltech256"),
    "imagenet_hn": ("hn", "imagenet"),
    "mnist_hn": ("hn", "mnist_statistics"),
}


@pytest.fixture(autouse=True)
def data_folders(tmp_path, monkeypatch):
    """Loading a config asks for the folder of its data, not for what is in it."""
    for name in ("imagenet", "cifar10", "cifar100", "caltech256", "mnist"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))


def plan_of(name: str, scale: str, tmp_path):
    return plan(load_table(name), scale, [0], ["tracker=none"], tmp_path)


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_these_are_all_tables_of_classification():
    assert set(NAMES) == {
        *("ws_table1", "ws_table2", "ws_table3"),
        *("hn_fig2", "hn_fig2a", "hn_fig2b", "hn_fig3a", "hn_fig3b", "hn_fig6"),
        *(f"hn_table{i}" for i in range(2, 8)),
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hn_fig2"])  # the runs of which are other tables'
def test_every_cell_is_a_run(name, tmp_path):
    """Of its own, but for the two metrics of one run; at each scale, with as many samples an update."""
    table = load_table(name)
    for scale in table.scales:
        found = plan_of(name, scale, tmp_path)
        two_metrics = name in ("ws_table1", "ws_table3")
        assert len(found.configs) == len(found.cells) / (1 + two_metrics)
        if name.startswith("ws"):
            updates = {(found.config_of(cell).update_samples, cell.row) for cell in found.cells}
            assert {samples for samples, _ in updates} <= {256, 128} and len(updates) == len(table.rows)


@pytest.mark.parametrize("name", ["hn_fig2a", "hn_fig2b", "hn_fig3a", "hn_fig3b"])
def test_grids_take_the_mean_of_the_column_and_the_deviation_of_the_row(name, tmp_path):
    scope = {"BN": "bn", "IN": "in", "LN": "ln", "GN": "gn32", "EN": "en1", "EN_G32": "en32", "c": "bn"}
    table = load_table(name)
    for scale in table.scales:
        found = plan_of(name, scale, tmp_path)
        for cell in found.cells:
            config = found.config_of(cell)
            for moment, line in (("mean", table.columns[cell.column]), ("var", table.rows[cell.row])):
                what = line.label.split()[1]
                assert config.norm[moment] == [scope.get(what, f"en{what}")]
            assert config.batch == ("1x128" if name.endswith("a") else "1x4")


def test_tables_share_their_runs(tmp_path):
    """All of hn_fig2 and of hn_table4 at digits scale, but for SN, is run for other tables."""
    ids = {name: set(plan_of(name, "digits", tmp_path).configs) for name in NAMES}
    assert ids["hn_fig2"] == ids["hn_fig2a"] | ids["hn_fig2b"]
    assert len(ids["hn_fig2a"] & ids["hn_fig3a"]) == len(ids["hn_fig2b"] & ids["hn_fig3b"]) == 9
    assert len(ids["hn_table4"] - ids["hn_fig2"]) == 2 and ids["hn_table4"] == ids["hn_table5"]
    assert len(ids["ws_table1"] & ids["ws_table2"]) == 4


# ---- protocols -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", PAPER_SCALES)
def test_protocols_are_those_of_the_papers(scale):
    file, protocol = PAPER_SCALES[scale]
    of_paper = next(p for p in papers()[file]["protocols"] if p["id"] == protocol)["settings"]
    value = {key: setting["value"] for key, setting in of_paper.items()}
    config = load([f"scale={scale}", "tracker=none"])

    assert config.epochs == value["length"]["epochs"]
    initial = {
        key: lr for key, lr in value["lr"].items() if re.fullmatch(r"initial|(initial_)?at_\d+|initial_at_\d+", key)
    }
    stated = {key: lr for key, lr in initial.items() if isinstance(lr, float)}
    assert set(stated.values()) == {config.optim["lr"]}
    if file == "hn":
        assert config.optim["lr_batch"] == int(next(iter(stated)).rpartition("_")[2])
    else:  # the same for all models
        assert config.optim["lr_batch"] == config.update_samples
    if value["weight_decay"] is not None:
        assert (config.optim["weight_decay"], config.optim["momentum"]) == (value["weight_decay"], value["momentum"])
    every = value["lr"].get("every_epochs")
    steps = value["lr"].get("at_epochs", list(range(every, value["length"]["epochs"], every)) if every else [])
    assert config.schedule["milestones"] == steps and config.schedule["unit"] == "epochs"
    assert config.schedule["factor"] == value["lr"].get("factor", config.schedule["factor"])
    if file == "ws":
        assert config.accumulate == value["batch_setting"]["other_norms"]["iteration_size"]
        assert config.per_replica == value["batch_setting"]["other_norms"]["per_gpu"]
        assert config.update_samples == value["batch_setting"]["BN_and_BN+WS"]["total"]
    words = value["dataset"]["name"] if isinstance(value["dataset"], dict) else value["dataset"]
    assert config.choices["data"] == words.lower().replace("-", "")


def test_bn_has_the_batch_of_the_paper(tmp_path):
    """WS, Sec. 3.1 and Table 1: BN with 4x64 on ResNet-50, 4x32 on ResNet-101; the other norms with 1."""
    found = plan_of("ws_table1", "imagenet", tmp_path)
    batches = {(c.row, c.column): found.config_of(c) for c in found.cells}
    for (row, column), config in batches.items():
        per_gpu = {"r50": 64, "r101": 32}[row] if column.startswith("bn") else 1
        iterations = 1 if column.startswith("bn") else {"r50": 64, "r101": 32}[row]
        assert (config.batch, config.accumulate) == (f"4x{per_gpu}", iterations)
    own = load(["scale=imagenet_ws_r101", "norm=gn", "weight=ws", "tracker=none"])
    assert identity(batches["r101", "gn_ws_top1"]) == identity(own)  # the row says in other words what the file says


# ---- what the papers print, and what they claim ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "column", "value"),
    [  # read off the papers' text
        ("hn_fig2a", "std_en", "mean_bn", 95.18),
        ("hn_fig2a", "std_ln", "mean_in", 93.33),
        ("hn_fig2a", "std_in", "mean_ln", 93.10),
        ("hn_fig2a", "std_ln", "mean_en_g32", None),
        ("hn_fig2b", "std_en_g32", "mean_bn", 95.04),
        ("hn_fig3a", "std_1", "mean_c", 95.18),
        ("hn_fig3b", "std_8", "mean_c", 95.17),
        ("hn_table2", "2", "HN-SN", 0.58),
        ("hn_table3", "densenet121", "hn_g8", 95.11),
        ("hn_table4", "128", "bn", 77.91),
        ("hn_table5", "4", "hn_g32", 60.16),
        ("hn_table6", "4", "gn", 69.08),
        ("hn_table7", "hn_sn_in_ln", "4", 61.15),
        ("ws_table1", "r101", "gn_ws_top1", 22.10),
        ("ws_table1", "r50", "bn_ws_top5", 7.13),
        ("ws_table2", "gn_ws_af", "top1", 29.43),
        ("ws_table3", "rx101", "gn_top1", 29.84),
    ],
)
def test_printed_numbers(name, row, column, value):
    assert printed(load_table(name)).values[row, column] == value


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_numbers_bear_out_their_claims(name):
    """So no test has its cells the wrong way round."""
    table = load_table(name)
    values = {(*cell, 0): value for cell, value in printed(table).values.items() if value is not None}
    theirs = Measured({"metric": values})
    margin = table.scale(list(table.scales)[-1]).margin
    evidence = {key: [bind(test)(theirs, margin) for test in claim.tests] for key, claim in table.claims.items()}
    against = {key for key, found in evidence.items() if any(e.effect <= e.threshold for e in found)}
    assert not against
    if table.paper:
        assert any(not math.isnan(e.effect) for found in evidence.values() for e in found)


def test_most_exceed():
    """Seed 0: two of three ahead; seed 1: one ahead, one level, and one of the two runs missing."""
    values = {("a", "x", 0): 2.0, ("b", "x", 0): 2.0, ("c", "x", 0): 0.0, ("a", "y", 0): 1.0, ("b", "y", 0): 1.0}
    values |= {("c", "y", 0): 1.0, ("a", "x", 1): 2.0, ("a", "y", 1): 1.0, ("b", "x", 1): 1.0, ("b", "y", 1): 1.0}
    pairs = [[[row, "x"], [row, "y"]] for row in "abc"]
    evidence = most_exceed(Measured({"metric": values}), 1.0, pairs=pairs)
    assert evidence.effect == pytest.approx((2 / 3 + 3 / 4) / 2) and evidence.seeds == 2
    assert evidence.p == pytest.approx(0.5 - math.atan((5 / 24) / (1 / 24)) / math.pi)  # t with one degree is Cauchy's


# ---- from runs to a report -------------------------------------------------------------------------------------------

SMALL = ["data.fraction=0.2", "iterations=4", "threads=1"]


def run_and_report(name: str, wanted: set[tuple[str, str]], folder, extra: list[str]):
    """The records and quantities of some cells of a table at digits scale, and its report as Markdown."""
    table = load_table(name)
    found = plan(table, "digits", [0], ["tracker=none", f"out={folder / 'runs'}", *SMALL, *extra], folder)
    found.cells = [cell for cell in found.cells if (cell.row, cell.column) in wanted]
    for cell in found.cells:
        config = found.config_of(cell)
        run = RunFolder.of(config)
        assert run.is_over or start(config, run) == "finished"
    records = collect(table, found.cells, found.runs(), found.ids, found.folder)
    report(table, "digits", folder, Console(file=io.StringIO(), width=100))
    text = (found.folder / "report.md").read_text(encoding="utf-8")
    return found, records, measured(records, table, 10.0), text


def test_a_table_of_weight_standardization_from_end_to_end(tmp_path):
    wanted = {("gn_ws", "top1"), ("bn", "top1"), ("gn_wn", "top1")}
    found, records, quantities, text = run_and_report("ws_table2", wanted, tmp_path, ["model.width=8", "iterations=2"])
    by_row = {record["row"]: record for record in records}
    assert by_row["gn_ws"]["accumulate"] == 8 and by_row["gn_ws"]["batch"] == "32x1"
    assert by_row["gn_ws"]["weight"] == "ws" and by_row["gn_wn"]["weight"] == "wn"
    top1 = by_row["bn"]["metrics"]["moving_average"]["top1"]
    assert quantities.of("metric", ("bn", "top1")) == {0: pytest.approx(100 - top1)}
    run = next(r for r, cell in zip(found.runs(), found.cells, strict=True) if cell.row == "gn_ws")
    rows = [layer for line in read_jsonl(run.gradients) for layer in line["layers"]]
    share = sum(row["division"] for row in rows) / len(rows)
    assert quantities.of("taken.division", ("gn_ws", "top1")) == {0: pytest.approx(share)}
    assert not quantities.of("taken.division", ("gn_wn", "top1"))
    assert "23.72" in text and "missing" in text and "top-1 error" in text.lower()


def test_the_statistics_of_the_mnist_network_from_end_to_end(tmp_path):
    wanted = {("128", "bn"), ("4", "bn")}
    found, _, quantities, text = run_and_report("hn_fig6", wanted, tmp_path, ["model.width=8"])
    run = next(r for r, cell in zip(found.runs(), found.cells, strict=True) if cell.row == "4")
    steps = read_jsonl(run.statistics)
    assert read_json(run.summary_file)["updates"] == len(steps) == 4
    spreads, distances = [], []
    for layer in range(4):
        mean_TC = torch.tensor([step["layers"][layer]["bn_mean"] for step in steps], dtype=torch.float64)
        en_T = torch.tensor([step["layers"][layer]["en_mean"] for step in steps], dtype=torch.float64)
        spreads.append(mean_TC.std(0).mean().item())
        distances.append((mean_TC - en_T[:, None]).abs().mean().item())
    cell = ("4", "bn")
    assert quantities.of("fluctuation.bn_mean", cell)[0] == pytest.approx(sum(spreads) / 4)
    assert quantities.of("fluctuation.bn_mean.first", cell)[0] == pytest.approx(spreads[0])
    assert quantities.of("fluctuation.bn_mean.later", cell)[0] == pytest.approx(sum(spreads[1:]) / 3)
    assert quantities.of("apart.mean", cell)[0] == pytest.approx(sum(distances) / 4)
    assert "Claims" in text
