"""normlab: one command reproduces a result about normalization layers.

  normlab train  [KEY=VALUE ...]          train and evaluate a run, or resume it; finished runs are not run again
  normlab train  -m KEY=VALUE,VALUE ...   a sweep: every combination, jobs=N side by side (Hydra's multirun)
  normlab status [KEY=VALUE,VALUE ...]    how far the cells of a sweep are; without words, all runs
  normlab reproduce TABLE [scale=digits] [seeds=3] [jobs=N] [results=FOLDER] [KEY=VALUE ...]
                                          run what is missing of a paper's table, and report it; --dry-run: the plan;
                                          --renew: what another version of the code made, too
  normlab reproduce all [scale=digits] ...
                                          every table that has the scale; what tables share runs once
  normlab report TABLE [scale=digits] [results=FOLDER]
                                          the report again, from its records alone
  normlab claims [CLAIM ...] [scale=digits] [results=FOLDER]
                                          the papers' claims: where each is tested, and the verdict so far
  normlab claims --run CLAIM ... [scale=digits] [seeds=3] [jobs=N]
                                          run what is missing for them
  normlab plan   [KEY=VALUE ...]          what a run would be: steps, samples, parameters, norm layers, replicas
  normlab show   RUN ...                  outcome of runs
  normlab eval   RUN ... [split=val]      evaluate a run's weights again, under each estimator
  normlab estimate RUN ... [samples=50k] [variance=mean|population] [augment=true|false]
                                          measure batch-average statistics again, and evaluate with them
  normlab import FILE [KEY=VALUE ...]     a released SN, SSN or WS checkpoint as a run; settings that the file does
                                          not tell of are given as for train (data=imagenet, out=FOLDER)
  normlab export RUN ... [out=FOLDER] [estimator=paper|moving_average|batch_average] [runs=FOLDER]
                                          norms folded into weights: safetensors and torch.export, checked and timed
  normlab data   prepare|verify NAME [root=FOLDER]
  normlab bench  norm|step|train|data|start [KEY=VALUE ...]
                                          measure speed (docs/performance.md); `normlab bench NAME options` explains
  normlab doctor [--json FILE] [out=FOLDER]
                                          check the machine: versions, devices, disk, collectives, datasets
  normlab doctor --chaos [kills=20] [writes=20] [damages=6] [twice=1] [seed=0] [ranks=1] [workers=0] [out=FOLDER]
                 [--json FILE]            kill and damage small runs, and prove that nothing is lost
  normlab figure NAME RUN ... [KEY=VALUE ...] [out=FILE.png|pdf|svg] [runs=FOLDER]
                                          draw a figure of the papers from the records of runs (docs/gallery.md)
  normlab list   [norms|weights|models|data|tasks|optims|schedules|trackers|launch|scales|tables|figures]

A RUN is a folder, or its name or id in results/runs (out=FOLDER for another place; of export and figure, runs=FOLDER).

  normlab train norm=sn batch=8x2         8 replicas (virtual GPUs) of 2 samples each, on any number of devices
  normlab train norm=gn weight=ws model=resnet50 data=imagenet batch=8x32 precision=bf16
  normlab train -m norm=bn,gn,sn batch=8x32,8x8,8x2 seed=0,1,2
  normlab reproduce table2                BN, GN and SN at nine batch settings: paper | measured | difference
  normlab train norm=hn --cfg job         print the resolved settings and stop

conf/config.yaml explains the settings. Every record of a run is in its folder; W&B mirrors it (tracker=none: not).
"""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.errors import DiskFullError, RunError, UserError, is_out_of_memory, nearest, plain, unknown
from normlab.processes.lifetimes import LAUNCHER, takes_signals
from normlab.writing import is_full

if TYPE_CHECKING:
    from normlab.config import Config
    from normlab.runs.folder import RunFolder

BAD_INPUT = 2
DEFAULT_OUT = "results/runs"
LONGEST_MESSAGE = 2000  # characters; a word of a million is not to be read back whole
MOST_SEEDS = 1000  # of a table


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit status. A user's mistake is one line on stderr and status 2."""
    words = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    try:
        with _CtrlC():
            status = _run(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (UserError, RunError) as error:
        return _refuse(str(error), error.exit_status)
    except BrokenPipeError:  # as of `normlab list | head -1`
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:  # of a file or folder that cannot be used
        if error.filename is None:
            _discard_output()
        full = error.filename is not None and is_full(error)
        status = DiskFullError.exit_status if full else BAD_INPUT
        return _refuse(f"{error.filename or 'output'}: {error.strerror or error}", status)
    except Exception as error:
        if is_out_of_memory(error):
            return _refuse(f"there is not enough memory for these settings: {error}", RunError.exit_status)
        raise


class _CtrlC:
    """Notes a Ctrl-C: where it cuts an import short, Python may raise anything, and here KeyboardInterrupt again."""

    pressed = False

    def __enter__(self) -> None:
        self._previous = signal.getsignal(signal.SIGINT) if takes_signals() else None
        if self._previous is signal.default_int_handler:  # else someone else takes care
            signal.signal(signal.SIGINT, self._note)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._previous)
        if self.pressed and isinstance(error, Exception):
            raise KeyboardInterrupt from error

    def _note(self, *_: object) -> None:
        self.pressed = True
        raise KeyboardInterrupt


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    if words[0] == "--version":
        from normlab import __version__

        print(f"normlab {__version__}")
        return 0
    if words[0] not in VERBS:
        raise unknown("command", words[0], VERBS)
    _check_place(words[0])
    if "--help" in words[1:] or "-h" in words[1:]:
        print(__doc__.strip())
        return 0
    return VERBS[words[0]]([_without_tilde(word) for word in words[1:]])


def _check_place(verb: str) -> None:
    """Raise UserError where nothing can begin: in a folder that is gone, or as one of several processes of torchrun."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder does not exist any more; cd to one that does") from None
    if verb == "train" and "TORCHELASTIC_RUN_ID" in os.environ and LAUNCHER not in os.environ:
        raise UserError(
            "normlab starts the processes of a run itself: type `normlab train ... devices=N` without torchrun; "
            "docs/scale.md says how a run that has its folder is given to torchrun"
        )


def _without_tilde(word: str) -> str:
    """`data.root=~/x` as `data.root="/home/me/x"`: a shell leaves the tilde there, and Hydra cannot read it."""
    key, equals, value = word.partition("=")
    bare = value.strip("'\"")
    if not equals or not bare.startswith("~"):
        return word
    path = os.path.expanduser(bare).replace("\\", "\\\\").replace("'", "\\'")
    return word if path.startswith("~") else f"{key}='{path}'"


def _refuse(message: str, status: int = BAD_INPUT) -> int:
    line = plain(" ".join(message.split()))
    print(f"normlab: {line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 3] + '...'}", file=sys.stderr)
    return status


def _prepare_streams() -> None:
    """Let every character be written to any terminal, and output be closed (`>&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Nobody can have it, so Python is not to try again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _train(words: list[str]) -> int:
    for flag in ("-m", "--multirun"):
        if flag in words:
            from normlab.sweeps.multirun import multirun

            return multirun([word for word in words if word != flag])
    from normlab.config import load

    show = _take_cfg(words)
    config = load(words)
    if show:
        return _print_config(config)
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


def _plan(words: list[str]) -> int:
    from normlab.config import load

    if _take_cfg(words):
        return _print_config(load(words))
    config = load(words)
    from normlab.launch.plan import print_plan

    print_plan(config)
    return 0


def _show(words: list[str]) -> int:
    for folder in _runs(words, {})[0]:
        _print_summary(folder)
    return 0


def _eval(words: list[str]) -> int:
    runs, options = _runs(words, {"split": None})
    from normlab.engine.saved import evaluate_run, need_weights, splits_of

    splits = splits_of(runs, options["split"])
    need_weights(runs)
    for folder, split in zip(runs, splits, strict=True):
        _print_metrics(folder, *evaluate_run(folder, split))
    return 0


def _estimate(words: list[str]) -> int:
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


def _import(words: list[str]) -> int:
    files = [word for word in words if "=" not in word]
    if len(files) != 1:
        raise UserError("expected one file, a released checkpoint, and settings as KEY=VALUE")
    from normlab.exchange.importing import import_run

    folder, remarks = import_run(Path(files[0]), [word for word in words if word not in files])
    print("\n".join(remarks))
    return _print_summary(folder)


def _export(words: list[str]) -> int:
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


def _data(words: list[str]) -> int:
    from normlab.config import choices

    plain, options = _split(words, {"root": None})
    if len(plain) != 2 or plain[0] not in ("prepare", "verify"):
        raise UserError(f"{' '.join(['data', *plain])}: expected prepare or verify and a dataset's name")
    verb, name = plain
    if name not in choices("data"):
        raise unknown("dataset", name, choices("data"))
    from normlab.datasets import prepare, verify

    root = Path(options["root"]) if options["root"] else None
    if verb == "prepare":
        print(prepare(name, root))
        return 0
    problems = verify(name, root)
    print("\n".join(problems) or f"{name}: nothing is wrong with it")
    return 1 if problems else 0


def _list(words: list[str]) -> int:
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


def _status(words: list[str]) -> int:
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


def _reproduce(words: list[str]) -> int:
    from normlab.report.tables import load_table, tables_at

    flags = ("--dry-run", "--renew")
    names, _ = _split([word for word in words if "=" not in word and word not in flags], {}, flags)
    if len(names) != 1:
        raise UserError("expected the name of one table, or all; `normlab list tables` shows them")
    own = {"scale": None, "seeds": None, "jobs": 0, "results": "results"}
    given = [word for word in words if word.partition("=")[0] in own]
    _, options = _split(given, own)
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
    from normlab.sweeps.reproduce import reproduce

    dry, renew = (flag in words for flag in flags)
    return reproduce(tables, scale, seeds, jobs, extra, Path(options["results"]), dry, renew)


def _report(words: list[str]) -> int:
    from normlab.report.render import report
    from normlab.report.tables import load_table

    names, options = _split(words, {"scale": None, "results": "results"})
    if len(names) != 1:
        raise UserError("expected the name of one table; `normlab list tables` shows them")
    table = load_table(names[0])
    scale = options["scale"] or table.default_scale
    table.scale(scale)
    for path in report(table, scale, Path(options["results"])):
        print(f"written: {path}")
    return 0


def _claims(words: list[str]) -> int:
    run = "--run" in words
    own = {"scale": "digits", "seeds": None, "jobs": 0, "results": "results"}
    names, options = _split([word for word in words if word != "--run"], own, ("--run",))
    for key in ("seeds", "jobs"):
        if not run and options[key] != own[key]:
            raise UserError(f"{key}={options[key]}: only with --run, which runs what is missing")
    from normlab.report.claims import chosen, print_claims, tables_of
    from normlab.report.tables import tables_at

    scale, results = options["scale"], Path(options["results"])
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

        status = reproduce(tables, scale, seeds, _count("jobs", options["jobs"], 0), [], results)
        wanted = chosen(names, scale, results)
    print_claims(wanted, scale)
    return status


def _figure(words: list[str]) -> int:
    from normlab.figures.command import figure

    return figure(words, DEFAULT_OUT)


def _bench(words: list[str]) -> int:
    from normlab.bench.command import run

    return run(words)


def _doctor(words: list[str]) -> int:
    chaos, flags = "--chaos" in words, ("--chaos", "--json")
    report = _take_file(words, "--json")
    of_chaos = {"kills": 20, "writes": 20, "damages": 6, "twice": 1, "seed": 0, "ranks": 1, "workers": 0}
    counts = of_chaos if chaos else {}
    place = {"out": "results/chaos" if chaos else DEFAULT_OUT}
    plain, options = _split([word for word in words if word != "--chaos"], counts | place, flags)
    if plain:
        raise UserError(f"doctor {plain[0]}: there is no such option; {nearest(plain[0], flags)}")
    out = Path(options.pop("out"))
    if not chaos:
        from normlab.doctor.diagnose import doctor

        return doctor(out, report)
    numbers = {key: _count(key, value, 1 if key == "ranks" else 0) for key, value in options.items()}
    from normlab.doctor.chaos import Proof
    from normlab.doctor.chaos import chaos as prove

    return prove(Proof.draw(**numbers), out, report or out / "report.json")


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "plan": _plan,
    "show": _show,
    "eval": _eval,
    "estimate": _estimate,
    "import": _import,
    "export": _export,
    "data": _data,
    "list": _list,
    "status": _status,
    "reproduce": _reproduce,
    "report": _report,
    "claims": _claims,
    "figure": _figure,
    "bench": _bench,
    "doctor": _doctor,
}


# ---- words of the command line, and what is printed ---------------------------------------------------------------


def _take_cfg(words: list[str]) -> bool:
    """Hydra's habit: `--cfg job` prints the settings instead of running. Removes it from the words."""
    if "--cfg" not in words:
        return False
    at = words.index("--cfg")
    if words[at + 1 : at + 2] != ["job"]:
        raise UserError(f"{' '.join(words[at : at + 2])}: expected --cfg job")
    del words[at : at + 2]
    return True


def _take_file(words: list[str], flag: str) -> Path | None:
    """The word after a flag; removes both from the words."""
    if flag not in words:
        return None
    at = words.index(flag)
    if len(words) == at + 1:
        raise UserError(f"{flag}: expected a file after it")
    name = Path(words[at + 1])
    del words[at : at + 2]
    return name


def _split(words: list[str], options: dict[str, Any], flags: tuple[str, ...] = ()) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and the options with those given as KEY=VALUE; `flags`, taken out before, are named in the error."""
    plain, options = [], dict(options)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and word.startswith("-"):
            raise UserError(f"{word}: there is no such option; {nearest(word, (*flags, *options))}")
        elif not equals:
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


def _print_summary(folder: "RunFolder") -> int:
    from normlab.report.summary import print_summary

    print_summary(folder)
    return 0


def _print_metrics(folder: "RunFolder", title: str, metrics: dict[str, dict[str, float]]) -> None:
    from normlab.report.summary import print_metrics
    from normlab.runs.records import metrics_of_run

    print(folder.path.name)  # no title of the table, which would break it
    print_metrics(title, metrics, metrics_of_run(folder))


if __name__ == "__main__":
    sys.exit(main())
