"""Parts of a model: which part a module is of, and which settings count for it (parts.NAME.norm=..., ...)."""

from collections.abc import Mapping, Sequence
from typing import Any

from normlab.errors import unknown


class Parts:
    """The parts that a task names (Task.parts), and what a run sets for them.

    Args:
        prefixes: part -> prefix of its modules' names, or several.
        settings: part -> what is set for it.

    Raises:
        UserError: a setting for a part that there is not.
    """

    def __init__(self, prefixes: Mapping[str, str | Sequence[str]], settings: Mapping[str, Mapping[str, Any]]) -> None:
        self.prefixes = {part: (p,) if isinstance(p, str) else tuple(p) for part, p in prefixes.items()}
        for part in settings:
            if part not in self.prefixes:
                raise unknown("parts: part", part, self.prefixes)
        self._settings = settings

    def chain(self, name: str) -> tuple[str, ...]:
        """The parts of a module, or of a parameter: those with the longest prefix that fits its name, aliases first."""
        fitting = [(p, part) for part, own in self.prefixes.items() for p in own if fits(p, name)]
        longest = max((len(prefix) for prefix, _ in fitting), default=-1)
        return tuple(part for prefix, part in fitting if len(prefix) == longest)

    def of(self, name: str) -> str | None:
        """The one part that a module is counted to; None where no part fits."""
        return next(reversed(self.chain(name)), None)

    def settings_of(self, name: str) -> dict[str, Any]:
        """What is set for a module: by its part, or else by an alias of it."""
        return self.merged(self.chain(name))

    def merged(self, chain: Sequence[str]) -> dict[str, Any]:
        """The settings of a chain of parts; the last that has one counts."""
        return {key: value for part in chain for key, value in self._settings.get(part, {}).items()}

    def declared(self, part: str) -> dict[str, Any]:
        """What is set for a part itself, before there is a model."""
        prefixes = set(self.prefixes[part])
        aliases = [other for other, own in self.prefixes.items() if other != part and prefixes & set(own)]
        return self.merged([*aliases, part])


def fits(prefix: str, name: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")
