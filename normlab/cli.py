"""normlab: one command reproduces a result about normalization layers.

  normlab train  [KEY=VALUE ...]          train and evaluate a run, or resume it; finished runs are not run again
  normlab plan   [KEY=VALUE ...]          what a run would be: steps, samples, parameters, norm layers, replicas
  normlab show   RUN ...                  outcome of runs
  normlab eval   RUN ... [split=val]      evaluate a run's weights again, under each estimator
  normlab estimate RUN ... [samples=50k] [variance=mean|population] [augment=true|false]
                                          measure batch-average statistics again, and evaluate with them
  normlab data   prepare|verify NAME [root=FOLDER]
  normlab list   [norms|weights|models|data|tasks|optims|schedules|trackers|launch|runs]

A RUN is a folder, or its name or id in results/runs (out=FOLDER for another place).

  normlab train norm=sn batch=8x2         8 replicas (virtual GPUs) of 2 samples each, on any number of devices
  normlab train norm=gn weight=ws model=resnet50 data=imagenet batch=8x32 precision=bf16
  normlab train norm=hn --cfg job         print the resolved settings and stop

conf/config.yaml explains the settings. Every record of a run is in its folder; W&B mirrors it (tracker=none: not).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.errors import UserError, nearest, unknown

if TYPE_CHECKING:
    from normlab.config import Config
    from normlab.engine.record import RunFolder

BAD_INPUT = 2
DEFAULT_OUT = "results/runs"


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit status. A user's mistake is one line on stderr and status 2."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(__doc__.strip())
            return 0
        if words[0] == "--version":
            from normlab import __version__

            print(f"normlab {__version__}")
            return 0
        if words[0] not in VERBS:
            raise unknown("command", words[0], VERBS)
        if "--help" in words[1:] or "-h" in words[1:]:
            print(__doc__.strip())
            return 0
        return VERBS[words[0]](words[1:])
    except UserError as error:
        print(f"normlab: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def _train(words: list[str]) -> int:
    for flag in ("-m", "--multirun"):
        if flag in words:
            from normlab.multirun import multirun

            return multirun([word for word in words if word != flag])
    from normlab.config import load

    show = _take_cfg(words)
    config = load(words)
    if show:
        return _print_config(config)
    from normlab.engine.record import RunFolder

    folder = RunFolder.of(config)
    status = folder.status()["status"]
    if folder.is_over and not config.rerun:
        print(f"This run is {status} already; rerun=true starts it over.")
        return _print_summary(folder)
    from normlab.engine.start import start

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
    from normlab.report.plan import print_plan

    print_plan(config)
    return 0


def _show(words: list[str]) -> int:
    for folder in _runs(words, {})[0]:
        _print_summary(folder)
    return 0


def _eval(words: list[str]) -> int:
    runs, options = _runs(words, {"split": "val"})
    from normlab.engine.saved import evaluate_run

    for folder in runs:
        _print_metrics(folder, evaluate_run(folder, options["split"]))
    return 0


def _estimate(words: list[str]) -> int:
    from normlab import schema
    from normlab.config import BatchAverage

    runs, options = _runs(words, {"samples": "50k", "variance": "mean", "augment": "true"})
    switches = {"true": True, "false": False}
    options["augment"] = switches.get(options["augment"], options["augment"])
    settings = BatchAverage(**schema.check(options, schema.parameters_of(BatchAverage)))
    _ = settings.num_samples
    from normlab.engine.saved import estimate_run

    for folder in runs:
        _print_metrics(folder, estimate_run(folder, settings))
    return 0


def _data(words: list[str]) -> int:
    from normlab.config import choices

    plain, options = _split(words, {"root": None})
    if len(plain) != 2 or plain[0] not in ("prepare", "verify"):
        raise UserError(f"normlab data {' '.join(plain)}: expected prepare or verify and a dataset's name")
    verb, name = plain
    if name not in choices("data"):
        raise unknown("dataset", name, choices("data"))
    from normlab.data.prepare import prepare, verify

    root = Path(options["root"]) if options["root"] else None
    if verb == "prepare":
        print(prepare(name, root))
        return 0
    problems = verify(name, root)
    print("\n".join(problems) or f"{name}: nothing is wrong with it")
    return 1 if problems else 0


def _list(words: list[str]) -> int:
    from normlab.config import GROUPS, choices

    known = {**{f"{group}s": group for group in GROUPS}, **{group: group for group in GROUPS}}
    plain, options = _split(words, {"out": DEFAULT_OUT})
    for word in plain or ["norms"]:
        if word not in (*known, "runs"):
            raise UserError(f"list {word}: there is no such group; {nearest(word, [*known, 'runs'])}")
        described = _describe_runs(Path(options["out"])) if word == "runs" else choices(known[word])
        width = max(map(len, described), default=0)
        for name, comment in described.items():
            print(f"{name:<{width}}  {comment}")
    return 0


def _describe_runs(out: Path) -> dict[str, str]:
    """Name of each run in a folder -> its status, and what it reached."""
    from normlab.engine.record import RunFolder

    described = {}
    for folder in (RunFolder(path.parent) for path in sorted(out.glob("*/run.json"))):
        described[folder.path.name] = folder.status()["status"]
        headline = folder.summary()["headline"] if folder.summary_file.is_file() else {"value": None}
        if headline["value"] is not None:
            described[folder.path.name] += f", {headline['metric']} {headline['value']:.2f}"
    return described


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "plan": _plan,
    "show": _show,
    "eval": _eval,
    "estimate": _estimate,
    "data": _data,
    "list": _list,
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


def _split(words: list[str], options: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and the options with those given as KEY=VALUE."""
    plain, options = [], dict(options)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            plain.append(word)
        elif key in options:
            options[key] = value
        else:
            raise UserError(f"{word}: there is no such option; {nearest(key, options)}")
    return plain, options


def _runs(words: list[str], options: dict[str, Any]) -> tuple[list["RunFolder"], dict[str, Any]]:
    from normlab.engine.record import RunFolder

    names, options = _split(words, {"out": DEFAULT_OUT} | options)
    if not names:
        raise UserError("expected a run: its folder, name or id; `normlab list runs` shows them")
    out = Path(options.pop("out"))
    return [RunFolder.find(name, out) for name in names], options


def _print_config(config: "Config") -> int:
    import yaml

    print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
    return 0


def _print_summary(folder: "RunFolder") -> int:
    from normlab.report.summary import print_summary

    print_summary(folder)
    return 0


def _print_metrics(folder: "RunFolder", metrics: dict[str, dict[str, float]]) -> None:
    from normlab.report.summary import print_metrics

    print_metrics(folder.path.name, metrics)


if __name__ == "__main__":
    sys.exit(main())
