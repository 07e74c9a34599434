"""What completes a word: verbs and options are click's, these are settings, values, runs and names. No torch here."""

import os
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from normlab.errors import UserError

Kind = Literal[
    "settings",
    "runs",
    "tables",
    "figures",
    "groups",
    "data",
    "benches",
    "estimate",
    "reproduce",
    "report",
    "export",
    "site",
]
Values = Callable[[], Iterable[str]]

_BASH = """
%(complete_func)s() {
    local reply
    reply=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete $1)
    COMPREPLY=()
    while IFS= read -r word; do
        [ -n "$word" ] && COMPREPLY+=("$word")
    done <<< "$reply"
    [ ${#COMPREPLY[@]} -eq 1 ] && [[ "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
    [ ${#COMPREPLY[@]} -eq 0 ] && compopt -o default
    return 0
}
complete -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """bash takes a word apart at its `=`; here it is whole, and what bash gets is what follows the last one."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        at = int(os.environ["COMP_CWORD"])
        found: list[str] = []
        glue = False
        for word in [*os.environ["COMP_WORDS"].split(" "), ""][: at + 1]:
            if found and (word == "=" or glue):
                found[-1] += word
            else:
                found.append(word)
            glue = word == "="
        return found[1:-1], found[-1]

    def format_completion(self, item: CompletionItem) -> str:
        return item.value.rpartition("=")[2] if not item.value.endswith("=") else item.value


add_completion_class(_Bash, "bash")


def complete(kinds: Sequence[Kind], before: Sequence[str], incomplete: str) -> list[CompletionItem]:
    """Words that begin so, of these kinds; nothing where something is wrong: a shell cannot show why."""
    try:
        found = [word for kind in kinds for word in _words(kind, before, incomplete)]
    except (UserError, OSError):
        return []
    return [CompletionItem(word) for word in dict.fromkeys(found) if word.startswith(incomplete)]


def _words(kind: Kind, before: Sequence[str], incomplete: str) -> Iterable[str]:
    key, equals, value = incomplete.partition("=")
    if kind == "settings":
        return _values(key, value, before) if equals else _keys(key, before)
    if kind in _OPTIONS:
        options = _OPTIONS[kind]
        return [f"{key}={v}" for v in options.get(key, lambda: ())()] if equals else [f"{name}=" for name in options]
    if equals:
        return []
    return _NAMES[kind]()


# ---- settings --------------------------------------------------------------------------------------------------------


def _keys(typed: str, before: Sequence[str]) -> Iterable[str]:
    """norm=, optim.lr=, and a group with a dot once the first part is there."""
    from normlab.config import EXPERIMENT, GROUPS, SETTINGS

    sign = re.match(r"\+*", typed)
    group, dot, _ = typed.partition(".")
    if dot:
        return [f"{group}.{name}=" for name in _parameters(group, before)]
    if sign and sign[0]:
        return [f"+{EXPERIMENT}="]
    with_dot = [f"{name}." for name in (*GROUPS, *_NESTED) if name.startswith(typed) and typed]
    return [*(f"{name}=" for name in (*SETTINGS, "scale")), *with_dot]


_NESTED = ("batch_average", "checkpoint", "record")


def _parameters(group: str, before: Sequence[str]) -> dict[str, Any]:
    """The settings of a group's choice, which words before may have made; name -> type."""
    from normlab import schema
    from normlab.config import GROUPS, BatchAverage, Checkpoint, Record, default_choice, target_of

    settings = {"batch_average": BatchAverage, "checkpoint": Checkpoint, "record": Record}
    if group in settings:
        return {name: parameter.hint for name, parameter in schema.parameters_of(settings[group]).items()}
    if group not in GROUPS:
        return {}
    chosen = [word.partition("=")[2] for word in before if word.partition("=")[0] == group]
    target = target_of(group, chosen[-1].partition(",")[0] if chosen else default_choice(group))
    return {} if target is None else {name: p.hint for name, p in schema.signature(target).items()}


def _values(key: str, typed: str, before: Sequence[str]) -> Iterable[str]:
    """Of the last of several, behind commas: files of a group, what a type allows, runs to begin from."""
    from normlab import schema
    from normlab.config import EXPERIMENT, GROUPS, Config, choices

    earlier = typed.rpartition(",")[0]
    prefix = f"{key}={earlier},".replace("=,", "=") if earlier else f"{key}="
    name = key.lstrip("+")
    if name in (*GROUPS, "scale", EXPERIMENT):
        found: Iterable[str] = choices(name)
    elif name == "init":
        found = ["none", *_runs()]
    else:
        group, dot, setting = name.partition(".")
        hints = _parameters(group, before) if dot else {n: p.hint for n, p in schema.parameters_of(Config).items()}
        found = _allowed(hints.get(setting if dot else name))
    return [prefix + value for value in found]


def _allowed(hint: Any) -> list[str]:
    """The values of a type that has few."""
    if hint is bool:
        return ["true", "false"]
    if hint is type(None):
        return ["null"]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [str(value) for value in arguments]
    return [value for argument in arguments for value in _allowed(argument)]


# ---- names -----------------------------------------------------------------------------------------------------------


def _runs() -> list[str]:
    from normlab.cli.verbs import DEFAULT_OUT

    return sorted(file.parent.name for file in Path(DEFAULT_OUT).glob("*/run.json"))


def _tables() -> list[str]:
    from normlab.report.tables import tables

    return [*tables(), "all"]


def _choices(group: str) -> Values:
    def names() -> Iterable[str]:
        from normlab.config import choices

        return choices(group)

    return names


def _groups() -> Iterable[str]:
    from normlab.config import GROUPS

    return (f"{group}{'' if group in ('data', 'launch') else 's'}" for group in (*GROUPS, "scale", "table", "figure"))


def _data() -> Iterable[str]:
    from normlab.config import choices

    return ["prepare", "verify", "show", *choices("data")]


def _benches() -> Iterable[str]:
    from normlab.bench.command import BENCHES

    return BENCHES


def _scales() -> Iterable[str]:
    from normlab.report.tables import all_tables

    return dict.fromkeys(scale for table in all_tables() for scale in table.scales)


def _anything() -> Iterable[str]:
    return ()


_NAMES: dict[str, Values] = {
    "runs": _runs,
    "tables": _tables,
    "figures": _choices("figure"),
    "groups": _groups,
    "data": _data,
    "benches": _benches,
}
_OPTIONS: dict[str, dict[str, Values]] = {
    "estimate": {"samples": lambda: ["all", "50k"], "variance": lambda: ["mean", "population"],
                 "augment": lambda: ["true", "false"], "out": _anything},
    "reproduce": {"scale": _scales, "seeds": _anything, "jobs": _anything, "results": _anything},
    "report": {"scale": _scales, "results": _anything},
    "site": {"results": _anything, "runs": _anything, "out": _anything},
    "export": {"estimator": lambda: ["paper", "moving_average", "batch_average"], "out": _anything, "runs": _anything},
}  # fmt: skip
