"""What is printed is data: names and records may come from anyone, and are no markup and no commands to a terminal."""

from typing import Any

from rich.console import Console
from rich.text import Text

from normlab.errors import plain


class PlainConsole(Console):
    """A console of rich that prints texts, those in tables too, as they are; style is given by other means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(plain(text), **options)
