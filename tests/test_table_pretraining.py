"""Tables whose cells begin from runs that they do not show, and columns with a protocol of their own."""

from pathlib import Path

import pytest
import yaml

from normlab.cli import main
from normlab.config import files, identity
from normlab.errors import UserError
from normlab.report.printed import printed
from normlab.report.quantities import measured
from normlab.report.record_checks import check_records
from normlab.report.records import recorded
from normlab.report.runs import plan
from normlab.report.tables import load_table
from normlab.runs.folder import RunFolder

SMALL = ["data.length=16", "data.val_length=4", "data.size=16", "model.width=4", "batch_average.samples=8"]
SCALES = {
    "first": ["model=scenes_resnet", "data=scenes", *SMALL, "epochs=2", "ratios_every=1"],
    "then": ["model=scenes_segmenter", "data=scene_maps", *SMALL, "iterations=2", "ratios_every=1"],
    "longer": ["model=scenes_segmenter", "data=scene_maps", *SMALL, "iterations=3", "ratios_every=1"],
}
TABLE = {
    "title": "A table of the test",
    "task": "segmentation",
    "decimals": 1,
    "seeds": [0, 1],
    "scales": {"small": "then"},
    "overrides": ["batch=2x2"],
    "pretraining": {"scales": {"small": "first"}, "runs": {"sn": ["norm=sn", "batch=2x4"], "gn": ["norm=gn"]}},
    "rows": {
        "own": {"label": "SN", "overrides": ["norm=sn"], "start": {"run": "sn"}},
        "sync": {"label": "SyncSN", "overrides": ["norm=syncsn"], "start": {"run": "sn"}},
        "gn": {"label": "GN", "overrides": ["norm=gn"], "start": {"run": "gn"}},
    },
    "columns": {
        "short": {"label": "short", "printed": None},
        "long": {"label": "long", "protocols": {"small": "longer"}, "printed": None},
    },
    "claims": {
        "moves": {
            "statement": "ratios move less than in pretraining",
            "tests": [{
                "_target_": "normlab.report.verdicts.exceeds", "quantity": "start.moved.mean",
                "than_quantity": "moved.mean", "of": ["own", "short"], "than": ["own", "short"],
            }],
        }
    },
}  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder of one's own with the table and its protocols."""
    folder = tmp_path / "lab"
    for group in ("table", "scale"):
        (folder / group).mkdir(parents=True)
    for name, words in SCALES.items():
        node = {"title": name, "guessing": {"miou": 1, "top1": 10}, "margin": 1.0, "overrides": words}
        (folder / "scale" / f"{name}.yaml").write_text("# of the test\n" + yaml.safe_dump(node))
    write(folder, {})
    monkeypatch.setenv(files.OWN, str(folder))
    return folder


def write(folder: Path, changes: dict) -> None:
    (folder / "table" / "mine.yaml").write_text("# of the test\n" + yaml.safe_dump(TABLE | changes, sort_keys=False))


def test_the_plan_begins_with_them(own, tmp_path):
    found = plan(load_table("mine"), "small", [0, 1], [f"out={tmp_path}"], tmp_path)
    assert [(cell.column, cell.seed) for cell in found.pretraining] == [("sn", 0), ("sn", 1), ("gn", 0), ("gn", 1)]
    for cell in found.cells:
        config = found.config_of(cell)
        first = found.ids["pretraining", "gn" if cell.row == "gn" else "sn", cell.seed]
        assert config.init == f"{first}@1" and found.origin_of(cell) == first and config.seed == cell.seed
        assert config.iterations == (3 if cell.column == "long" else 2)
        assert found.configs[first].choices["task"] == "classification" and found.configs[first].seed == cell.seed
    assert len({identity(config) for config in found.configs.values()}) == 4 + 12


def test_from_one_command_to_the_report(own, tmp_path, capsys):
    words = ["mine", "scale=small", "seeds=1", "jobs=1", f"results={tmp_path}", f"out={tmp_path / 'runs'}"]
    assert main(["reproduce", *words, "--dry-run"]) == 0
    assert "6 cells of 6 runs, 6 of them missing\n    they begin from 2 more, 2 of them missing" in (
        capsys.readouterr().out
    )
    assert main(["reproduce", *words]) == 0
    table = load_table("mine")
    records = recorded(table, tmp_path / "mine-small")
    assert len(records) == 6
    runs = [RunFolder(path) for path in (tmp_path / "runs").iterdir() if (path / "run.json").is_file()]
    first = {run.run()["id"]: run.summary() for run in runs if run.summary()["task"] == "classification"}
    for record in records:
        assert record["start"]["id"] in first
        assert record["start"]["made_by"] == first[record["start"]["id"]]["made_by"]
    found = measured(records, table, {"miou": 1.0})
    ((_, started),) = found.of("start.moved.mean", ("own", "short")).items()
    ((_, moved),) = found.of("moved.mean", ("own", "short")).items()
    assert started > 0 and moved > 0
    own_run = next(record for record in records if (record["row"], record["column"]) == ("own", "short"))
    backbone = [layer for layer in own_run["layers"] if layer["part"] == "backbone"]
    mean = sum(layer["mean"]["bn"] for layer in backbone) / len(backbone)
    assert found.of("backbone.mean.bn", ("own", "short"))[0] == pytest.approx(mean) and len(backbone) == 12
    layers = own_run["start"]["layers"]
    mean = sum(layer["var"]["ln"] for layer in layers) / len(layers)
    assert found.of("start.backbone.var.ln", ("own", "short"))[0] == pytest.approx(mean) and len(layers) == 12
    assert main(["reproduce", *words, "--dry-run"]) == 0
    assert "0 of them missing" in capsys.readouterr().out
    for wrong in (
        {"moved": {"mean": "far"}},
        {"moved": {"mean": float("nan")}},
        {"layers": [{"mean": 1}]},
        {"id": ["x"]},
    ):
        with pytest.raises(UserError, match="line 1: "):
            check_records([own_run | {"start": own_run["start"] | wrong}], tmp_path, table.metrics)


def test_one_run_may_be_that_of_all_seeds_and_a_scale_may_have_none(own, tmp_path):
    first = TABLE["pretraining"] | {"shared": ["sn"]}
    write(own, {"pretraining": first})
    found = plan(load_table("mine"), "small", [0, 1], [f"out={tmp_path}"], tmp_path)
    begun = {(cell.column, cell.seed): found.ids["pretraining", cell.column, cell.seed] for cell in found.pretraining}
    assert begun["sn", 0] == begun["sn", 1] and begun["gn", 0] != begun["gn", 1]
    assert found.configs[begun["sn", 1]].seed == 0
    assert {found.config_of(cell).seed for cell in found.cells} == {0, 1}
    write(own, {"pretraining": first | {"scales": {"small": None}}})
    found = plan(load_table("mine"), "small", [0], [f"out={tmp_path}"], tmp_path)
    assert not found.pretraining and {found.config_of(cell).init for cell in found.cells} == {"none"}
    assert found.origins() == [None] * len(found.cells)
    write(own, {"pretraining": first | {"shared": ["ns"]}})
    with pytest.raises(UserError, match="pretraining 'ns' does not exist"):
        load_table("mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretraining": None}, "mine: pretraining 'sn' does not exist"),
        ({"pretraining": {"scales": {}, "runs": TABLE["pretraining"]["runs"]}}, "pretraining's scale 'small'"),
        ({"pretraining": TABLE["pretraining"] | {"runs": {"sn": "norm=sn"}}}, "pretraining"),
        ({"rows": TABLE["rows"] | {"pretraining": {"label": "x"}}}, "rows.pretraining: this names the runs"),
        ({"columns": {"x": {"label": "x", "protocols": {"large": "then"}}}, "claims": {}}, "scale 'large'"),
    ],
)
def test_mistakes(own, changes, message):
    write(own, changes)
    with pytest.raises(UserError) as refused:
        load_table("mine")
    assert message in str(refused.value)


def test_a_protocol_that_is_not_there(own, tmp_path):
    write(own, {"columns": {"x": {"label": "x", "protocols": {"small": "thenn"}}}, "claims": {}})
    with pytest.raises(UserError, match="scale 'thenn' does not exist"):
        plan(load_table("mine"), "small", [0], [f"out={tmp_path}"], tmp_path)


# ---- the tables of conf/ that have it ------------------------------------------------------------------------------

SEGMENTATION = {"sn_table7": 16, "sn_table8": 8, "distinct_table3": 10, "ws_table7": 4}  # runs, without pretraining


@pytest.mark.parametrize("scale", ["scenes", "papers"])
@pytest.mark.parametrize("name", SEGMENTATION)
def test_tables_of_segmentation(tmp_path, monkeypatch, name, scale):
    """Every cell is a run that loads, synchronized where the papers synchronize BN, from a classifier of its seed."""
    for folder in ("ade20k", "cityscapes", "voc", "imagenet"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    table = load_table(name)
    found = plan(table, scale, [3], [f"out={tmp_path / 'runs'}"], tmp_path)
    configs = {found.ids[cell.row, cell.column, 3]: found.config_of(cell) for cell in found.cells}
    assert len(configs) == SEGMENTATION[name]
    for config in configs.values():
        assert config.choices["task"] == "segmentation" and config.seed == 3 and config.init.endswith("@1")
        assert config.update_samples == 16
        assert config.choices["norm"] != "bn" or config.batch == "1x16"  # a plain BN of two samples is in no table
    assert {config.choices["model"] for config in configs.values()} == {
        "scenes": {"scenes_segmenter"},
        "papers": {{"sn_table8": "pspnet_resnet50", "ws_table7": "deeplabv3_resnet101"}.get(name, "deeplab_resnet50")},
    }[scale]
    first = [found.configs[found.ids[cell.row, cell.column, 3]] for cell in found.pretraining]
    assert {config.choices["task"] for config in first} == {"classification"}
    assert len({config.init for config in configs.values()}) == len(first)


DETECTION = {"sn_table4": 7, "sn_table5": 5, "sn_table6": 6, "distinct_table3_coco": 4, "ws_table4": 10, "ws_table5": 9}


@pytest.mark.parametrize("scale", ["scenes", "papers"])
@pytest.mark.parametrize("name", DETECTION)
def test_tables_of_detection(tmp_path, monkeypatch, name, scale):
    """Every cell is a run that loads; the papers' numbers of images, and a classifier of the network's own kind."""
    for folder in ("coco", "imagenet"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    found = plan(load_table(name), scale, [3], [f"out={tmp_path / 'runs'}"], tmp_path)
    configs = {(cell.row, cell.column): found.config_of(cell) for cell in found.cells}
    assert len({found.ids[row, column, 3] for row, column in configs}) == DETECTION[name]
    begun = {found.ids["pretraining", cell.column, 3]: found.configs[found.ids["pretraining", cell.column, 3]]
             for cell in found.pretraining}  # fmt: skip
    for (row, _), config in configs.items():
        assert config.choices["task"] == "detection" and config.seed == 3
        assert (config.init == "none") == row.endswith("scratch")
        if scale == "papers":
            update = 12 if name == "sn_table4" else 16 if not name.startswith("ws") else 4 if "101" in row else 8
            assert config.update_samples == update and config.optim["lr"] / config.optim["lr_batch"] == pytest.approx(
                {12: 0.01 / 12, 16: 0.02 / 16, 8: 0.01 / 8, 4: 0.01 / 8}[update]
            )
        if config.init != "none":
            first = next(one for run, one in begun.items() if run in config.init)
            own = config.model.get("backbone", "resnet50")
            assert first.choices["model"] == own and first.choices["weight"] == config.choices["weight"]
            assert first.choices["task"] == "classification"
    at_once = {config.batch for config in configs.values()}
    assert at_once == {"4x3"} if name == "sn_table4" else {"4x2", "4x1"} if name.startswith("ws") else at_once


def test_tables_of_detection_share_their_runs(tmp_path):
    """Distinct's are those of SN's Table 5, and its classifiers those of segmentation."""
    ours, theirs, maps = (
        plan(load_table(name), "scenes", [0], [f"out={tmp_path}"], tmp_path)
        for name in ("sn_table6", "distinct_table3_coco", "distinct_table3")
    )
    assert {theirs.ids["box", column, 0] for column in ("bn", "gn", "sn_8x2")} == {
        ours.ids[row, "ap", 0] for row in ("frozen_none", "gn", "sn")
    }
    runs = ("bn_8x32", "gn_8x32", "sn_8x2", "sn_8x32")
    assert {theirs.ids["pretraining", run, 0] for run in runs} < {
        maps.ids[cell.row, cell.column, 0] for cell in maps.pretraining
    }


def test_sn_tpami_and_distinct_share_their_runs(tmp_path):
    """On ADE20K's scenes: what Distinct prints are SN-TPAMI's numbers at several scales."""
    ours, theirs = (
        plan(load_table(name), "scenes", [0], [f"out={tmp_path}"], tmp_path)
        for name in ("sn_table7", "distinct_table3")
    )
    assert {theirs.ids["ade", column, 0] for column in ("bn", "gn", "sn_8x2", "sn_8x4", "sn_8x32")} == {
        ours.ids[row, "ade_ms", 0] for row in ("syncbn", "gn", "sn_8x2", "sn_8x4", "sn_8x32")
    }


@pytest.mark.parametrize("scale", ["moves", "papers"])
@pytest.mark.parametrize(("name", "runs"), [("sn_table10", 6), ("ws_table6", 4)])
def test_tables_of_video(tmp_path, monkeypatch, name, runs, scale):
    """Each cell begins from a classifier with its own norm and weight; half the clips have twice the updates."""
    for folder in ("kinetics", "something_v1", "imagenet"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    table = load_table(name)
    found = plan(table, scale, [3], [f"out={tmp_path / 'runs'}"], tmp_path)
    assert len({found.ids[cell.row, cell.column, 3] for cell in found.cells}) == runs
    assert len(found.pretraining) == len(table.rows)
    clips, rates = set(), set()
    for cell in found.cells:
        config, first = found.config_of(cell), found.configs[found.origin_of(cell)]
        assert first.norm == config.norm and first.weight == config.weight and first.seed == config.seed == 3
        assert config.choices["task"] == "video" and first.choices["task"] == "classification"
        clips.add(config.update_samples * (config.iterations or 1) if config.iterations else config.epochs)
        rates.add(config.optim["lr"] / config.optim["lr_batch"])
    assert len(clips) == len(rates) == 1
    values = printed(table).values
    assert all(values[row, column] is not None for row in table.rows for column in table.columns)
    if name == "sn_table10":
        assert values["sn", "top1_4"] == 73.3 and values["bn", "top5_8"] == 90.9
