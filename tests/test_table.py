"""Tables as data: what conf/table and conf/scale say, against results/paper and the papers' protocol."""

import io
import shutil
import subprocess
import sys

import data_files
import pytest
import yaml
from rich.console import Console

from normlab.config import conf_dir, identity, load
from normlab.errors import UserError
from normlab.launch.start import start
from normlab.reading import read_jsonl
from normlab.report import table as table_module
from normlab.report.printed import paper_dir, printed
from normlab.report.records import collect, table_folder
from normlab.report.render import report
from normlab.report.results import load_results
from normlab.report.runs import plan
from normlab.report.table import cells
from normlab.report.tables import load_table, tables
from normlab.runs.folder import RunFolder

TABLE = load_table("sn_table2")
IMAGENET = TABLE.scales["imagenet"]


@pytest.fixture
def real_layout(tmp_path, monkeypatch):
    """CIFAR-10 and ImageNet as they lie on disk, with a few noise images."""
    data_files.write_cifar10(tmp_path / "cifar10")
    for split in ("train", "val"):
        folder = tmp_path / "imagenet" / split
        data_files.write_class_folders(folder, ["n01440764", "n01443537"], 4, ".JPEG")
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    return tmp_path


# ---- tables and their cells ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tables())
def test_every_table_is_sound(name):
    table = load_table(name)
    values = printed(table).values
    assert table.default_scale in table.scales and table.claims
    assert all(claim.tests and bool(claim.sources) == (name != "light") for claim in table.claims.values())
    assert any(value is not None for value in values.values()) == bool(table.paper)
    for scale in table.scales:
        assert len(cells(table, scale, table.seeds)) == len(table.rows) * len(table.columns) * len(table.seeds)


def test_table2_is_another_name():
    assert load_table("table2") == TABLE


def test_cells_of_table2():
    found = cells(TABLE, "digits", [0, 1, 2])
    assert len({(c.row, c.column, c.seed) for c in found}) == len(found) == 3 * 9 * 3
    for cell in found:
        assert f"batch={cell.column}" in cell.overrides and f"seed={cell.seed}" in cell.overrides
        norm = "sn_in_ln" if (cell.row, cell.column) == ("sn", "8x1") else cell.row
        assert [word for word in cell.overrides if word.startswith("norm=")] == [f"norm={norm}"]


OURS = [
    name
    for name in tables()
    if name.startswith(("distinct_", "sn_")) and name != "sn_table2" and "digits" in load_table(name).scales
]


@pytest.mark.parametrize("scale", ["digits", "imagenet"])
@pytest.mark.parametrize("name", OURS)
def test_every_run_loads(real_layout, tmp_path, name, scale):
    """And has a batch setting of its own, and the seed."""
    found = plan(load_table(name), scale, [3], [], tmp_path)
    for cell in found.cells:
        config = found.config_of(cell)
        assert config.seed == 3 and f"batch={config.batch}" in cell.overrides
        assert config.epochs <= {"digits": 30, "imagenet": 100}[scale]


def test_a_groups_file_replaces_what_was_set_in_it():
    table = load_table("distinct_factors")
    table.rows = {"a": table_module.Line("a", ["optim=rmsprop", "optim.eps=0.5"])}
    (found, _) = cells(table, "digits", [0])
    assert [word for word in found.overrides if word.startswith("optim")] == ["optim=rmsprop", "optim.eps=0.5"]


def test_overrides_by_scale():
    table = load_table("distinct_depths")
    for scale, model in (("digits", "model=digits_resnet_deep"), ("imagenet", "model=resnet101")):
        words = {cell.column: cell.overrides for cell in cells(table, scale, [0])}
        assert model in words["r101_top1"] and model not in words["r50_top1"]
        assert words["r101_top1"] == words["r101_top5"]


def test_later_words_win():
    (first, *_) = cells(TABLE, "digits", [0], extra=["epochs=1", "seed=7", "tracker=none"])
    assert {"epochs=1", "seed=7", "tracker=none"} < set(first.overrides)
    keys = [word.partition("=")[0] for word in first.overrides]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("scale", TABLE.scales)
def test_every_config_loads(real_layout, scale):
    for cell in cells(TABLE, scale, [0]):
        config = load(cell.overrides)
        assert config.batch == cell.column and config.seed == 0
        sees_the_batch = "bn" in config.norm["mean"]
        assert sees_the_batch == (cell.row == "bn" or (cell.row == "sn" and cell.column != "8x1"))


def test_digits_are_the_default_settings():
    """So that a sweep typed by hand and the table share their runs."""
    for cell in cells(TABLE, "digits", [1])[::4]:
        norm = next(word for word in cell.overrides if word.startswith("norm="))
        assert identity(load(cell.overrides)) == identity(load([norm, f"batch={cell.column}", "seed=1"]))


# ---- the paper's protocol --------------------------------------------------------------------------------------------


def protocol(paper: str) -> dict:
    content = yaml.safe_load((paper_dir() / f"{paper}.yaml").read_text(encoding="utf-8"))
    (found,) = (p for p in content["protocols"] if p["id"] == "imagenet")
    return {key: setting["value"] for key, setting in found["settings"].items()}


def test_imagenet_is_the_papers_protocol(real_layout):
    said = protocol("sn_iclr")
    tpami = protocol("sn_tpami")
    for key in ("length", "batch_setting", "optimizer", "weight_decay", "init"):
        assert said[key] == tpami[key]
    assert said["lr"].items() < tpami["lr"].items() and tpami["lr"]["scaling"].startswith("linear")
    found = cells(TABLE, "imagenet", [0])
    assert sorted({f"({c.column.replace('x', ',')})" for c in found}) == sorted(said["batch_setting"])
    for cell in found:
        config = load(cell.overrides)
        assert config.model["name"] == said["model"].lower() == "resnet50"
        assert config.choices["data"] == "imagenet" and config.data["size"] == 224 and config.data["augment"]
        assert config.data["fraction"] == 1
        assert config.epochs == said["length"]["epochs"] and config.iterations is None
        assert config.optim["_target_"].endswith(".sgd") and said["optimizer"] == "SGD"
        assert config.optim["lr"] == said["lr"]["initial"]
        assert config.optim["lr_batch"] == 8 * 32
        assert config.optim["weight_decay"] == said["weight_decay"] and config.optim["decay"] == "all"
        assert config.optim["momentum"] == 0.9 and not config.optim["nesterov"]
        schedule = config.schedule
        assert schedule["milestones"] == said["lr"]["after_epochs"] and schedule["unit"] == "epochs"
        assert schedule["factor"] == said["lr"]["factor"] and schedule["warmup"] == 0
        assert config.weight is None and config.init == "none" and config.parts == {} and config.accumulate == 1
        assert config.norm_dropout == config.task["label_smoothing"] == config.task["dropout"] == 0
        assert config.estimator == "paper" and config.precision == "fp32"
        average = config.batch_average
        assert (average.num_samples, average.variance, average.augment) == (50_000, "mean", True)


def test_reductions_keep_all_but_data_model_and_length(real_layout):
    cifar, imagenet = (load(cells(TABLE, scale, [0])[0].overrides).to_dict() for scale in ("cifar10", "imagenet"))
    differing = {key for key in cifar if cifar[key] != imagenet[key]}
    assert differing == {"model", "data", "epochs", "schedule", "choices"}
    for config in (cifar, imagenet):
        config["schedule"]["milestones"] = [m / config["epochs"] for m in config["schedule"]["milestones"]]
    assert cifar["schedule"] == imagenet["schedule"]


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_unknown_names():
    with pytest.raises(UserError, match="table 'tabel2' does not exist; did you mean 'table2'"):
        load_table("tabel2")
    with pytest.raises(UserError, match="scale 'imagnet' does not exist; did you mean 'imagenet'"):
        cells(TABLE, "imagnet", [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("metric: top1", "metrik: top1"), "metrik: there is no such setting; did you mean 'metric'"),
        (("metric: top1", "metric: top2"), "sn_table2: metric 'top2' does not exist; did you mean"),
        (("decimals: 1", "decimals: one"), "decimals=one: expected a whole number"),
        (
            ("label: BN, overrides", "lable: BN, overrides"),
            "rows.bn.lable: there is no such setting; did you mean 'label'",
        ),
        (("table: table2", "table: table22"), "sn_iclr: table 'table22' does not exist; did you mean 'table2'"),
        (("file: sn_iclr", "file: sn_icrl"), "'sn_icrl' does not exist; did you mean 'sn_iclr'"),
        (("label: BN,", "label: BM,"), "sn_iclr table2: row 'BM' does not exist"),
        (('"(8,32)"', '"(8,23)"'), r"column '\(8,23\)' does not exist"),
        (("column: 8x1\n", "column: 8x11\n"), "column '8x11' does not exist; did you mean '8x1'"),
        (("minus: bn", "minus: bm"), "row 'bm' does not exist; did you mean 'bn'"),
        (("of: [gn, 8x2]", "of: [gn, 8x3]"), "column '8x3' does not exist"),
        (("verdicts.exceeds, of", "verdicts.exceed, of"), "defines no exceed; did you mean 'exceeds'"),
        (
            ("quantity: early_lead", "quantity: early_led"),
            "quantity 'early_led' does not exist; did you mean 'early_lead'",
        ),
        (
            ("than: [sn, 8x2]}", "than: [sn, 8x2], than_quantity: gab}"),
            "quantity 'gab' does not exist; did you mean 'gap'",
        ),
        (
            ("      - {_target_: normlab.report.verdicts.exceeds, of: [bn, 8x16], than: [bn, 8x8]}\n", "        []\n"),
            "sn_table2.claims.bn_falls_early.tests=\\[\\]: expected a test",
        ),
        (("margins: -1", "margin: -1"), "margin: there is no such setting; did you mean 'margins'"),
        (("row: sn\n", "rwo: sn\n"), "rwo: there is no such setting; did you mean 'row'"),
        (("label: BN,", "label: BN, by_scale: {digit: []},"), "scale 'digit' does not exist; did you mean 'digits'"),
        (("label: BN,", "label: BN, start: {row: bm, at: 1},"), "row 'bm' does not exist"),
        (("label: BN,", "label: BN, start: {at: 2},"), "rows.bn.start.at=2: expected a share above 0, up to 1"),
        (("label: BN,", "label: BN, start: {at: 1},"), "bn 8x32 starts from itself"),
        (("label: BN,", "label: BN, estimator: moving,"), "estimator=moving: expected moving_average or batch_average"),
        (("label: BN,", "label: BN, estimator: {samples: 5k},"), "estimator.variance: this setting has no default"),
        (
            ('"(8,32)",', '"(8,32)", estimator: batch_average,', "label: BN,", "label: BN, estimator: batch_average,"),
            "row 'bn' and column '8x32' both say which estimator",
        ),
        (("sources: [sn_iclr.bn_drop", "sourcez: [sn_iclr.bn_drop"), "sourcez: there is no such setting"),
        (("imagenet: imagenet_sn", "imagenet: imagenet_ns"), "scale 'imagenet_ns' does not exist; did you mean"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(tmp_path, monkeypatch, change, message):
    real = conf_dir()
    shutil.copytree(real, tmp_path, dirs_exist_ok=True)
    for group in ("table", "scale"):
        for file in (real / group).glob("*.yaml"):
            text = file.read_text(encoding="utf-8")
            for old, new in zip(change[::2], change[1::2], strict=True):
                text = text.replace(old, new)
            (tmp_path / group / file.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr("normlab.config.files.conf_dir", lambda: tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        table = load_table("table2")
        printed(table)
        cells(table, "imagenet", [0])
    assert "\n" not in str(caught.value)


def test_reports_do_without_torch():
    code = "import sys; import normlab.report.render, normlab.report.charts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- from runs to a report -------------------------------------------------------------------------------------------

SMALL = {
    "digits": ["data.fraction=0.1", "model.width=4", "epochs=1"],
    "cifar10": ["model.depth=8", "iterations=1"],
    "imagenet": ["data.size=64", "iterations=1"],
}


@pytest.mark.parametrize("scale", SMALL)
def test_end_to_end(real_layout, tmp_path, scale):
    """Two cells are run, a third was interrupted, the others were never started."""
    extra = [*SMALL[scale], "tracker=none", f"out={tmp_path / 'runs'}"]
    wanted = [c for c in cells(TABLE, scale, [0], extra) if (c.row, c.column) in {("bn", "8x1"), ("sn", "1x8")}]
    stopped = next(c for c in cells(TABLE, scale, [0], extra) if (c.row, c.column) == ("gn", "8x2"))
    folders = []
    for cell in wanted:
        config = load(cell.overrides)
        folders.append(RunFolder.of(config))
        assert start(config, folders[-1]) == "finished"
    config = load(stopped.overrides)
    folders.append(RunFolder.of(config))
    folders[-1].create(config)
    folders[-1].set_status("interrupted")

    into = table_folder(TABLE, scale, tmp_path)
    ids = {(c.row, c.column, 0): identity(load(c.overrides)) for c in [*wanted, stopped]}
    records = collect(TABLE, [*wanted, stopped], folders, ids, into)
    assert records == read_jsonl(into / "records.jsonl")
    assert [(r["row"], r["column"], r["seed"], r["name"]) for r in records] == [
        (c.row, c.column, 0, f.path.name) for c, f in zip(wanted, folders, strict=False)
    ]
    assert records[0]["layers"] == [] and len(records[1]["layers"]) == records[1]["norm_layers"]
    assert set(records[1]["layers"][0]) == {"layer", "part", "receptive_field", "mean", "var"}
    assert all({"id", "commit", "versions", "seconds", "finished"} <= set(record) for record in records)

    console = Console(file=io.StringIO(), width=100)
    report(TABLE, scale, tmp_path, console)
    text = (into / "report.md").read_text(encoding="utf-8")
    assert f"at {scale} scale" in text and f"|  | {scale} |" in text and "missing" in text
    assert load_results(TABLE, scale, tmp_path).entries["bn", "8x1"].mean == records[0]["headline"]["value"]
