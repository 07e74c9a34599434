"""What each verb does with its words. Nothing heavy is imported before a verb needs it."""

import os
import re
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.errors import UserError, nearest, unknown

if TYPE_CHECKING:
    from normlab.config import Config
    from normlab.runs.folder import RunFolder

DEFAULT_OUT = "results/runs"
MOST_SEEDS = 1000  # of a table


def train(words: list[str], multirun: bool, cfg: str | None, info: bool) -> int:
    if multirun:
        from normlab.sweeps.multirun import multirun as sweep

        return sweep(words)
    from normlab.config import load
    from normlab.data.published import data_may_be_absent

    if cfg or info:
        with data_may_be_absent():
            config = load(words)
        return _print_config(config) if cfg else _print_info(config)
    config = load(words)
    from normlab.runs.folder import RunFolder

    folder = RunFolder.of(config)
    status = folder.status()["status"]
    if folder.is_over and not config.rerun:
        print(f"This run is {status} already; rerun=true starts it over.")
        return _print_summary(folder)
    from normlab.launch.start import start

    status = start(config, folder)
    if status == "interrupted":
        done = folder.status()
        print(f"Interrupted after {done['updates']} updates; the same command goes on from there.", file=sys.stderr)
        return 128 + done["signal"]
    return _print_summary(folder)


def plan(words: list[str], cfg: str | None, info: bool) -> int:
    from normlab.config import load
    from normlab.data.published import data_may_be_absent

    own = [word for word in words if word.startswith("throughput=")]
    _, options = _split(own, {"throughput": None})
    with data_may_be_absent():
        config = load([word for word in words if word not in own])
        if cfg or info:
            return _print_config(config) if cfg else _print_info(config)
        from normlab.launch.plan import print_plan

        print_plan(config, options["throughput"])
    return 0


def show(words: list[str]) -> int:
    for folder in _runs(words, {})[0]:
        _print_summary(folder)
    return 0


def evaluate(words: list[str]) -> int:
    runs, options = _runs(words, {"split": None})
    from normlab.engine.saved import evaluate_run, need_weights, splits_of

    splits = splits_of(runs, options["split"])
    need_weights(runs)
    for folder, split in zip(runs, splits, strict=True):
        _print_metrics(folder, *evaluate_run(folder, split))
    return 0


def predict(words: list[str]) -> int:
    runs, options = _runs(words, {"split": None, "out": None}, "runs")
    if len(runs) > 1:
        raise UserError(f"predict: expected one run, got {len(runs)}")
    from normlab.engine.saved import predict_run, splits_of

    (split,) = splits_of(runs, options["split"])
    into = Path(options["out"] or runs[0].path / "predictions" / split)
    print(f"{predict_run(runs[0], split, into)} files in {into}")
    return 0


def estimate(words: list[str]) -> int:
    from normlab import schema
    from normlab.config import BatchAverage

    runs, options = _runs(words, {"samples": "50k", "variance": "mean", "augment": "true"})
    switches = {"true": True, "false": False}
    options["augment"] = switches.get(options["augment"], options["augment"])
    settings = BatchAverage(**schema.check(options, schema.parameters_of(BatchAverage)))
    _ = settings.num_samples
    from normlab.engine.saved import estimate_run, need_weights

    need_weights(runs)
    for folder in runs:
        _print_metrics(folder, *estimate_run(folder, settings))
    return 0


def import_(words: list[str]) -> int:
    files = [word for word in words if "=" not in word]
    if len(files) != 1:
        raise UserError("expected one file, a released checkpoint, and settings as KEY=VALUE")
    from normlab.exchange.importing import import_run

    folder, remarks = import_run(Path(files[0]), [word for word in words if word not in files])
    print("\n".join(remarks))
    return _print_summary(folder)


def export(words: list[str]) -> int:
    names, options = _split(words, {"out": None, "estimator": "paper", "runs": DEFAULT_OUT})
    runs, _ = _runs(names, {}, key="runs", default=options["runs"])
    if options["out"] is not None and len(runs) > 1:
        raise UserError(f"out={options['out']}: expected one run, which goes there; without it each has its own place")
    if options["out"] and os.path.exists(options["out"]) and not os.path.isdir(options["out"]):
        raise UserError(f"out={options['out']}: expected a folder, and this is none")
    from normlab.engine.saved import need_weights
    from normlab.exchange.exporting import export_run, print_export

    need_weights(runs)
    for run in runs:
        place = Path(options["out"]) if options["out"] else run.path / "export"
        print_export(export_run(run, place, options["estimator"]), place)
    return 0


def data(words: list[str]) -> int:
    from normlab.config import choices

    verb, *names = [word for word in words if "=" not in word] or [""]
    if verb not in ("prepare", "verify", "show") or len(names) != 1:
        raise UserError(
            f"{' '.join(['data', verb, *names]).strip()}: expected prepare, verify or show and a dataset's name"
        )
    (name,) = names
    if name not in choices("data"):
        raise unknown("dataset", name, choices("data"))
    given = [word for word in words if "=" in word]
    if verb == "show":
        from normlab.figures.command import RESULTS
        from normlab.figures.samples import show

        _, options = _split([word for word in given if word.startswith("out=")], {"out": RESULTS / f"{name}.png"})
        show(name, [word for word in given if not word.startswith("out=")], Path(options["out"]))
        return 0
    from normlab.datasets import prepare, verify

    _, options = _split(given, {"root": None})
    root = Path(options["root"]) if options["root"] else None
    if verb == "prepare":
        print(prepare(name, root))
        return 0
    problems = verify(name, root)
    print("\n".join(problems) or f"{name}: nothing is wrong with it")
    return 1 if problems else 0


def list_(words: list[str]) -> int:
    from normlab.config import GROUPS, choices

    groups = (*GROUPS, "scale", "table", "figure")
    known = {**{f"{group}s": group for group in groups}, **{group: group for group in groups}}
    for word in words or ["norms"]:
        if word not in known:
            raise UserError(f"list {word}: there is no such group; {nearest(word, known)}")
        described = choices(known[word])
        width = max(map(len, described), default=0)
        for name, comment in described.items():
            print(f"{name:<{width}}  {comment}")
    return 0


def status(words: list[str]) -> int:
    from normlab.report.status import print_status
    from normlab.runs.folder import RunFolder

    if [word for word in words if not word.startswith("out=")]:
        from normlab.sweeps.multirun import expand

        print_status([RunFolder.of(config) for config in expand([word for word in words if word != "-m"])])
    else:
        _, options = _split(words, {"out": DEFAULT_OUT})
        if words:
            _existing("out", options["out"])
        print_status([RunFolder(path.parent) for path in sorted(_folder(options["out"]).glob("*/run.json"))])
    return 0


def reproduce(words: list[str], dry_run: bool, renew: bool) -> int:
    from normlab.report.tables import load_table, tables_at

    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        raise UserError("expected the name of one table, or all; `normlab list tables` shows them")
    own = {"scale": None, "seeds": None, "jobs": 0, "results": "results", "throughput": None}
    given = [word for word in words if word.partition("=")[0] in own]
    _, options = _split(given, own)
    if options["throughput"] is not None and not dry_run:
        raise UserError(f"throughput={options['throughput']}: expected with --dry-run alone; it changes no run")
    everything = names == ["all"]
    tables = tables_at(options["scale"] or "digits") if everything else [load_table(names[0])]
    scale = options["scale"] or tables[0].default_scale
    for table in tables:
        table.scale(scale)
    seeds = None if options["seeds"] is None else _count("seeds", options["seeds"], 1, MOST_SEEDS)
    jobs = _count("jobs", options["jobs"], 0)
    extra = [word for word in words if "=" in word and word not in given]
    for word in extra:
        if word.startswith("seed="):  # every cell would be the same run, and their spread 0
            raise UserError(f"{word}: the seeds of a table are 0, 1, ...; seeds=N says how many")
    from normlab.data.published import data_may_be_absent
    from normlab.sweeps.reproduce import reproduce as run

    with data_may_be_absent() if dry_run else nullcontext():
        return run(tables, scale, seeds, jobs, extra, Path(options["results"]), dry_run, renew, options["throughput"])


def report(words: list[str]) -> int:
    from normlab.report.render import report as make
    from normlab.report.tables import load_table

    names, options = _split(words, {"scale": None, "results": "results"})
    if len(names) != 1:
        raise UserError("expected the name of one table; `normlab list tables` shows them")
    table = load_table(names[0])
    scale = options["scale"] or table.default_scale
    table.scale(scale)
    for path in make(table, scale, Path(options["results"])):
        print(f"written: {path}")
    return 0


def claims(words: list[str], run: bool) -> int:
    own = {"scale": None, "seeds": None, "jobs": 0, "results": "results"}
    names, options = _split(words, own)
    for key in ("seeds", "jobs"):
        if not run and options[key] != own[key]:
            raise UserError(f"{key}={options[key]}: only with --run, which runs what is missing")
    from normlab.report.claims import chosen, print_claims, tables_of
    from normlab.report.tables import tables_at

    scale, results = options["scale"], Path(options["results"])
    if scale is not None:
        tables_at(scale)
    if not run and options["results"] != own["results"]:
        _existing("results", options["results"])
    wanted = chosen(names, scale, results)
    status = 0
    if run:
        if not names:
            raise UserError("claims --run: expected a claim; `normlab claims` lists them")
        seeds = None if options["seeds"] is None else _count("seeds", options["seeds"], 1, MOST_SEEDS)
        tables = tables_of(wanted, scale)
        from normlab.sweeps.reproduce import reproduce

        jobs = _count("jobs", options["jobs"], 0)
        for at in dict.fromkeys(scale or table.default_scale for table in tables):
            of_scale = [table for table in tables if at == (scale or table.default_scale)]
            status = max(status, reproduce(of_scale, at, seeds, jobs, [], results))
        wanted = chosen(names, scale, results)
    print_claims(wanted, scale)
    return status


def site(words: list[str]) -> int:
    own = {"results": "results", "runs": DEFAULT_OUT, "out": None}
    plain, options = _split(words, own)
    if plain:
        raise UserError(f"site {plain[0]}: expected results=FOLDER, runs=FOLDER or out=FOLDER")
    for key in ("results", "runs"):
        if options[key] != own[key]:
            _existing(key, options[key])
    if any(find_spec(package) is None for package in ("jinja2", "plotly")):
        raise UserError("normlab site: its pages need further packages; pip install 'normlab[site]'")
    from normlab.site.build import build

    out = Path(options["out"] or Path(options["results"]) / "site")
    problems = build(Path(options["results"]), Path(options["runs"]), out)
    for problem in problems:
        print(f"not shown: {problem}", file=sys.stderr)
    print(f"written: {out / 'index.html'}")
    return int(bool(problems))


def figure(words: list[str]) -> int:
    from normlab.figures.command import figure as draw

    return draw(words, DEFAULT_OUT)


def bench(words: list[str]) -> int:
    from normlab.bench.command import run

    return run(words)


def doctor(words: list[str], chaos: bool, json: str | None) -> int:
    report = Path(json) if json else None
    of_chaos = {"kills": 20, "writes": 20, "damages": 6, "twice": 1, "seed": 0, "ranks": 1, "workers": 0}
    counts = of_chaos if chaos else {}
    place = {"out": "results/chaos" if chaos else DEFAULT_OUT}
    plain, options = _split(words, counts | place)
    if plain:
        raise UserError(f"doctor {plain[0]}: there is no such option; {nearest(plain[0], ('--chaos', '--json'))}")
    out = Path(options.pop("out"))
    if not chaos:
        from normlab.doctor.diagnose import doctor as diagnose

        return diagnose(out, report)
    numbers = {key: _count(key, value, 1 if key == "ranks" else 0) for key, value in options.items()}
    from normlab.doctor.chaos import Proof
    from normlab.doctor.chaos import chaos as prove

    return prove(Proof.draw(**numbers), out, report or out / "report.json")


# ---- words, and what is printed --------------------------------------------------------------------------------------


def _split(words: list[str], options: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and the options with those given as KEY=VALUE."""
    plain, options = [], dict(options)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            plain.append(word)
        elif key in options:
            options[key] = re.sub(r"^(['\"])(.*)\1$", r"\2", value, flags=re.DOTALL)  # as train's out="my runs"
        else:
            raise UserError(f"{word}: there is no such option; {nearest(key, options)}")
    return plain, options


def _count(key: str, value: Any, least: int, most: int = 10**9) -> int:
    if not re.fullmatch("[0-9]{1,10}", str(value)) or not least <= int(value) <= most:
        raise UserError(f"{key}={value}: expected a whole number from {least} to {most}")
    return int(value)


def _runs(
    words: list[str], options: dict[str, Any], key: str = "out", default: str = DEFAULT_OUT
) -> tuple[list["RunFolder"], dict[str, Any]]:
    """The runs that are named, and the other options; `key` is the one that says where runs go by name."""
    from normlab.runs.folder import RunFolder

    names, options = _split(words, {key: default} | options)
    if not names:
        raise UserError("expected a run: its folder, name or id; `normlab status` shows them")
    out = _folder(options.pop(key), key)
    return [RunFolder.find(name, out, key) for name in names], options


def _folder(out: str, key: str = "out") -> Path:
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(f"{key}={out}: expected the folder of the runs, and this is none")
    return Path(out)


def _existing(key: str, folder: str) -> None:
    if not os.path.isdir(folder or "."):
        raise UserError(f"{key}={folder}: there is no such folder")


def _print_config(config: "Config") -> int:
    import yaml

    print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
    return 0


def _print_info(config: "Config") -> int:
    """Where settings come from: the folders that are searched, and the file of each group."""
    from normlab.config import GROUPS, conf_dir, file_of, own_dir

    for folder in filter(None, (conf_dir(), own_dir())):
        print(f"searched: {folder}")
    for group in GROUPS:
        file = file_of(group, config.choices[group])
        print(f"{group}={config.choices[group]}: {file if file.is_file() else getattr(config, group)['_target_']}")
    return 0


def _print_summary(folder: "RunFolder") -> int:
    from normlab.report.summary import print_summary

    print_summary(folder)
    return 0


def _print_metrics(folder: "RunFolder", title: str, metrics: dict[str, dict[str, float]]) -> None:
    from normlab.report.summary import print_metrics
    from normlab.runs.records import metrics_of_run

    print(folder.path.name)  # no title of the table, which would break it
    print_metrics(title, metrics, metrics_of_run(folder))
