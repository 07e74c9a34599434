"""Records are looked at before anything is made of them: ranges, finite numbers, no texts, one of each cell."""

import copy
import html
import json
import shutil
from pathlib import Path

import matplotlib
import pytest
from sealed import forget_digests, rewrite
from test_engine import config, run

from normlab.cli import main
from normlab.config import conf_dir
from normlab.errors import UserError
from normlab.reading import STATUS, SUMMARY, last_json, read_json, read_jsonl, read_metrics
from normlab.report.records import recorded
from normlab.report.tables import load_table
from normlab.runs.folder import RunFolder
from normlab.tasks.metrics import MetricInfo

SOURCE = conf_dir().parent / "results" / "sn_table2-digits" / "records.jsonl"
LONG = "1" + "0" * 400


@pytest.fixture(scope="module")
def records() -> list[dict]:
    """Three of BN, then three of SN."""
    found = read_jsonl(SOURCE)
    return [next(r for r in found if (r["row"], r["seed"]) == (row, seed)) for row in ("bn", "sn") for seed in range(3)]


def write(folder: Path, records: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def refusal(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("normlab: ") and err.count("\n") == 1, err
    return err


def of(record: dict, *path: str) -> dict:
    """The mapping in a record that holds the last of these keys."""
    for key in path[:-1]:
        record = record[key]
    return record


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        *((("metrics", "batch_average", "top1"), v, "expected a number from 0 to 100") for v in (-250, 1e30, NAN)),
        (("metrics", "batch_average", "top1"), 100.1, "metrics.batch_average.top1=100.1"),
        (("metrics", "moving_average", "top5"), INFINITE, "expected a number from 0 to 100"),
        (("metrics", "batch_average", "other"), NAN, "metrics.batch_average.other=nan"),
        (("metrics", "batch_average", "top1"), "much", "each a number"),
        (("metrics", "batch_average", "top1"), True, "each a number"),
        (("headline", "value"), -1, "headline.value=-1"),
        (("seconds",), -1, "seconds=-1"),
        (("seconds",), INFINITE, "seconds=inf"),
        (("seed",), -1, "seed=-1"),
        (("ratios", "mean", "bn"), 1.5, "1.5"),
        (("epochs_of",), {"train/loss": [1.0, NAN]}, "epochs_of.train/loss=nan"),
        (("epochs_of",), {"train/loss": [1e300]}, "epochs_of.train/loss=1e+300"),
        (("epochs_of",), {"train/loss": [1.0], "val/top1": [9.0, 9.0]}, "lists of one length"),
        (("epochs_of",), {"train/loss": []}, "none of them empty"),
        (("epochs_of",), {"val/top1": [1.0]}, "there is no train/loss"),
        (("fluctuations",), {"bn_mean": [NAN]}, "fluctuations.bn_mean=nan"),
        (("taken",), {"division": INFINITE}, "taken=inf"),
        (("choices",), {"0.3": [["bn", "in"]], "0.6": []}, "choices: expected lists of one length"),
        (("choices",), {"0.3": [["bn"]]}, "choices="),
        (("layers",), [{"mean": {"bn": 0.5}}], "layers.var"),
        (("layers",), [{"mean": {"bn": 0.5}, "var": {}}], "a layer has no ratios"),
        (("layers",), [{"mean": {"bn": -1}, "var": {"bn": 1}}], "layers.mean=-1"),
    ],
)
def test_what_no_run_can_have_measured_is_refused_with_its_line(records, tmp_path, path, value, said):
    changed = copy.deepcopy(records)
    row = 4
    of(changed[row], *path)[path[-1]] = value
    folder = write(tmp_path / "sn_table2-digits", changed)
    with pytest.raises(UserError, match=r"records\.jsonl") as error:
        recorded(load_table("table2"), folder)
    assert said in str(error.value) and f"line {row + 1}" in str(error.value)


def test_every_verb_that_reads_records_looks_at_them(records, tmp_path, capsys):
    changed = copy.deepcopy(records)
    changed[0]["metrics"]["moving_average"]["top1"] = NAN
    write(tmp_path / "sn_table2-digits", changed)
    for words in (("report", "table2"), ("claims",), ("reproduce", "table2", "--dry-run")):
        refused = refusal(capsys, *words, "scale=digits", f"results={tmp_path}")
        assert "line 1: metrics.moving_average.top1=nan" in refused


def test_two_records_of_a_cell_are_named_by_their_lines(records, tmp_path):
    table, other = load_table("table2"), copy.deepcopy(records[1])
    other["metrics"]["batch_average"]["top1"] = 12.0
    with pytest.raises(UserError, match=r"records\.jsonl, line 7: .* has another record in line 2"):
        recorded(table, write(tmp_path / "a", [*records, other]))
    assert recorded(table, write(tmp_path / "b", [*records, records[1]])) == records  # the same twice counts once


def test_all_records_that_there_are_pass():
    for file in SOURCE.parents[1].glob("*/records.jsonl"):
        name, dash, _ = file.parent.name.rpartition("-")
        if dash and (conf_dir() / "table" / f"{name}.yaml").is_file():
            assert recorded(load_table(name), file.parent)


def test_a_task_says_what_its_metrics_can_be():
    assert MetricInfo("accuracy").range == (0, 100)
    assert MetricInfo("distance", unit="").range is None
    assert MetricInfo("word error rate", bounds=(0, 1000)).range == (0, 1000)


# ---- run files of a stranger -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    return run(config(tmp_path_factory.mktemp("runs"), "norm=sn", "epochs=1"))


@pytest.fixture
def folder(whole, tmp_path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(whole.path, tmp_path / whole.path.name)))


def test_a_text_for_a_metric_is_one_line(folder, capsys):
    forget_digests(folder)
    rows = folder.metrics.read_text().splitlines()
    changed = json.loads(rows[-1]) | {"val/top1": "x"}
    folder.metrics.write_text("\n".join([*rows[:-1], json.dumps(changed)]) + "\n")
    said = refusal(capsys, "figure", "learning_curves", str(folder.path), f"out={folder.path / 'x.svg'}")
    assert f"metrics.jsonl, line {len(rows)}: val/top1=x: expected a number" in said
    with pytest.raises(UserError, match="val/top1=x"):
        read_metrics(folder.metrics)


@pytest.mark.parametrize("number", [LONG, "-" + LONG, "1e999", "-1e999"])
@pytest.mark.parametrize("name", ["summary.json", "run.json", "status.json", "metrics.jsonl", "ratios.jsonl"])
def test_a_number_that_is_too_large_is_one_line(folder, capsys, name, number):
    """In whichever field: here a new one of each object, ahead of the others."""
    file = folder.path / name
    file.write_text(file.read_text().replace("{", f'{{"more": {number}, ', 1))
    read = {
        "summary.json": lambda: read_json(file, SUMMARY),
        "run.json": folder.config,
        "status.json": lambda: read_json(file, STATUS),
        "metrics.jsonl": lambda: read_metrics(file),
        "ratios.jsonl": lambda: read_jsonl(file),
    }[name]
    with pytest.raises(UserError, match=f"{name}.*(digits|too large)"):
        read()
    if name in ("summary.json", "run.json"):
        assert name in refusal(capsys, "show", str(folder.path))


def test_the_last_line_is_looked_at_too(folder):
    folder.metrics.write_text(f'{{"step": {LONG}}}\n')
    with pytest.raises(UserError, match="a number of 401 digits"):
        last_json(folder.metrics)


def test_an_estimate_of_a_stranger_is_numbers(folder):
    from normlab.report.records import estimates

    row = {"samples": 8, "variance": "mean", "augment": True, "top1": "x"}
    (folder.path / "estimates.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="top1=x: expected a number"):
        estimates(folder)


@pytest.mark.parametrize("name", [r"$\frac{$", "$x$ and $y$", "a $ b"])
def test_dollars_in_a_strangers_names_are_no_formula(folder, name):
    rewrite(folder.run_file, lambda record: record["config"]["choices"].update(norm=name, batch="8x2"))
    picture = folder.path / "x.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert main(["figure", "learning_curves", str(folder.path), f"out={picture}"]) == 0
    assert name in html.unescape(picture.read_text())
