"""`normlab reproduce TABLE` (or all): the runs of papers' tables that are missing, then reports from their records."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from normlab.config import Config, Record
from normlab.console import PlainConsole
from normlab.engine.provenance import made_by
from normlab.engine.saved import estimate_run
from normlab.errors import BusyError
from normlab.launch.cost import Costs
from normlab.launch.cost import throughput as read_throughput
from normlab.processes.devices import this_device
from normlab.report.printed import printed
from normlab.report.records import check_changed, collect, estimate_of, recorded, recorded_seeds
from normlab.report.render import report
from normlab.report.runs import Plan, plan
from normlab.report.table import Table
from normlab.runs.folder import RunFolder
from normlab.sweeps.pool import num_jobs, relative_time, sweep
from normlab.trackers.tracker import in_sweep


def reproduce(
    tables: Sequence[Table],
    scale: str,
    seeds: int | None,
    jobs: int,
    extra: Sequence[str],
    results: Path,
    dry: bool = False,
    renew: bool = False,
    throughput: str | None = None,
) -> int:
    """Run tables at a scale, and report each; returns the exit status of the sweep.

    Runs that several cells or tables ask for run once.

    Args:
        tables: which cells there are, and what the paper prints.
        scale: of each table's scales.
        seeds: how many each cell runs with; None: as each table says.
        jobs: runs side by side; 0: as many as cores or GPUs allow.
        extra: overrides of every run, such as devices=2.
        results: where the tables' records and reports go.
        dry: stop after the plan.
        renew: run what another version of the code made again, recorded seeds beyond `seeds` too.
        throughput: of a GPU, as launch/cost.py reads it: what the plan says GPU-hours by.

    Raises:
        UserError: before anything runs, on what cannot work in any cell.
    """
    console = PlainConsole()
    for table in tables:
        printed(table)  # a wrong reference to a paper shows now, not after the runs
    plans = []
    for table in tables:
        number = seeds or table.scale(scale).seeds or len(table.seeds)
        if renew:
            number = max([number, *(seed + 1 for seed in recorded_seeds(table, scale, results))])
        plans.append(plan(table, scale, range(number), ["tracker=none", *extra], results))
    for one in plans:
        check_changed(one.table, one.folder, one.changed)
    shared = _shared(plans)
    if renew:
        for config in shared.values():
            config.rerun |= _is_of_another_version(config)
    missing = {run_id: config for run_id, config in shared.items() if config.rerun or not RunFolder.of(config).is_over}
    _print_plan(plans, shared, missing, jobs, console)
    if throughput is not None and missing:
        _print_cost(missing.values(), throughput, console)
    if dry:
        return 0
    status = _run(plans, shared, jobs, console)
    for one in plans:
        if any(run.is_over for run in one.runs()):
            collect(one.table, one.cells, one.runs(), one.ids, one.folder, one.changed, one.origins())
            for path in report(one.table, scale, results, console):
                console.print(f"written: {path}", soft_wrap=True)
    return status


def _shared(plans: Sequence[Plan]) -> dict[str, Config]:
    """Each experiment once, with the snapshots and the records that any table needs of it.

    A run that is over without a snapshot from which a missing run begins, or without a record that a table asks for, is
    to run again: it will be the same.
    """
    shared: dict[str, Config] = {}
    for one in plans:
        for run_id in dict.fromkeys(one.ids[c.row, c.column, c.seed] for c in (*one.pretraining, *one.cells)):
            config = shared.setdefault(run_id, one.configs[run_id])
            config.snapshots = sorted({*config.snapshots, *one.configs[run_id].snapshots})
            config.record = _all_of(config.record, one.configs[run_id].record)
            config.tracker = in_sweep(config.tracker, one.folder.name)
    for config in shared.values():
        folder = RunFolder.of(config)
        if folder.status()["status"] == "finished":
            kept = folder.config().record
            config.rerun |= _all_of(kept, config.record) != kept
    for one in plans:
        for cell in one.cells:
            origin = one.table.start_of(cell.row, cell.column, one.scale)
            if origin is None or RunFolder.of(one.config_of(cell)).is_over:
                continue
            other = shared[one.ids[origin.row, origin.column, cell.seed]]
            folder = RunFolder.of(other)
            other.rerun |= folder.status()["status"] == "finished" and not folder.weights_at(origin.at).is_file()
    return shared


def _all_of(one: Record, other: Record) -> Record:
    """What either of them records."""
    parts = [record.validation for record in (one, other)]
    return Record(
        max(one.statistics, other.statistics),
        one.gradients or other.gradients,
        one.estimators or other.estimators,
        None if None in parts else max(part for part in parts if part is not None),
    )


def _is_of_another_version(config: Config) -> bool:
    folder = RunFolder.of(config)
    return folder.is_over and folder.summary().get("made_by") != [made_by(config, this_device())]


def _run(plans: Sequence[Plan], shared: dict[str, Config], jobs: int, console: Console) -> int:
    """The sweeps, those first whose weights others begin from, and the measurements; returns the exit status."""
    runs = [(one, cell) for one in plans for cell in (*one.pretraining, *one.cells)]
    origins = {one.ids[cell.row, cell.column, cell.seed]: one.origin_of(cell) for one, cell in runs}
    waiting, status = dict(shared), 0
    while waiting and status < 128:  # 128 and more: interrupted
        ready = {run_id: config for run_id, config in waiting.items() if origins[run_id] not in waiting}
        waiting = {run_id: config for run_id, config in waiting.items() if run_id not in ready}
        able = []
        for run_id, config in ready.items():
            origin = origins[run_id]
            if origin is None or RunFolder.of(shared[origin]).status()["status"] == "finished":
                able.append(config)
            else:
                console.print(
                    f"not run: {RunFolder.of(config).path.name}, since {origin}, which it begins from, has not finished"
                )
                status = max(status, 1)
        status = max(status, sweep(able, jobs)) if able else status
    return max(status, _measure(plans, console)) if status < 128 else status


def _measure(plans: Sequence[Plan], console: Console) -> int:
    """Batch averages that cells ask for and that are not among a run's estimates; returns the exit status.

    One of a run that another command is at is left out, as a cell of a sweep is; the same command goes on with it.
    """
    status = 0
    for one in plans:
        for run, settings in one.measurements():
            if run.status()["status"] == "finished" and estimate_of(run, settings) is None:
                try:
                    estimate_run(run, settings)
                except BusyError as error:
                    console.print(f"not measured: {error}", soft_wrap=True)
                    status = 1
    return status


# ---- the plan --------------------------------------------------------------------------------------------------------


def _print_plan(
    plans: Sequence[Plan], shared: Mapping[str, Config], missing: Mapping[str, Config], jobs: int, console: Console
) -> None:
    seconds = _recorded_seconds(plans)
    for one in plans:
        ids = {one.ids[cell.row, cell.column, cell.seed] for cell in one.cells}
        console.print(f"{one.table.name}: {one.table.title}: {one.table.scale(one.scale).title}", soft_wrap=True)
        console.print(f"    {len(one.cells)} cells of {len(ids)} runs, {len(ids & missing.keys())} of them missing")
        first = {one.ids[cell.row, cell.column, cell.seed] for cell in one.pretraining}
        if first:
            console.print(f"    they begin from {len(first)} more, {len(first & missing.keys())} of them missing")
    expected = _expected(missing, shared, seconds, num_jobs(jobs))
    console.print(f"{len(shared)} runs, {len(missing)} of them missing{expected}", soft_wrap=True)


def _print_cost(runs: Iterable[Config], text: str, console: Console) -> None:
    """GPU-hours of their training."""
    costs = Costs(read_throughput(text))
    hours = [costs.hours(config) for config in runs]
    console.print(
        f"{sum(hours):,.1f} GPU-hours of training, {min(hours):,.2f} to {max(hours):,.2f} a run, at "
        f"{costs.given.words}",
        soft_wrap=True,
    )


def _recorded_seconds(plans: Sequence[Plan]) -> dict[str, float]:
    """Of each run, by what its cell took when it was last recorded, with whatever seed."""
    found: dict[str, float] = {}
    for one in plans:
        seconds: dict[tuple[str, str], list[float]] = {}
        for record in recorded(one.table, one.folder):
            seconds.setdefault((record["row"], record["column"]), []).append(record["seconds"])
        for (row, column, _), run_id in one.ids.items():
            if (row, column) in seconds:
                found[run_id] = statistics.median(seconds[row, column])
    return found


def _expected(
    missing: Mapping[str, Config], shared: Mapping[str, Config], seconds: Mapping[str, float], jobs: int
) -> str:
    """How long the missing runs take: as recorded, or else by how many samples they see."""
    rates = [seconds[run_id] / relative_time(config) for run_id, config in shared.items() if run_id in seconds]
    if not missing or not rates:
        return ""
    rate = statistics.median(rates)
    total = sum(seconds.get(run_id, rate * relative_time(config)) for run_id, config in missing.items())
    guesses = len(missing.keys() - seconds.keys())
    how = "going by the recorded runs" + (f" ({guesses} of the missing never were)" if guesses else "")
    return f": about {total / jobs / 60:.0f} minutes with jobs={jobs}, {how}"
