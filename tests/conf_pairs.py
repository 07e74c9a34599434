"""Which files of conf/ go together: a model or a dataset with a task that takes it, a task with what it takes."""

import yaml

from normlab.config import choices, default_choice, file_of, kinds_of, target_of
from normlab.schema import class_attribute

PAIRED = ("model", "data")


def takes(task: str) -> dict[str, list[str]]:
    return class_attribute(target_of("task", task), "takes") or {}


def _fits(group: str, name: str, task: str) -> bool:
    wanted, kinds = takes(task).get(group, []), kinds_of(group, name)
    return not wanted or not kinds or bool({*wanted} & {*kinds})


def task_of(group: str, name: str) -> str | None:
    """A task that a file can be tried with; None where no task takes it."""
    if group == "task":
        return name
    tasks = [default_choice("task"), *choices("task")]
    return next((task for task in tasks if group not in PAIRED or _fits(group, name, task)), None)


def _brings(task: str) -> dict[str, str]:
    """What a task's file chooses in other groups."""
    defaults = yaml.safe_load(file_of("task", task).read_text()).get("defaults", [])
    return {key.split("/")[1].split("@")[0]: value for entry in defaults for key, value in entry.items()}


def _first(group: str, task: str) -> str:
    """The default file if the task takes it, else the first that it takes."""
    names = [default_choice(group), *choices(group)]
    return next(name for name in names if _fits(group, name, task))


def companions(group: str, name: str) -> list[str]:
    """The words that a file needs beside it to be composed: the task, and what it does not bring; none for most."""
    task = task_of(group, name) or default_choice("task")
    words = [f"task={task}"] * (task != default_choice("task") and group != "task")
    others = [(other, _first(other, task)) for other in PAIRED if other not in (group, *_brings(task))]
    return words + [f"{other}={chosen}" for other, chosen in others if chosen != default_choice(other)]
