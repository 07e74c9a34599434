"""The outcome of a run on the terminal."""

from collections.abc import Mapping

from rich.table import Column, Table

from normlab.console import PlainConsole
from normlab.runs.folder import RunFolder
from normlab.runs.records import metrics_of_run
from normlab.tasks.metrics import MetricInfo

SHOWN = 4  # names of a list; all are in summary.json
MOST_COLUMNS = 8  # metrics side by side
ESTIMATORS = {"moving_average": "moving average", "batch_average": "batch average"}


def print_summary(folder: RunFolder) -> None:
    """A run's accuracy under each estimator, its ratios, and where its records are."""
    console = PlainConsole()  # brackets are lists here
    if not folder.summary_file.is_file():
        status = folder.status()
        console.print(f"{folder.path.name}: {status['status']} {status.get('error', '')}".rstrip())
        return
    summary = folder.summary()
    settings = " ".join(f"{key}={summary[key]}" for key in ("norm", "weight", "model", "data", "batch", "seed"))
    console.print(f"{summary['status']} after {summary['updates']} updates, {summary['seconds']:.0f} s: {settings}")
    if summary["status"] == "diverged":
        console.print(f"The loss was not finite at update {summary['diverged_at']}.")
    if summary["metrics"]:
        known = metrics_of_run(folder)
        print_metrics(
            summary.get("tested", "validation"), summary["metrics"], known, headline=summary["headline"]["estimator"]
        )
    if summary["ratios"]:
        for moment, ratios in summary["ratios"].items():
            shares = "  ".join(f"{scope} {ratio:.3f}" for scope, ratio in ratios.items())
            console.print(f"ratios of the {moment:<4} (mean over layers):  {shares}")
    for part, averages in summary.get("ratios_by_part", {}).items():
        shares = "; ".join(
            f"{moment} " + "  ".join(f"{scope} {ratio:.3f}" for scope, ratio in ratios.items())
            for moment, ratios in averages.items()
        )
        console.print(f"    in {part}: {shares}")
    if unused := summary.get("not_used_of_init"):
        more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        console.print(f"not used of what it began from: {', '.join(unused[:SHOWN])}{more}", soft_wrap=True)
    if bad := summary.get("data_errors", {}).get("count"):
        console.print(
            f"{bad} bad samples were replaced in training or left out of the evaluation: "
            f"{folder.path / 'data_errors.*.jsonl'}",
            soft_wrap=True,
        )
    console.print(f"records: {folder.path}", soft_wrap=True)
    for figure in sorted(folder.path.glob("*.png")):
        console.print(f"figure:  {figure}", soft_wrap=True)


def print_metrics(
    title: str,
    metrics: Mapping[str, Mapping[str, float]],
    known: Mapping[str, MetricInfo],
    headline: str | None = None,
) -> None:
    """A row an estimator, a column a metric, or turned where there are many; the headline's are bold.

    Values by class are in summary.json alone.
    """
    names = list(dict.fromkeys(name for values in metrics.values() for name in values if "." not in name))
    decimals = {name: info.decimals for name, info in known.items()}
    cells = {
        estimator: [f"{values[name]:.{decimals.get(name, 2)}f}" if name in values else "-" for name in names]
        for estimator, values in metrics.items()
    }
    styles = {estimator: "bold" if estimator == headline else "" for estimator in metrics}
    if len(names) <= MOST_COLUMNS:
        table = Table("statistics", *names, title=title, title_justify="left")
        for estimator, row in cells.items():
            table.add_row(ESTIMATORS.get(estimator, estimator), *row, style=styles[estimator])
    else:
        columns = [Column(ESTIMATORS.get(name, name), justify="right", style=styles[name]) for name in cells]
        table = Table("metric", *columns, title=title, title_justify="left")
        for name, *row in zip(names, *cells.values(), strict=True):
            table.add_row(name, *row)
    PlainConsole().print(table)
