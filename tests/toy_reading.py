"""A task that reads a file beside its data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normlab.tasks.classification import Classification


class Styled(Classification):
    def __init__(self, model: Mapping[str, Any], data: Mapping[str, Any], seed: int, *, style: Path) -> None:
        super().__init__(model, data, seed)
        assert isinstance(style, Path)
        self.content = style.read_bytes()
