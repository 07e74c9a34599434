"""docs/settings.md: every setting with its type, default and meaning, from conf/, signatures and docstrings.

python scripts/settings_page.py
"""

import inspect
import re
import textwrap
from pathlib import Path

from normlab.config import GROUPS, choices, conf_dir, file_of, target_of
from normlab.reading import read_mapping
from normlab.schema import Parameter, named, signature
from normlab.values import describe, shown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_OPENING = """\
# Settings

`normlab train KEY=VALUE ...` sets any of these. `normlab train --cfg job` prints them all as a command would have them,
and `normlab list GROUP` names the files of a group. A value out of its range, an unknown key or a wrong type is refused
in a line before any work. This page is made from conf/, signatures and docstrings by `python scripts/settings_page.py`.

## A run

From [conf/config.yaml](../conf/config.yaml):

```yaml
"""
# Of settings that several targets share and none explains.
USUAL = {
    "model.auxiliary": "a second classifier on the stage before the last, whose loss counts less; dropped at the test",
    "model.backbone": "the classifier that it is made of",
    "model.bins": "sides of the grids that the pyramid pools to",
    "model.blocks": "blocks of a stage, or of each",
    "model.depth": "layers, as its authors count them",
    "model.dropout": "probability ahead of the last layer",
    "model.groups": "groups of the grouped convolutions",
    "model.growth": "channels that each layer of a dense block adds",
    "model.k": "neighbours of a point",
    "model.layers": "blocks of each stage",
    "model.name": "as the library calls it",
    "model.pretrained": "the library's weights, fetched where they are not on the disk",
    "model.pyramid": "pool at several sizes ahead of the classifier, as PSPNet",
    "model.shortcut": "what joins stages of unequal width: a projection with a norm, or zeros for new channels",
    "model.stride": "of the last maps, in pixels of the image",
    "model.width": "channels of the first stage, or the library's name for a factor of all",
    "data.augment": "random changes of the training samples",
    "data.identities": "characters that are told apart",
    "data.length": "samples of a training epoch",
    "data.light": "how much light differs from image to image",
    "data.noise": "standard deviation of the noise, where pixels are from 0 to 1",
    "data.padding": "pixels at each side ahead of the random crop",
    "data.root": "where the files lie",
    "data.scale": "of the smallest and of the largest, as a share of the picture",
    "data.size": "side of the images in pixels",
    "data.val_length": "samples of the validation set",
    "data.validation": "the handwriting or the characters of the test, or those that are kept for pilots",
    "optim.alpha": "kept share of the squared gradient's average",
    "optim.beta1": "kept share of the gradient's average",
    "optim.beta2": "kept share of the squared gradient's average",
    "optim.decay": "all: weight decay on every parameter; not_norm: none on gamma, beta and the logits of ratios",
    "optim.eps": "added to the denominator",
    "optim.lr": "learning rate for lr_batch samples an update",
    "optim.lr_batch": "samples of an update for which lr holds; the rate is lr * samples / lr_batch. null: lr as it is",
    "optim.momentum": "kept share of the last step",
    "optim.nesterov": "Nesterov's momentum",
    "optim.weight_decay": "weight decay, as torch's optimizers have it",
    "schedule.every": "after how long, in `unit`, the rate is multiplied once more",
    "schedule.factor": "what the rate is multiplied with",
    "schedule.least": "smallest factor of the rate",
    "schedule.milestones": "when the rate is multiplied, in `unit`",
    "schedule.power": "of the share of the run that is left",
    "schedule.unit": "of lengths: fractions of the run, epochs, or iterations (updates)",
    "schedule.warmup": "how long, in `unit`, the rate rises linearly from 0",
}
_TITLES = {
    "norm": "Normalizers",
    "weight": "Weights",
    "model": "Models",
    "data": "Data",
    "task": "Tasks",
    "optim": "Optimizers",
    "schedule": "Schedules",
    "tracker": "Trackers",
    "launch": "Launchers",
}


def page() -> str:
    """The whole page."""
    config = (conf_dir() / "config.yaml").read_text(encoding="utf-8")
    return f"{_OPENING}{config}```\n" + "".join(_group(group) for group in GROUPS)


def _group(group: str) -> str:
    """A table of the files, then one of the settings of each target that they name."""
    by_target: dict[str, list[str]] = {}
    for name in choices(group):
        by_target.setdefault(str(target_of(group, name)), []).append(name)
    lines = [f"\n## {_TITLES[group]}\n", f"| {group}= | what it is |", "| --- | --- |"]
    lines += [f"| `{name}` | {_cell(choices(group)[name])} |" for name in choices(group)]
    for target, names in by_target.items():
        parameters = {} if target == "None" else signature(target)
        if not parameters:
            continue
        meanings = _meanings(target)
        lines += [f"\n{_files(group, names)}: `{target}`\n", "| setting | type | default | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for key, parameter in parameters.items():
            meaning = meanings.get(key) or _comment(group, names, key) or USUAL.get(f"{group}.{key}", "")
            lines.append(
                f"| `{group}.{key}` | {_cell(describe(parameter.hint))} | {_default(group, names, key, parameter)} "
                f"| {_cell(meaning)} |"
            )
    return "\n".join(lines) + "\n"


def _files(group: str, names: list[str]) -> str:
    return ", ".join(f"`{group}={name}`" for name in names)


def _default(group: str, names: list[str], key: str, parameter: Parameter) -> str:
    """Of the signature; where files say something else, theirs."""
    said = {name: read_mapping(file_of(group, name)) for name in names}
    values = {name: node[key] for name, node in said.items() if key in node}
    spelled = {name: f"`{_cell(shown(values.get(name, parameter.default)))}`" for name in names if name in values}
    if len(set(spelled.values())) == 1 and len(spelled) == len(names):
        return next(iter(spelled.values()))
    usual = "" if parameter.is_required else f"`{_cell(shown(parameter.default))}`"
    return ", ".join(filter(None, (usual, "by file" if values else "")))


def _comment(group: str, names: list[str], key: str) -> str:
    """What a file says of a setting, behind its value."""
    for name in names:
        said = re.search(rf"^{key}:.*?\s# (.*)$", file_of(group, name).read_text(encoding="utf-8"), re.MULTILINE)
        if said:
            return said[1]
    return ""


def _meanings(target: str) -> dict[str, str]:
    """Parameter -> what its docstring says."""
    found: dict[str, str] = {}
    thing = named(target)
    bases = thing.__mro__ if inspect.isclass(thing) else [thing]
    docs = [inspect.cleandoc(doc) for base in bases for doc in (base.__doc__, _of_init(base)) if doc]
    for doc in docs:
        arguments = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
        text = textwrap.dedent(arguments[1]) if arguments else ""
        for entry in re.findall(r"^([\w, ]+): (.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE):
            for name in entry[0].split(", "):
                found.setdefault(name, " ".join(entry[1].split()))
    return found


def _of_init(base: object) -> str | None:
    return getattr(vars(base).get("__init__"), "__doc__", None) if inspect.isclass(base) else None


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
