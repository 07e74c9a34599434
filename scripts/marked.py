"""The parts of a page that a script fills: between <!-- KIND: NAME --> and <!-- /KIND -->."""

import re
from collections.abc import Callable


def fill(page: str, kind: str, make: Callable[[str], str]) -> str:
    """The page with make(NAME) in each of its parts of a kind."""
    part = re.compile(rf"(<!-- {kind}: ([\w.]+) -->\n).*?(<!-- /{kind} -->)", re.DOTALL)
    return part.sub(lambda found: f"{found[1]}{make(found[2])}\n{found[3]}", page)
