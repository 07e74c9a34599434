"""What a check of the machine says."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass
class Check:
    """One line of the doctor's table.

    Args:
        name: what was checked.
        result: what there is.
        level: ok; warn: works, or works in part, and could be better; fail: runs would not work.
        advice: what to do about it; empty where nothing is to be done.
    """

    name: str
    result: str
    level: Level = "ok"
    advice: str = ""


Checks = Iterator[Check]
