"""The site: pages say what the records say, and nothing that a stranger's run holds becomes part of a page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from figure_runs import moments
from test_table_report import records

from normlab.cli import main
from normlab.errors import UserError
from normlab.report.printed import paper_claims
from normlab.report.table import cells
from normlab.report.tables import all_tables, load_table
from normlab.site.build import build
from normlab.site.charts import charts_of_run
from normlab.site.shown import ShownRun

SCRIPT = '<script>document.title="taken"</script>'
EVIL = f"{SCRIPT}<img src=x onerror=alert(1)><a href='//elsewhere'>here</a>"  # plotly makes links of texts
SUMMARY = {
    "status": "finished", "norm": "sn", "weight": "none", "model": "digits_resnet", "data": "digits", "batch": "8x2",
    "task": "classification", "seed": 0, "updates": 20, "seconds": 3.0, "diverged_at": None,
    "metrics": {"moving_average": {"top1": 91.25, "top5": 99.5}, "batch_average": {"top1": 93.75, "top5": 99.75}},
    "ratios": {"mean": {"in": 0.5, "bn": 0.5}, "var": {"in": 0.5, "bn": 0.5}},
    "headline": {"metric": "top1", "estimator": "batch_average", "value": 93.75},
    "versions": {"torch": "2.14.1"}, "commit": "0123456789abcdef", "device": "CPU, 1 threads",
}  # fmt: skip


def write_run(runs: Path, run_id: str, *, num_layers: int = 4, name: str = "", layer: str = "", **changes) -> Path:
    """A run's folder as a run leaves it: two evaluations, twenty updates, ratios at three moments."""
    folder = runs / (name or f"digits-digits_resnet-sn-8x2-s0-{run_id}")
    folder.mkdir(parents=True)
    choices = {"norm": "sn", "weight": "none", "model": "digits_resnet", "data": "digits", "task": "classification"}
    config = {"choices": choices, "batch": "8x2", "seed": 0, "optim": {"lr": 0.1, "momentum": 0.9}}
    config["task"] = {"_target_": "normlab.tasks.classification.Classification"}
    run = {
        "id": run_id,
        "name": folder.name,
        "config": config | changes.pop("config", {}),
        "versions": {"torch": "2.14.1"},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "status.json").write_text(json.dumps({"status": "finished", "updates": 20}))
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"id": run_id, "name": folder.name} | changes))
    rows = [{"step": k, "epoch": k / 10, "batch/loss": 2.0 / k, "batch/lr": 0.1} for k in range(1, 21)]
    rows += [{"step": 10 * k, "epoch": float(k), "train/loss": 1.0 / k, "val/top1": 90.0 + k} for k in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ratios = moments(num_layers)
    for moment in ratios:
        moment["layers"][0]["layer"] = layer or moment["layers"][0]["layer"]
    (folder / "ratios.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ratios))
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """Records of Table 2 and two runs, and the site that was made of them; one table alone, for time."""
    place = tmp_path_factory.mktemp("lab")
    make_lab(place)
    return place


def make_lab(place: Path) -> None:
    (place / "results" / "sn_table2-digits").mkdir(parents=True)
    file = place / "results" / "sn_table2-digits" / "records.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records(bn_8x1=[90.0, None, 90.2], gn_8x1=[])))
    write_run(place / "runs", "aaaaaaaa")
    write_run(
        place / "runs", "bbbbbbbb", name=f"x{SCRIPT.replace('/', '')}", layer=EVIL, norm=EVIL, config={EVIL: EVIL}
    )
    assert build(place / "results", place / "runs", place / "site") == []


class Page(HTMLParser):
    """The tags of a page, its links, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.tags, self.links, self.ids, self.text = path, [], [], set(), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids.add(found.get("id"))
        self.links += [found[name] for name in ("href", "src") if found.get(name)]

    def handle_data(self, data):
        self.text += data


def pages(site: Path) -> list[Page]:
    return [Page(path) for path in sorted(site.rglob("*.html"))]


def test_every_link_leads_to_a_file_of_the_site(lab):
    found = pages(lab / "site")
    ids = {page.path: page.ids for page in found}
    assert len(found) > 10
    for page in found:
        for link in page.links:
            target, _, anchor = link.partition("#")
            assert ":" not in link and not link.startswith("/"), link  # no network, no other place of this machine
            path = (page.path.parent / target).resolve() if target else page.path
            assert path.is_file() and path.is_relative_to((lab / "site").resolve()), f"{page.path}: {link}"
            if anchor and path.name != "compare.html":
                assert anchor in ids[path], f"{page.path}: {link}"


def test_every_claim_and_every_table_is_there(lab):
    index, tables = Page(lab / "site" / "index.html"), Page(lab / "site" / "tables.html")
    assert {key.replace(".", "-") for key in paper_claims()} <= index.ids
    assert all(claim["statement"] in index.text for claim in paper_claims().values())
    for table in all_tables():
        assert table.title in tables.text
        assert any(link.startswith(f"tables/{table.name}-") for link in tables.links)


def test_verdicts_have_their_evidence(lab):
    index = Page(lab / "site" / "index.html")
    assert "bn 8x32 − bn 8x1" in index.text and "paper 11.1" in index.text
    assert "tables/sn_table2-digits.html#claim-bn_falls" in index.links
    page = Page(lab / "site" / "tables" / "sn_table2-digits.html")
    assert {f"claim-{name}" for name in load_table("table2").claims} <= page.ids


def test_cells_open_their_runs(lab):
    page = Page(lab / "site" / "tables" / "sn_table2-digits.html")
    table = load_table("table2")
    wanted = {(c.row, c.column, c.seed) for c in cells(table, "digits", range(3))} - {
        ("gn", "8x1", k) for k in range(3)
    }
    opened = [link for link in page.links if link.startswith("../runs/")]
    assert len(opened) == len(set(opened)) == len(wanted)
    for text in ("seed 0: 98.0", "seed 1: diverged", "missing", "90.1 ± 0.1 (1 of 3 diverged)", "76.4", "+21.6"):
        assert text in page.text, text


def test_a_record_has_a_page_of_its_own(lab):
    """Its id is no name of a file, so its page has another; what only a folder has is said to be missing."""
    (link,) = (
        link for tag, found in Page(lab / "site" / "tables" / "sn_table2-digits.html").tags
        if tag == "a" and found.get("title") == "digits-digits_resnet-sn-8x2-s1" for link in [found["href"]]
    )  # fmt: skip
    page = Page(lab / "site" / "tables" / link)
    assert "Of this run there is a record of a table, and no folder" in page.text
    assert "99.10" in page.text and "../tables/sn_table2-digits.html" in page.links


def data_of(site: Path, key: str) -> dict:
    text = (site / "runs" / f"{key}.js").read_text()
    return json.loads(text.removeprefix(f'normlab.runs["{key}"] = ').removesuffix(";\n"))


def test_a_run_has_its_curves_ratios_settings_and_versions(lab):
    page, data = Page(lab / "site" / "runs" / "aaaaaaaa.html"), data_of(lab / "site", "aaaaaaaa")
    charts = {chart["id"]: chart for chart in data["charts"]}
    named = {trace["name"]: trace for trace in charts["curve-loss"]["data"]}
    assert named["each update"]["y"][:2] == [2.0, 1.0] and named["training"]["y"] == [1.0, 0.5]
    assert charts["curve-top1"]["data"][0]["y"] == [91.0, 92.0]
    assert charts["curve-loss"]["layout"]["xaxis"]["title"]["text"] == "epoch"
    (first, *_) = charts["ratio-map"]["data"]
    expected = [[moment["layers"][k]["mean"]["in"] for moment in moments(4)] for k in range(4)]
    assert first["z"] == expected and first["y"] == [1, 2, 3, 4]
    assert {chart["data-chart"] for tag, chart in page.tags if "data-chart" in chart} == set(charts)
    for text in ("optim.lr", "0.1", "torch", "2.14.1", "93.75", "batch average", "0123456789abcdef"):
        assert text in page.text, text


def test_what_a_stranger_wrote_is_text(lab):
    """Neither in pages nor in charts, whose texts plotly reads as a markup of its own, nor in the scripts with data."""
    for page in pages(lab / "site"):
        assert not [tag for tag, found in page.tags if "onerror" in found or (tag == "img" and found.get("src") == "x")]
        scripts = [found for tag, found in page.tags if tag == "script"]
        assert len(scripts) <= 5 and "taken" not in {page.path.stem}
        assert SCRIPT not in page.path.read_text(encoding="utf-8")
    assert EVIL in Page(lab / "site" / "runs" / "bbbbbbbb.html").text
    charts = json.dumps(data_of(lab / "site", "bbbbbbbb")["charts"])
    assert "&lt;script&gt;" in charts and "<script>" not in charts and "<img" not in charts


def test_what_cannot_be_read_is_said_and_costs_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("normlab.site.build.all_tables", lambda: [load_table("table2")])
    monkeypatch.setattr("normlab.site.views.standings", lambda scale, results: {})
    write_run(tmp_path / "runs", "aaaaaaaa")
    broken = write_run(tmp_path / "runs", "cccccccc")
    (broken / "ratios.jsonl").write_text('{"step": "many"}\n')
    folder = tmp_path / "results" / "sn_table2-digits"
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("no records\n")
    words = [f"{key}={tmp_path / key}" for key in ("results", "runs")]
    assert main(["site", *words]) == 1
    said = capsys.readouterr()
    assert [re.match(r"not shown: .*(ratios|records)\.jsonl", line)[1] for line in said.err.splitlines()] == [
        "records",
        "ratios",
    ]
    index = Page(tmp_path / "results" / "site" / "index.html")
    assert "Not shown" in index.text and "ratios.jsonl" in index.text
    assert (tmp_path / "results" / "site" / "runs" / "aaaaaaaa.html").is_file()
    assert not (tmp_path / "results" / "site" / "runs" / "cccccccc.html").exists()


def changed(file: Path, change) -> None:
    """Each row of a file of JSON lines, changed in its place."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    for row in found:
        change(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.mark.parametrize(("file", "change"), [
    ("metrics.jsonl", lambda row: row.pop("epoch", None) if "batch/loss" in row else None),
    ("ratios.jsonl", lambda row: [layer.update(mean={"in": 1e308, "bn": 1e308}) for layer in row["layers"]]),
    ("predictions.safetensors", None),
])  # fmt: skip
def test_a_damaged_run_is_a_line_of_its_own(tmp_path, monkeypatch, file, change):
    monkeypatch.setattr("normlab.site.build.all_tables", lambda: [])
    folder = write_run(tmp_path / "runs", "aaaaaaaa")
    if change is None:
        (folder / file).write_bytes(b"none")
    else:
        changed(folder / file, change)
    (problem,) = build(tmp_path / "results", tmp_path / "runs", tmp_path / "site")
    assert str(folder / file) in problem


def test_strange_words_of_a_run_cost_no_page(tmp_path, monkeypatch):
    """Halves of characters, a target that is none, a picture of a name that no figure has."""
    monkeypatch.setattr("normlab.site.build.all_tables", lambda: [])
    target = {"task": {"_target_": 5}}
    folder = write_run(tmp_path / "runs", "aaaaaaaa", config=target | {"\ud800": "\udfff"}, norm="\ud800")
    (folder / f"{'a' * 250}.png").write_bytes(b"none")
    changed(folder / "metrics.jsonl", lambda row: row.update({"val/\ud800": 1.0}))
    folder.rename(folder.with_name("\udcff"))  # as Python has a name that is no UTF-8
    assert build(tmp_path / "results", tmp_path / "runs", tmp_path / "site") == []
    assert "charts" in (tmp_path / "site" / "runs" / "aaaaaaaa.js").read_text(encoding="utf-8")


def test_a_copy_of_a_run_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("normlab.site.build.all_tables", lambda: [])
    for name in ("one", "other"):
        write_run(tmp_path / "runs", "aaaaaaaa", name=name)
    assert build(tmp_path / "results", tmp_path / "runs", tmp_path / "site") == [
        f"{tmp_path / 'runs' / 'other'}: the same run as one, which is shown"
    ]


def test_a_damaged_table_takes_no_verdict_from_others(tmp_path):
    make_lab(tmp_path)
    verdicts = Page(tmp_path / "site" / "index.html").text
    damaged = tmp_path / "results" / "ws_table1-digits"
    damaged.mkdir()
    (damaged / "records.jsonl").write_text("no records\n")
    (problem,) = build(tmp_path / "results", tmp_path / "runs", tmp_path / "site")
    assert "ws_table1-digits" in problem
    index = Page(tmp_path / "site" / "index.html").text
    assert "bn 8x32 − bn 8x1" in index and index.count("Evidence") == verdicts.count("Evidence")


def test_a_cell_opens_the_folder_of_a_run_that_goes_on(tmp_path):
    """Its summary is of no use, and its record has the same id."""
    folder = tmp_path / "results" / "sn_table2-digits"
    folder.mkdir(parents=True)
    found = records(bn_8x1=[90.0, None, 90.2], gn_8x1=[])
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    run = write_run(tmp_path / "runs", found[0]["id"], name="own")
    (run / "status.json").write_text('{"status": "interrupted"}')
    build(tmp_path / "results", tmp_path / "runs", tmp_path / "site")
    links = Page(tmp_path / "site" / "tables" / "sn_table2-digits.html").links
    assert "../runs/.html" not in links and all(
        (tmp_path / "site" / "tables" / x).is_file() for x in links if "/runs/" in x
    )


@pytest.mark.parametrize(("epochs", "clock", "moments"), [(2.0, "epoch", [0.5, 2.0]), (None, "update", [5, 20])])
def test_evaluations_of_a_record_are_where_they_were(epochs, clock, moments):
    """Not one an epoch, where it tells of updates."""
    outcome = {"epochs": epochs, "updates": 20, "epochs_of": {"step": [5, 20], "train/loss": [2.0, 1.0]}}
    run = ShownRun("a", "a", "finished", outcome, {})
    assert [row["epoch"] for row in run.epochs] == moments and run.clock == clock


@pytest.mark.parametrize("epochs", ["many", [1], float("inf"), -3])
def test_the_last_ratios_of_a_record_need_no_number_of_epochs(epochs):
    layer = {"layer": "a", "mean": {"in": 0.5, "bn": 0.5}, "var": {"in": 0.5, "bn": 0.5}}
    run = ShownRun("a", "a", "finished", {"epochs": epochs, "updates": 20, "layers": [layer]}, {})
    assert [row["epoch"] for row in run.moments] == [20] and charts_of_run(run)


def test_runs_that_are_gone_leave_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr("normlab.site.build.all_tables", lambda: [])
    monkeypatch.setattr("normlab.site.views.standings", lambda scale, results: {})
    folder = write_run(tmp_path / "runs", "aaaaaaaa")
    build(tmp_path, tmp_path / "runs", tmp_path / "site")
    for file in folder.iterdir():
        file.unlink()
    build(tmp_path, tmp_path / "runs", tmp_path / "site")
    assert not list((tmp_path / "site" / "runs").iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="this folder holds something else than a site"):
        build(tmp_path, tmp_path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_pictures_are_those_of_the_run(tmp_path, monkeypatch):
    """A link leads elsewhere, and is not followed."""
    monkeypatch.setattr("normlab.site.build.all_tables", lambda: [])
    monkeypatch.setattr("normlab.site.views.standings", lambda scale, results: {})
    folder = write_run(tmp_path / "runs", "aaaaaaaa")
    (folder / "ratios.png").write_bytes(b"picture")
    (tmp_path / "secret").write_text("secret")
    (folder / "other.png").symlink_to(tmp_path / "secret")
    build(tmp_path, tmp_path / "runs", tmp_path / "site")
    assert [path.name for path in (tmp_path / "site" / "runs").glob("*.png")] == ["aaaaaaaa-ratios.png"]
    assert "aaaaaaaa-ratios.png" in Page(tmp_path / "site" / "runs" / "aaaaaaaa.html").links


@pytest.mark.parametrize(("word", "message"), [
    ("results=nowhere", "results=nowhere: there is no such folder"),
    ("resuls=x", "resuls=x: there is no such option; did you mean 'results'?"),
    ("table2", "site table2: expected results=FOLDER"),
])  # fmt: skip
def test_words_that_cannot_work(capsys, word, message):
    assert main(["site", word]) == 2
    assert message in capsys.readouterr().err


def test_without_its_packages_it_says_which_extra_has_them(capsys, monkeypatch):
    monkeypatch.setattr("normlab.cli.verbs.find_spec", lambda name: None)
    assert main(["site"]) == 2
    assert "pip install 'normlab[site]'" in capsys.readouterr().err
