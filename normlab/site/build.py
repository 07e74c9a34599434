"""`normlab site`: pages of what was measured, made of records alone, which any browser opens as files.

    index.html                 the papers' claims, their verdicts and the evidence
    tables.html, tables/       every table, the paper's numbers beside what was measured
    runs.html, runs/           every run: curves, ratios, settings, versions, samples
    compare.html               two runs beside each other
    deviations.html            where papers and code differ
    static/                    style, script and plotly, once for all pages

Jinja escapes whatever a page shows. Data of charts are scripts beside their page, since a browser that opens
files reads no other kind; names in them are escaped by charts.py. A page says nothing that its records do not.
"""

import json
import shutil
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from normlab.errors import UserError, plain
from normlab.report import wording
from normlab.report.deviations import PAPERS, load_deviations
from normlab.report.printed import papers
from normlab.report.records import table_folder
from normlab.report.results import Results, load_results, results_of
from normlab.report.tables import all_tables
from normlab.runs.records import NoRecordsError
from normlab.site.charts import Chart, chart_of_table, charts_of_run
from normlab.site.shown import ShownRun, collect
from normlab.site.views import ClaimView, RunView, TableView, claim_views, kind_of

_OWN = ("site.css", "site.js", "compare.js")


def build(results: Path, runs: Path, out: Path) -> list[str]:
    """Write the site into a folder; returns what could not be shown, a line each.

    Raises UserError where `out` holds something else: files of a site are written over, and removed where their run or
    table is gone.
    """
    _check_place(out)
    problems: list[str] = []
    measured, unmeasured = _tables(results, problems)
    shown = collect(measured, runs, problems)
    site = _Site(out, problems)
    site.start()
    site.add_run_pages(shown)
    tables = [TableView(one, shown) for one in (*measured, *unmeasured)]
    for view in tables:
        site.add_table_page(view, table_folder(view.results.table, view.results.scale_name, results))
    claims = claim_views(measured)
    site.page("index.html", claims=_by_paper(claims), counts=_counts(claims), problems=problems)
    site.page("tables.html", tables=tables)
    site.page("runs.html", runs=[RunView(run) for run in shown])
    site.page("compare.html")
    site.page("deviations.html", deviations=load_deviations())
    return problems


def _check_place(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: expected a folder, and this is none")
    if out.is_dir() and any(out.iterdir()) and not (out / "static" / "plotly.min.js").is_file():
        raise UserError(f"out={out}: this folder holds something else than a site; expected an empty or a new one")


def _tables(results: Path, problems: list[str]) -> tuple[list[Results], list[Results]]:
    """Those that have records, at each scale that has; and the others, at their first scale, without our numbers."""
    measured, unmeasured = [], []
    for table in all_tables():
        at = [scale for scale in table.scales if (table_folder(table, scale, results) / "records.jsonl").is_file()]
        for scale in at:
            try:
                measured.append(load_results(table, scale, results))
            except (UserError, OSError) as error:
                problems.append(" ".join(str(error).split()))
        if not at:
            unmeasured.append(results_of(table, table.default_scale, []))
    return measured, unmeasured


def _by_paper(claims: Iterable[ClaimView]) -> list[dict[str, Any]]:
    found: dict[str, list[ClaimView]] = {}
    for claim in claims:
        found.setdefault(claim.paper, []).append(claim)
    return [
        {"key": k, "name": PAPERS[k][0], "title": papers()[k]["paper"]["title"], "claims": v} for k, v in found.items()
    ]


def _counts(claims: Iterable[ClaimView]) -> dict[str, int]:
    found: dict[str, int] = {}
    for claim in claims:
        for word in claim.verdicts.values() or [claim.kind]:
            found[word] = found.get(word, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


class _Site:
    """The folder that pages are written to."""

    def __init__(self, out: Path, problems: list[str]) -> None:
        self.out, self.problems = out, problems
        self.templates = Environment(
            loader=PackageLoader("normlab.site"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_printable,
        )
        self.templates.globals |= {"wording": wording, "kind_of": kind_of}

    def start(self) -> None:
        for folder in ("runs", "tables"):
            shutil.rmtree(self.out / folder, ignore_errors=True)  # what is gone leaves no page
        for folder in ("static", "runs", "tables"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        self._write("static/plotly.min.js", get_plotlyjs())  # first, since it tells a site from other folders
        for name in _OWN:
            self._write(f"static/{name}", files("normlab.site").joinpath("static", name).read_text(encoding="utf-8"))

    def page(self, place: str, template: str = "", **context: Any) -> None:
        root = "../" * place.count("/")
        text = self.templates.get_template(template or place).render(root=root, place=place, **context)
        self._write(place, text)

    def script(self, place: str, name: str, value: Any) -> None:
        """A script that hands data to a page: no browser reads other files from a disk."""
        self._write(place, f"normlab.{name} = {json.dumps(value)};\n")

    def _write(self, place: str, text: str) -> None:
        """Without waiting for the disk, as records do: a site is made again from them.

        Names of files need be no text, and JSON can hold halves of characters: `?` stands for them.
        """
        (self.out / place).write_text(text, encoding="utf-8", errors="replace")

    def add_run_pages(self, runs: list[ShownRun]) -> None:
        self.script("static/runs.js", "index", [{"key": run.key, "name": plain(run.name)} for run in runs])
        for run in runs:
            view = RunView(run)
            charts = charts_of_run(run)
            self.script(f"runs/{run.key}.js", f"runs[{json.dumps(run.key)}]", view.as_json() | _listed(charts))
            pictures = self._copied(run.pictures(), f"runs/{run.key}") or self._drawn_samples(run)
            self.page(f"runs/{run.key}.html", "run.html", run=view, charts=charts, pictures=pictures)

    def add_table_page(self, view: TableView, folder: Path) -> None:
        charts = [chart_of_table(view.results)]
        self.script(f"tables/{view.name}.js", "page", _listed(charts))
        drawn = [folder / f"{name}.png" for name in view.results.table.figures]
        pictures = self._copied(
            [path for path in drawn if path.is_file() and not path.is_symlink()], f"tables/{view.name}"
        )
        self.page(f"tables/{view.name}.html", "table.html", table=view, charts=charts, pictures=pictures)

    def _copied(self, pictures: Iterable[Path], prefix: str) -> dict[str, str]:
        """Copies beside a page: name -> file."""
        found = {}
        for path in pictures:
            place = f"{prefix}-{path.stem}.png"
            (self.out / place).write_bytes(path.read_bytes())
            found[path.stem.replace("_", " ")] = place.rpartition("/")[2]
        return found

    def _drawn_samples(self, run: ShownRun) -> dict[str, str]:
        """What a run kept of its samples, drawn where its folder has no figure of it."""
        if run.folder is None or not run.folder.predictions.is_file():
            return {}
        from normlab.figures.samples import predictions  # which imports torch
        from normlab.figures.style import save
        from normlab.runs.records import Run

        place = f"runs/{run.key}-predictions.png"
        try:
            save(predictions([Run.load(run.folder)]), self.out / place)
        except NoRecordsError:
            return {}
        except UserError as error:
            self.problems.append(str(error))
            return {}
        return {"predictions": place.rpartition("/")[2]}


def _listed(charts: Iterable[Chart]) -> dict[str, Any]:
    return {"charts": [chart.as_json() for chart in charts]}


def _printable(value: Any) -> Any:
    """Texts without the characters that turn a line around, or command a terminal."""
    return plain(value) if type(value) is str else value
