"""What a run reads beside its settings: data, files, the run that it begins from. No torch here.

A run is its settings and these. identity (settings.py) names the first and needs no data; `inputs` is the digest of the
second, kept in run.json and compared wherever both are known: the same data at another place are the same run, other
data are another.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normlab import schema
from normlab.config.initial import Initial
from normlab.config.settings import GROUPS, Config, places
from normlab.data.stored import NOTES, fingerprint
from normlab.reading import read_json

NOTHING = ""


def inputs(config: Config, without: str = "") -> str | None:
    """Sixteen hex digits; NOTHING where a run reads nothing, as with data that come with the program; None where
    something is not there, so that nobody knows.

    A file that `init` names stands in the identity by its bytes. The file `without`, below `data.root`, does not count.
    Raises UserError on what cannot be read.
    """
    found = dict(_found(config, without))
    if None in found.values():
        return None
    read = {key: digest for key, digest in found.items() if digest != NOTHING}
    return hashlib.sha256(repr(sorted(read.items())).encode()).hexdigest()[:16] if read else NOTHING


def _found(config: Config, without: str) -> Iterator[tuple[str, str | None]]:
    notes = Path(config.out) / NOTES
    for group in GROUPS:
        node = getattr(config, group)
        for name in places(node):
            if node[name] is not None:
                key = f"{group}.{name}"
                yield key, _digest(node["_target_"], Path(node[name]), notes, without if key == "data.root" else "")
    for own in (config.init, *(part["init"] for part in config.parts.values() if "init" in part)):
        if own != "none":
            yield f"init {own}", _of_run(Initial.parse(own).path(Path(config.out)))


def _digest(target: str, path: Path, notes: Path, without: str) -> str | None:
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if not os.path.isdir(path):
        return None
    folders, files = (schema.class_attribute(target, name) for name in ("folders", "files"))
    declared = {key: value for key, value in (("folders", folders), ("names", files)) if value}
    return fingerprint(path, **declared, notes=notes, without=without)


def _of_run(path: Path | None) -> str | None:
    if path is None:
        return None
    return recorded_inputs(read_json(path / "run.json")) if path.is_dir() else NOTHING


def recorded_inputs(run: dict[str, Any]) -> str | None:
    """Of a run.json; None where it does not know, as one of an older version."""
    found = run.get("inputs")
    return found if isinstance(found, str) else None
