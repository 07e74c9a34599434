"""The verbs as click's commands: their options, help, and what completes their words. Nothing here imports torch."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from normlab.cli import verbs
from normlab.cli.completing import Kind, complete
from normlab.errors import UserError, nearest, unknown
from normlab.processes.lifetimes import LAUNCHER

# Hydra's own, and why normlab has not got them.
NOT_HERE = {
    "--config-name": "settings have one file, conf/config.yaml; +experiment=NAME with --config-dir changes it",
    "--config-path": "conf/ is normlab's own; --config-dir FOLDER adds yours",
    "--package": "--cfg job prints all settings; there are no packages among them",
    "--resolve": "--cfg job prints what interpolations stand for already",
    "--run": "normlab train runs; normlab plan says what it would be",
    "--shell-completion": 'eval "$(_NORMLAB_COMPLETE=bash_source normlab)" completes words; or zsh_source, fish_source',
    "--hydra-help": "normlab train --help has what there is of Hydra's",
    "--experimental-rerun": "the same command goes on with a run; rerun=true starts it over",
}
_SPELLINGS = {"-c": "--cfg", "-cd": "--config-dir", "-cn": "--config-name", "-cp": "--config-path", "-p": "--package"}

EPILOG = """\b
normlab train norm=sn batch=8x2           8 replicas (virtual GPUs) of 2 samples each, on any number of devices
normlab train norm=gn weight=ws model=resnet50 data=imagenet batch=8x32 precision=bf16
normlab train -m norm=bn,gn,sn batch=8x32,8x8,8x2 seed=0,1,2
normlab reproduce table2                  BN, GN and SN at nine batch settings: paper | measured | difference
normlab train norm=hn --cfg job           print the resolved settings and stop
normlab COMMAND --help                    what a command takes

\b
A RUN is a folder, or its name or id in results/runs (out=FOLDER for another place; of export and figure, runs=FOLDER).
KEY=VALUE sets what conf/config.yaml explains; the groups are norm, weight, model, data, task, optim, schedule, tracker
and launch, and `normlab list GROUP` names their files. Every record of a run is in its folder; W&B mirrors it
(tracker=none: not).
"""


class _Verbs(click.Group):
    """The commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = [name for option in self.get_params(ctx) for name in option.opts]
        if args and args[0].startswith("-") and args[0] not in own:
            name = args[0].partition("=")[0]
            if any(name in option.opts for command in self.commands.values() for option in command.params):
                raise UserError(f"{args[0]}: options stand behind the command, as normlab train {args[0]}")
            raise unknown("command", args[0], self.commands)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


class _Verb(click.Command):
    """A command whose words are KEY=VALUE, names of runs, and options among them."""

    def __init__(self, name: str, call: Callable[..., int], kinds: Sequence[Kind], **settings: Any) -> None:
        def completed(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
            return complete(kinds, ctx.params.get("words") or (), incomplete)

        metavar = settings.pop("metavar")
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, metavar=metavar, shell_complete=completed)
        params = [*settings.pop("params", ()), _CONFIG_DIR, words]
        super().__init__(name, params=params, callback=_called(name, call), **settings)

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> click.Context:
        for word in args:
            name = _SPELLINGS.get(word, word.partition("=")[0])
            if name in NOT_HERE and not any(name in option.opts for option in self.params):
                raise UserError(f"{word}: this option of Hydra's is not here: {NOT_HERE[name]}")
        return super().make_context(info_name, args, *more, **extra)


def _called(verb: str, call: Callable[..., int]) -> Callable[..., int]:
    def run(words: tuple[str, ...], config_dir: str | None, **flags: Any) -> int:
        from normlab.config import use_own_dir

        _check_place(verb)
        if config_dir is not None:
            use_own_dir(os.path.expanduser(config_dir))
        return call([_without_tilde(word) for word in words], **flags)

    return run


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


def said(error: click.ClickException) -> str:
    """What is wrong with the words, in one line."""
    if isinstance(error, click.NoSuchOption):
        options = (
            [name for param in error.ctx.command.get_params(error.ctx) for name in param.opts] if error.ctx else []
        )
        allowed = [name for name in options if name.startswith("-")]
        return f"{error.option_name}: there is no such option; {nearest(error.option_name, allowed)}"
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name}: expected {_EXPECTED.get(error.option_name, 'a value')} after it"
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{error.param.opts[0]}: {error.message}"
    return error.format_message()


_EXPECTED = {"--cfg": "job, as --cfg job,", "--config-dir": "a folder", "--json": "a file"}
_CONFIG_DIR = click.Option(
    ["--config-dir"],
    envvar="NORMLAB_CONFIG_DIR",
    metavar="FOLDER",
    help="Your own files beside conf/ (FOLDER/norm/mine.yaml is norm=mine), and modules.",
)
_OF_SETTINGS = [
    click.Option(
        ["--cfg"], metavar="job", callback=lambda ctx, param, value: _cfg(value),
        help="Print the resolved settings and stop.",
    ),
    click.Option(["--info"], is_flag=True, help="Print where each group's file lies and stop."),
]  # fmt: skip


def _cfg(value: str | None) -> str | None:
    if value not in (None, "job", "hydra", "all"):
        raise UserError(f"--cfg {value}: expected --cfg job")
    if value in ("hydra", "all"):
        raise UserError(
            f"--cfg {value}: expected --cfg job; Hydra composes files here, and its own settings change no run"
        )
    return value


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _command(name: str, call: Callable[..., int], metavar: str, text: str, *examples: str, **more: Any) -> _Verb:
    kinds = more.pop("kinds", ())
    return _Verb(name, call, kinds, metavar=metavar, help=text, epilog=_examples(*examples), **more)


def command_line() -> click.Group:
    from normlab import __version__

    group = _Verbs(
        "normlab",
        help="One command reproduces a result about normalization layers.",
        epilog=EPILOG,
        invoke_without_command=True,
        callback=_without_command,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
        params=[],
    )
    click.version_option(__version__, message="%(prog)s %(version)s", prog_name="normlab")(group)
    for command in _commands():
        group.add_command(command)
    return group


@click.pass_context
def _without_command(ctx: click.Context) -> int:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    return 0


def _commands() -> list[_Verb]:
    multirun = click.Option(["-m", "--multirun"], is_flag=True, help="A sweep: every combination of KEY=VALUE,VALUE.")
    return [
        _command(
            "train", verbs.train, "[KEY=VALUE]...",
            "Train and evaluate a run, or go on with it. A finished one is not run again.\n\n"
            "With -m, a sweep: jobs=N cells side by side, on_failure=stop or continue; hydra/sweeper=optuna and "
            "hydra/launcher=submitit_slurm are Hydra's.",
            "normlab train norm=sn batch=8x2",
            "normlab train -m norm=bn,gn,sn batch=8x32,8x2 seed=0,1,2 jobs=2",
            "normlab train --config-dir lab +experiment=mine norm=own_norm",
            "normlab train norm=hn --cfg job",
            params=[multirun, *_OF_SETTINGS], kinds=["settings"],
        ),
        _command(
            "plan", verbs.plan, "[throughput=N|FILE] [KEY=VALUE]...",
            "Say what a run would be. Its updates, samples, parameters, norm layers, replicas; nothing is trained.",
            "normlab plan norm=hn model=resnet101 data=synthetic", "normlab plan scale=imagenet_sn throughput=400",
            params=_OF_SETTINGS, kinds=["settings"],
        ),
        _command(
            "status", verbs.status, "[KEY=VALUE,VALUE]... [out=FOLDER]",
            "Say how far runs are. Those of a sweep, or without words all.",
            "normlab status", "normlab status norm=bn,sn batch=8x2", kinds=["settings"],
        ),
        _command(
            "show", verbs.show, "RUN... [out=FOLDER]",
            "Show the outcome of runs.", "normlab show 1a2b3c4d", kinds=["runs"],
        ),
        _command(
            "eval", verbs.evaluate, "RUN... [split=val] [out=FOLDER]",
            "Evaluate a run's weights again. Under each estimator of the statistics.",
            "normlab eval 1a2b3c4d", kinds=["runs"],
        ),
        _command(
            "estimate", verbs.estimate,
            "RUN... [samples=50k] [variance=mean|population] [augment=true|false] [out=FOLDER]",
            "Measure batch-average statistics again. And evaluate with them.",
            "normlab estimate 1a2b3c4d samples=all variance=population", kinds=["runs", "estimate"],
        ),
        _command(
            "predict", verbs.predict, "RUN [split=val] [out=FOLDER] [runs=FOLDER]",
            "Write a run's predictions as files. Of segmentation, a PNG of each image with its classes as the dataset "
            "numbers them: what Cityscapes' server takes of split=test.",
            "normlab predict 1a2b3c4d split=test out=submission", kinds=["runs"],
        ),
        _command(
            "reproduce", verbs.reproduce,
            "TABLE|all [scale=digits] [seeds=3] [jobs=N] [results=FOLDER] [throughput=N|FILE] [KEY=VALUE]...",
            "Run what is missing of a paper's table, and report it. With all: of every table that has the scale.",
            "normlab reproduce table2 --dry-run", "normlab reproduce all scale=digits seeds=1",
            params=[
                click.Option(["--dry-run"], is_flag=True, help="How many runs are missing, and how long they take."),
                click.Option(["--renew"], is_flag=True, help="Run again what another version of the code made."),
            ],
            kinds=["tables", "reproduce", "settings"],
        ),
        _command(
            "report", verbs.report, "TABLE [scale=digits] [results=FOLDER]",
            "Report a table again, from its records alone.", "normlab report table2", kinds=["tables", "report"],
        ),
        _command(
            "claims", verbs.claims, "[CLAIM]... [scale=SCALE] [results=FOLDER] [seeds=3] [jobs=N]",
            "Tell the papers' claims, and the verdicts so far. Also where each is tested.",
            "normlab claims sn_iclr", "normlab claims --run bn_falls seeds=3",
            params=[click.Option(["--run"], is_flag=True, help="Run what is missing for the claims that are named.")],
            kinds=["report"],
        ),
        _command(
            "figure", verbs.figure, "NAME RUN... [KEY=VALUE]... [out=FILE.png|pdf|svg] [runs=FOLDER]",
            "Draw a figure from the records of runs. All are in docs/gallery.md.",
            "normlab figure ratio_curves 1a2b3c4d", kinds=["figures", "runs"],
        ),
        _command(
            "site", verbs.site, "[results=FOLDER] [runs=FOLDER] [out=FOLDER]",
            "Make pages of all that was measured. Claims, tables beside the papers', runs with curves and ratios, two "
            "runs compared; a browser opens results/site/index.html as a file.",
            "normlab site", "normlab site results=results runs=/scratch/runs out=site", kinds=["site"],
        ),
        _command(
            "import", verbs.import_, "FILE [KEY=VALUE]...",
            "Make a run of a released SN, SSN or WS checkpoint. What the file does not tell of is given as for train.",
            "normlab import ResNet50v1_SN8x2.pth data=imagenet", kinds=["settings"],
        ),
        _command(
            "export", verbs.export, "RUN... [out=FOLDER] [estimator=paper|moving_average|batch_average] [runs=FOLDER]",
            "Fold norms into weights, for inference. As safetensors and by torch.export, checked and timed.",
            "normlab export 1a2b3c4d", kinds=["runs", "export"],
        ),
        _command(
            "data", verbs.data, "prepare|verify|show NAME [root=FOLDER] [KEY=VALUE]... [out=FILE.png]",
            "Make a dataset ready, list what is wrong with it, or draw samples of it, under settings of the dataset.",
            "normlab data prepare cifar10", "normlab data verify imagenet root=/data/imagenet",
            "normlab data show scenes light=1 out=scenes.png", kinds=["data"],
        ),
        _command(
            "bench", verbs.bench, "norm|step|train|data|scenes|start [KEY=VALUE]...",
            "Measure speed. Results are in docs/performance.md; `normlab bench NAME options` explains.",
            "normlab bench norm batch=8x2", kinds=["benches"],
        ),
        _command(
            "doctor", verbs.doctor,
            "[out=FOLDER] [kills=20] [writes=20] [damages=6] [twice=1] [seed=0] [ranks=1] [workers=0]",
            "Check the machine. Versions, devices, disk, collectives, datasets; the numbers are --chaos's.",
            "normlab doctor", "normlab doctor --chaos kills=5",
            params=[
                click.Option(["--chaos"], is_flag=True, help="Kill and damage small runs: prove that nothing is lost."),
                click.Option(["--json"], metavar="FILE", help="Write the report there."),
            ],
        ),
        _command(
            "list", verbs.list_, "[GROUP]...",
            "List the choices of groups. Norms, weights, models, data, tasks, optims, schedules, trackers, launch, "
            "scales, tables, figures.",
            "normlab list norms", kinds=["groups"],
        ),
    ]  # fmt: skip
