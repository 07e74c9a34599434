"""Reports from fabricated records with known answers."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from normlab.errors import UserError
from normlab.report import wording
from normlab.report.claims import chosen
from normlab.report.latex import latex
from normlab.report.markup import in_latex
from normlab.report.render import comma_separated, markdown, report
from normlab.report.results import Entry, load_results, results_of
from normlab.report.table import Difference, cells
from normlab.report.tables import all_tables, load_table
from normlab.report.verdicts import Evidence
from normlab.report.wording import evidence_text

TABLE = load_table("sn_table2")
SCORES = {"bn": 98.0, "gn": 97.0, "sn": 99.0}
BN_RATIO = {"8x32": 0.4, "8x16": 0.38, "8x8": 0.36, "8x4": 0.34, "8x2": 0.32, "1x16": 0.38, "1x32": 0.4, "1x8": 0.36}

EPOCHS = {  # SN learns fastest and GN overfits most; validation leads in the first epoch
    "bn": {"train/loss": [2.0, 0.2], "train/top1": [40.0, 98.0], "val/top1": [50.0, 97.0]},
    "gn": {"train/loss": [2.0, 0.2], "train/top1": [40.0, 99.0], "val/top1": [50.0, 97.0]},
    "sn": {"train/loss": [2.0, 0.2], "train/top1": [50.0, 98.0], "val/top1": [60.0, 98.0]},
}


def record(row: str, column: str, seed: int, score: float | None, **changes) -> dict:
    """A line of records.jsonl, as collect writes it; no score: it diverged. Ratios move by 0.001 with the seed."""
    ratio = None
    if row == "sn":
        bn = BN_RATIO.get(column)
        ratio = {"in": 0.5, "ln": 0.5} if bn is None else {"in": 0.9 - bn, "ln": 0.1, "bn": bn + seed * 0.001}
    return {
        "id": f"{row}-{column}-{seed}",
        "name": f"digits-digits_resnet-{row}-{column}-s{seed}",
        "status": "diverged" if score is None else "finished",
        "row": row,
        "column": column,
        "seed": seed,
        **{"norm": row, "weight": "none", "model": "digits_resnet", "data": "digits", "batch": column, "updates": 150},
        "headline": {"metric": "top1", "estimator": "batch_average", "value": score},
        "metrics": {} if score is None else {"moving_average": {"top1": 1.0}, "batch_average": {"top1": score}},
        "ratios": ratio and {"mean": ratio, "var": ratio},
        "versions": {"torch": "2.13.0", "timm": None},
        "commit": "0123456789abcdef+",
        "device": "CPU, 2 threads",
        "seconds": 10.0,
        "finished": "2026-12-25T08:00:00+00:00",
        "layers": [],
        "choices": {},
        "epochs_of": EPOCHS.get(row, {}) if score is not None else {},
    } | changes


def records(seeds: int = 3, **scores) -> list[dict]:
    """All cells, a seed 0.1 above the one before; `scores` changes cells: bn_8x1=[95.0, None], missing from the end."""
    found = []
    for row, column, seed, _ in cells(TABLE, "digits", range(seeds)):
        values = scores.get(f"{row}_{column}", [SCORES[row] + 0.1 * s for s in range(seeds)])
        if seed < len(values):
            found.append(record(row, column, seed, values[seed]))
    return found


def test_mean_spread_and_difference():
    values = [98.5, 97.25, 98.0]
    entry = results_of(TABLE, "digits", records(bn_8x2=values)).entries["bn", "8x2"]
    assert entry.mean == pytest.approx(sum(values) / 3)
    assert entry.std == pytest.approx(math.sqrt(sum((v - sum(values) / 3) ** 2 for v in values) / 2))
    assert entry.difference == pytest.approx(sum(values) / 3 - 65.3)
    assert "97.9 ± 0.6" in markdown(results_of(TABLE, "digits", records(bn_8x2=values)))


def test_differences_go_seed_by_seed_and_their_spread_pairs_none():
    """As their test: the runs of one seed share little. Of the same runs it is that of the seeds' differences."""
    results = results_of(TABLE, "digits", records(bn_8x2=[90.0, 92.0, 97.0], gn_8x2=[95.0, 96.0]))
    entry = results.entries["GN-BN", "8x2"]
    assert list(entry.values) == [5.0, 4.0] and entry.missing == 1
    assert (entry.mean, entry.printed) == (4.5, 10.6)
    apart = (statistics.stdev([90.0, 92.0, 97.0]), statistics.stdev([95.0, 96.0]))
    assert entry.std == pytest.approx(math.hypot(*apart))
    shared = [record | {"id": f"{record['column']}-{record['seed']}"} for record in results.records]
    paired = results_of(TABLE, "digits", [r for r in shared if (r["column"], r["seed"]) != ("8x2", 2)])
    assert paired.entries["GN-BN", "8x2"].std == pytest.approx(statistics.stdev([5.0, 4.0]))


def lines_of(text: str) -> dict[tuple[str, str], list[str]]:
    """(label, whose) -> the cells of a line of the Markdown table."""
    label, found = "", {}
    for line in text.splitlines():
        words = [word.strip().strip("*") for word in line.strip("|").split("|")]
        if len(words) == 11 and words[1] in ("paper", "digits", "difference"):
            label = words[0] or label
            found[label, words[1]] = words[2:]
    return found


def test_dashes_and_missing_cells():
    scores = {"bn_8x1": [None, None, None], "bn_8x2": [95.0, None, 96.0], "gn_8x2": [], "sn_8x1": [97.0]}
    lines = lines_of(markdown(results_of(TABLE, "digits", records(**scores))))
    at = {column: i for i, column in enumerate(TABLE.columns)}
    assert lines["BN", "paper"][at["8x1"]] == lines["BN", "digits"][at["8x1"]] == "–"
    assert lines["BN", "difference"][at["8x1"]] == "–"
    assert lines["BN", "digits"][at["8x2"]] == "95.5 ± 0.7 (1 of 3 diverged)"
    assert lines["GN", "digits"][at["8x2"]] == "missing" == lines["GN-BN", "digits"][at["8x2"]]
    assert lines["SN", "digits"][at["8x1"]] == "97.0 (2 of 3 missing)"
    assert lines["SN-BN", "digits"][at["8x1"]] == "– (1 of 3 diverged, 2 of 3 missing)"


def test_one_seed_has_no_spread_and_no_verdict():
    results = results_of(TABLE, "digits", records(1))
    assert "±" not in "".join(lines_of(markdown(results))["BN", "digits"])
    assert {judged.verdict for judged in results.judged.values()} == {"not enough seeds"}


def test_the_quick_scale_says_what_it_cannot_tell():
    assert "cannot tell small differences" in markdown(results_of(TABLE, "digits", records(1)))


def test_verdicts_of_clear_records():
    """BN falls by 3 and 8 points, nothing else does; SN leads by 1 everywhere; its BN ratio falls, LN's stays."""
    results = results_of(TABLE, "digits", records(bn_8x2=[95.0, 95.1, 95.2], bn_8x1=[90.0, None, 90.2]))
    verdicts = {name: judged.verdict for name, judged in results.judged.items()}
    assert verdicts == {
        "bn_falls": "not enough seeds",  # one of three diverged, and counts as 10%: a spread that hides the fall
        "bn_falls_early": "equal within the margin",
        "gn_does_not_fall": "holds",
        "sn_does_not_fall": "holds",
        "small_minibatches": "not enough seeds",
        "statistics_over_gradients": "holds",
        "single_gpu": "holds",
        "eight_samples_on_a_gpu": "holds",
        "headline": "holds",
        "sn_ahead_of_bn": "holds",
        "sn_ahead_of_gn": "holds",
        "sn_not_behind_gn": "holds",
        "bn_ratio_follows_n": "holds",
        "ln_ratio_follows_n": "not enough seeds",
        "learns_faster": "holds",
        "overfits_less": "holds",
        "one_stage": "holds",
        "validation_leads_early": "holds",
        "variance_of_bn_falls": "holds",
        "variance_leans_less_to_bn": "not enough seeds",  # both have the same ratios
    }
    diverged = results_of(TABLE, "digits", records(bn_8x2=[95.0, 95.1, 95.2], bn_8x1=[None] * 3)).judged
    assert diverged["bn_falls"].verdict == diverged["small_minibatches"].verdict == "holds"


def test_a_claim_counts_only_from_records_that_came_after_it():
    early = [r | {"finished": "2026-11-21T18:00:00+00:00"} if r["column"] == "8x8" else r for r in records()]
    results = results_of(TABLE, "digits", early)
    assert results.judged["sn_ahead_of_gn"].verdict == "stated later" and results.judged["headline"].verdict == "holds"
    assert "stated 2026-11-21, after runs that it is about" in markdown(results)


def test_cells_that_have_not_trained_support_no_claim():
    """At 12% of ten classes, in testing and in training; a test score alone may fall so low by bad statistics."""
    untrained = {"train/loss": [2.3, 2.3], "train/top1": [10.0, 11.0], "val/top1": [10.0, 12.0]}
    lost = [
        r | {"epochs_of": untrained} if (r["row"], r["column"]) == ("bn", "8x1") else r
        for r in records(bn_8x1=[12.0] * 3)
    ]
    judged = results_of(TABLE, "digits", lost).judged
    assert judged["bn_falls"].verdict == judged["small_minibatches"].verdict == "not trained"
    assert math.isnan(judged["bn_falls"].p) and judged["headline"].verdict == "holds"
    assert results_of(TABLE, "digits", records(bn_8x1=[12.0] * 3)).judged["bn_falls"].verdict != "not trained"


def test_evidence_stands_beside_the_papers():
    judged = results_of(TABLE, "digits", records(bn_8x2=[95.0, 95.1, 95.2])).judged["bn_falls"]
    (evidence, papers), (_, of_dash) = judged.evidence
    assert evidence.effect == pytest.approx(3.0) and papers == pytest.approx(76.4 - 65.3)
    assert math.isnan(of_dash)
    text = markdown(results_of(TABLE, "digits", records(bn_8x2=[95.0, 95.1, 95.2])))
    assert re.search(r"bn 8x32 − bn 8x2: 3, needs > 1 \(p = \d.*?, n = 3; paper 11\.1\)", text)


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "sn_table2-digits"
    folder.mkdir()
    lines = [json.dumps(r) for r in records(bn_8x1=[None] * 3)]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console = Console(file=io.StringIO(), width=80)
    report(TABLE, "digits", tmp_path, console)
    return folder, console.file.getvalue()


def test_report_from_the_file_alone(written):
    folder, shown = written
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["accuracy.png", "ratios.png", "records.jsonl", "report.csv", "report.md", "report.tex"]
    for name in ("accuracy", "ratios"):
        assert imread(folder / f"{name}.png").shape[1] > 1000
    text = (folder / "report.md").read_text()
    for said in (text, " ".join(shown.split())):
        assert "at digits scale" in said and "digits_resnet on scikit-learn's digits" in said
        assert "Paper: ResNet50 on ImageNet (val)" in said
        assert "81 runs of digits_resnet on digits, 810 s in all, 2026-12-25" in said
        assert "0123456789abcdef+" in said and "torch 2.13.0" in said and "timm" not in said
        assert "over 3 seeds" in said and "SN at 8x1 mixes IN and LN" in said


def test_the_same_records_give_the_same_report(written, tmp_path):
    folder, _ = written
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report(TABLE, "digits", tmp_path, Console(file=io.StringIO()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_terminal_fits(written):
    _, shown = written
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search(r"8x2 +65\.3 +98\.1±0\.1 +\+32\.8 +75\.9", shown)
    assert "does not hold: BN loses accuracy" in shown  # it does at 8x1, not at 8x2


def test_markdown_tables_are_regular(written):
    folder, _ = written
    for block in re.findall(r"(?:^\|.*\n)+", (folder / "report.md").read_text(), re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_comma_separated():
    rows = list(csv.DictReader(io.StringIO(comma_separated(results_of(TABLE, "digits", records(bn_8x1=[None] * 2))))))
    assert len(rows) == 6 * 9 and {row["scale"] for row in rows} == {"digits"}
    by_cell = {(row["row"], row["column"]): row for row in rows}
    cell = by_cell["gn", "8x4"]
    assert float(cell["paper"]) == 75.8 and float(cell["mean"]) == pytest.approx(97.1)
    assert [float(v) for v in cell["values"].split()] == pytest.approx([97.0, 97.1, 97.2])
    dash = by_cell["bn", "8x1"]
    assert (dash["paper"], dash["mean"], dash["diverged"], dash["missing"]) == ("", "", "2", "1")


def test_latex_is_regular():
    """Columns that find no room beside each other stand below, or in another table; every number is there once."""
    results = results_of(TABLE, "digits", records(bn_8x1=[None] * 3))
    text = latex(results)
    assert text.isascii()
    assert text.count("{") == text.count("}") and not re.search(
        r"(?<!\\)[%_#]", re.sub(r"\\label{[^}]*}", "", text.partition("\n")[2])
    )
    assert r"98.1 $\pm$ 0.1" in text and "--" in text
    assert text.count(r"\label{") == 1 and r"\label{tab:sn_table2-digits}" in text
    found, header, label = [], [], ""
    for line in text.splitlines():
        if not line.endswith(r" \\"):
            continue
        first, whose, *values = (cell.strip() for cell in line.removesuffix(r" \\").split("&"))
        if not whose:
            header = values
            continue
        label = first.removeprefix(r"\raggedright ") or label
        found += [(label, whose, column, value) for column, value in zip(header, values, strict=True)]
    expected, label = [], ""
    for name, whose, values in wording.lines_of(results):
        label = name or label
        columns = TABLE.column_labels.values()
        expected += [(label, whose, c, in_latex(v)) for c, v in zip(columns, values, strict=True)]
    assert sorted(found) == sorted(expected)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX with booktabs")
def test_every_table_fits_a_page_of_latex(tmp_path):
    """With the numbers of our records, or, where there are none, three digits and a spread in each cell."""
    kept = Path(__file__).parents[1] / "results"
    shown = []
    for table in all_tables():
        has_records = (kept / f"{table.name}-digits" / "records.jsonl").is_file()
        if has_records:
            shown.append(load_results(table, "digits", kept))
            continue
        found = results_of(table, table.default_scale, [])
        entries = {cell: Entry(e.printed, [77.12, 75.93, 76.4], 0, 0) for cell, e in found.entries.items()}
        shown.append(dataclasses.replace(found, entries=entries))
    head = "\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage{booktabs}\\begin{document}\n"
    body = "\\clearpage\n".join(map(latex, shown))
    (tmp_path / "all.tex").write_text(f"{head}{body}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "all.tex"], cwd=tmp_path, capture_output=True)
    log = (tmp_path / "all.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert not re.findall(r"(?:Overfull \\hbox|Float too large|multiply defined|undefined).*\n.*", log)


def test_no_records_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"records.jsonl: there are no records"):
        load_results(TABLE, "digits", tmp_path)


@pytest.mark.filterwarnings("error")  # matplotlib warns when a layout does not fit
@pytest.mark.parametrize("kept", [lambda r: r["row"] == "bn", lambda r: r["column"] == "8x1", lambda r: r["seed"] == 0])
def test_reports_of_what_there_is(tmp_path, kept):
    """With a row, a column or a seed alone."""
    folder = tmp_path / "sn_table2-digits"
    folder.mkdir()
    lines = [json.dumps(r) for r in records(bn_8x1=[None] * 3) if kept(r)]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(report(TABLE, "digits", tmp_path, Console(file=io.StringIO()))) == 5


# ---- what Table 2 does not have --------------------------------------------------------------------------------------


def made(name: str, scores: dict[tuple[str, str], list[float]], **settings):
    """Results of a table with these scores, by cell and seed."""
    table = load_table(name)
    for key, value in settings.items():
        setattr(table, key, value)
    made = [record(*cell, seed, value) for cell, values in scores.items() for seed, value in enumerate(values)]
    return results_of(table, "digits", made)


def test_rows_that_no_paper_prints_have_one_line():
    text = markdown(made("distinct_pools", {("sn", "top1"): [97.0], ("bn", "top1"): [96.0]}))
    lines = [[w.strip().strip("*") for w in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    labels = [line[0] for line in lines if line[1] in ("paper", "digits", "difference")]
    assert labels == ["IN+LN+BN", "", "", "IN+LN", "", "", "IN+BN", "", "", "LN+BN", "", "", "IN", "LN", "BN"]
    assert ["BN", "digits", "96.00", "missing"] in lines


def test_where_papers_disagree_the_report_says_so():
    text = markdown(made("distinct_table1", {("sn", "8x32"): [97.0]}))
    assert "sn_iclr table2 prints 76.9 at SN, (8,32); sn_distinct table1 77.1." in text
    assert "The paper has no IN and LN at (8,8) and (8,2)" in text


def test_equal_accuracies_differ_by_nothing():
    assert evidence_text(Evidence("a", -1.99e-6, -1.0, 0.02, 3), 0.0).startswith("a: 0, needs > −1 ")


def test_a_report_says_what_was_changed(tmp_path):
    """So that digits never pass for ImageNet."""
    made = [one | {"changed": ["data=digits", "model=digits_resnet"]} for one in records()]
    text = markdown(results_of(TABLE, "imagenet", made))
    assert text.startswith("# Accuracy of BN, GN and SN at nine batch settings, at imagenet scale, changed\n")
    assert "Measured: ResNet-50 on ImageNet, 100 epochs, but with data=digits model=digits_resnet. Paper:" in text
    folder = tmp_path / "sn_table2-imagenet"
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made))
    (standing,) = chosen(["sn_iclr.headline_8_32"], "imagenet", tmp_path)
    assert standing.tested[0].verdict == "measured with data=digits model=digits_resnet alone"
    assert standing.verdict != "holds"
    assert "changed" not in markdown(results_of(TABLE, "digits", records())).splitlines()[0]


def test_a_note_on_a_cell_stands_where_it_is_true():
    """ResNet-101 has 32 images per GPU at imagenet scale alone."""
    results = made("ws_table1", {("r101", "gn_top1"): [97.0]})
    assert "and 32 on ResNet-101" not in markdown(results) and "64 images per GPU" in markdown(results)
    assert "and 32 on ResNet-101" in markdown(dataclasses.replace(results, scale_name="imagenet"))


def test_claims_that_need_another_scale_say_so():
    results = made("distinct_table1", {("sn", "8x32"): [97.0]})
    assert results.judged["mean_and_variance_diverge"].verdict is None
    assert "| **needs the scale imagenet** |" in markdown(results)


def test_errors_and_differences_of_columns():
    """An error is 100 minus the accuracy, of a diverged run too: it counts as guessing."""
    scores = {("sn", "8x32"): [97.0, 98.0], ("sn", "8x2"): [96.0, 95.0], ("bn", "8x2"): [None, None]}
    difference = {"8x2-8x32": Difference("8x2", "8x32", printed=None)}
    results = made("distinct_table1", scores, metric="error1", column_differences=difference)
    assert list(results.entries["sn", "8x32"].values) == [3.0, 2.0]
    assert list(results.entries["sn", "8x2-8x32"].values) == [1.0, 3.0]
    assert results.entries["SNtied-SN", "8x2-8x32"].missing == 2
    assert results.measured.of("metric", ("bn", "8x2")) == {0: 90.0, 1: 90.0}
    assert results.metric == "top-1 error in percent" and "8x2-8x32" in markdown(results)


def test_cells_of_one_run_count_once():
    results = made("distinct_table1", {("sn", "8x32"): [97.0], ("sn", "8x8"): [97.0]})
    for one in results.records:
        one["id"] = "same"
    assert "1 run of digits_resnet on digits, 10 s in all" in markdown(results)


def test_records_of_another_table_are_one_line():
    with pytest.raises(
        UserError, match=r"records.jsonl: distinct_pools has no cell sn 8x32; it is damaged, or of another"
    ):
        made("distinct_pools", {("sn", "8x32"): [97.0]})
    with pytest.raises(UserError, match=r"sn top5 seed 0 has no top5 under batch_average"):
        made("distinct_pools", {("sn", "top5"): [97.0]})


# ---- versions --------------------------------------------------------------------------------------------------------

OURS = {"made_by": ["code 11111111, torch 2.14.1, C++ kernels"]}
CHANGES = {
    "code": {"made_by": ["code 22222222, torch 2.14.1, C++ kernels"]},
    "two": {"made_by": ["code 22222222, torch 2.14.1, C++ kernels", *OURS["made_by"]]},
    "older": {},
    "data": OURS | {"inputs": "0123456789abcdef"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_claims_on_cells_of_several_versions_have_no_verdict(change):
    """BN at 8x2 was made by another version: what compares it with anything is open, all else is decided as before."""
    plain = [r | OURS for r in records(bn_8x2=[95.0, 95.1, 95.2])]
    mixed = [
        r | (CHANGES[change] if (r["row"], r["column"]) == ("bn", "8x2") else OURS)
        for r in records(bn_8x2=[95.0, 95.1, 95.2])
    ]
    before, after = (results_of(TABLE, "digits", found) for found in (plain, mixed))
    open_ = {name for name, judged in after.judged.items() if judged.verdict == "mixed versions"}
    assert "bn_falls" in open_ and "sn_does_not_fall" not in open_
    assert all(before.judged[name].verdict == after.judged[name].verdict for name in before.judged.keys() - open_)
    assert "versions" not in {judged.verdict for judged in before.judged.values()}
    text = markdown(after)
    assert "--renew" in text and "bn 8x2 seed 0, bn 8x2 seed 1, bn 8x2 seed 2" in text
    assert "--renew" not in markdown(before)


def test_records_that_do_not_say_who_made_them_are_told_apart_by_their_commits():
    found = records()
    assert "--renew" not in markdown(results_of(TABLE, "digits", found))
    found[0] |= {"commit": "fedcba9876543210"}
    assert "commit fedcba9876543210, torch 2.13.0: " in markdown(results_of(TABLE, "digits", found))
