"""Which files of conf/ go together: a model or a dataset with a task that takes it, a task with what it takes."""

from normlab.config import choices, default_choice, kinds_of, target_of
from normlab.schema import class_attribute

PAIRED = ("model", "data")


def takes(task: str) -> dict[str, list[str]]:
    return class_attribute(target_of("task", task), "takes") or {}


def _fits(group: str, name: str, task: str) -> bool:
    wanted, kinds = takes(task).get(group, []), kinds_of(group, name)
    return not wanted or not kinds or bool({*wanted} & {*kinds})


def task_of(group: str, name: str) -> str | None:
    """A task that a file can be tried with; None for data of a task that is not there yet."""
    if group == "task":
        return name
    tasks = [default_choice("task"), *choices("task")]
    return next((task for task in tasks if group not in PAIRED or _fits(group, name, task)), None)


def companions(group: str, name: str) -> list[str]:
    """The words that a file needs beside it to be composed: the task, whose own choices fit; none for most."""
    task = task_of(group, name) or default_choice("task")
    return [f"task={task}"] * (task != default_choice("task") and group != "task")
