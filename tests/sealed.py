"""Changing what a run has written, as a stranger would who knows how: without the digest that would tell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normlab.reading import read_json
from normlab.runs.folder import RunFolder
from normlab.writing import SEAL


def unsealed(text: str) -> str:
    """A file of JSON, or of a JSON object a line, without digests."""
    if "\n{" not in text.rstrip():
        value = json.loads(text)
        return json.dumps({key: value[key] for key in value if key != SEAL}, indent=2) + "\n"
    return "".join(
        json.dumps({k: v for k, v in json.loads(line).items() if k != SEAL}) + "\n" for line in text.splitlines()
    )


def rewrite(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """`edit` changes the object in place."""
    value = read_json(path)
    edit(value)
    path.write_text(json.dumps(value))


def forget_digests(folder: RunFolder) -> None:
    """Of the run's records and weights."""
    rewrite(folder.status_file, lambda status: status.pop("files"))
