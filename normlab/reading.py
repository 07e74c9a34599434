"""Reading what a run left behind: the files may be damaged, or come from anyone. No torch here.

read_json(path, STATUS) -> {"status": "finished", ...}    a JSON file, its values checked
read_jsonl(path, STEP)  -> [{"step": 1, ...}, ...]          a JSON object a line

An object that was written with its digest (writing.py, `seal`) is held against it, and returned without it.

Every error is a UserError of one line that names the file and what is wrong with it. Nothing read here is executed.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Le

from normlab import schema
from normlab.errors import UserError
from normlab.schema import Parameter
from normlab.values import coerce, shown
from normlab.writing import SEAL

Fields = Mapping[str, Parameter]

_ANY: Fields = {}
_A_ROW = 4096  # bytes: most rows of metrics.jsonl are shorter
_SEALED = re.compile(rf'\{{\s*"{SEAL}": "([^"]*)",')
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is six times as fast
_DEEPEST = 100  # lists and settings in a YAML file, one in another
_LONGEST_NUMBER = 20  # digits of a whole number and its sign: seeds have 64 bits
_Ratios = Mapping[str, Mapping[str, Real]]
_Ratio = Annotated[float, Ge(0), Le(1)]

RUN: Fields = {"id": Parameter(str), "name": Parameter(str), "config": Parameter(Mapping[str, Any])}
STATUS: Fields = {
    "status": Parameter(str),
    "updates": Parameter(int, 0),
    "signal": Parameter(int, 0),
    "error": Parameter(str, ""),
    "files": Parameter(Mapping[str, str], {}),
    "bad_file": Parameter(str, ""),
    "other_inputs": Parameter(str | None, None),
}
_HEADLINE: Fields = {"metric": Parameter(str), "estimator": Parameter(str), "value": Parameter(Real | None)}
SUMMARY: Fields = {
    **{key: Parameter(str) for key in ("status", "norm", "weight", "model", "data", "batch")},
    **{key: Parameter(int) for key in ("seed", "updates")},
    "seconds": Parameter(Real),
    "metrics": Parameter(Mapping[str, Mapping[str, Real]]),
    "ratios": Parameter(_Ratios | None),
    "ratios_by_part": Parameter(Mapping[str, _Ratios], {}),
    "parts": Parameter(Mapping[str, list[str]], {}),
    "tested": Parameter(str, "validation"),
    "not_used_of_init": Parameter(list[str], []),
    "headline": Parameter(Mapping[str, Any]),
    "diverged_at": Parameter(int | None, None),
    "data_errors": Parameter(Mapping[str, Any], {}),
    "made_by": Parameter(list[str], []),
    "inputs": Parameter(str | None, None),
}
LAYER: Fields = {  # of a record
    "layer": Parameter(str, ""),
    "part": Parameter(str | None, None),
    "receptive_field": Parameter(int | None, None),
    "mean": Parameter(Mapping[str, _Ratio]),
    "var": Parameter(Mapping[str, _Ratio]),
}
RECORD: Fields = {  # of a table; see report/records.py
    **SUMMARY,
    "seed": Parameter(Annotated[int, Ge(0)]),
    "updates": Parameter(Annotated[int, Ge(0)]),
    "seconds": Parameter(Annotated[float, Ge(0), Le(10**12)]),
    "ratios": Parameter(Mapping[str, Mapping[str, _Ratio]] | None),
    **{key: Parameter(str) for key in ("id", "row", "column", "finished")},
    "layers": Parameter(list[Mapping[str, Any]]),
    "choices": Parameter(Mapping[str, list[tuple[str, str]]], {}),
    "epochs_of": Parameter(Mapping[str, list[Real]], {}),
    "fluctuations": Parameter(Mapping[str, list[Real]], {}),
    "taken": Parameter(Mapping[str, Real], {}),
    "moved": Parameter(Mapping[str, Real], {}),
    "start": Parameter(Mapping[str, Any] | None, None),
    "changed": Parameter(list[str], []),
    "versions": Parameter(Mapping[str, Any]),
    "commit": Parameter(str | None),
    "device": Parameter(str),
}
START: Fields = {  # of the run that a recorded run began from
    "id": Parameter(str),
    "made_by": Parameter(list[Any] | None, None),
    "layers": Parameter(list[Mapping[str, Any]]),
    "moved": Parameter(Mapping[str, Real]),
}
ESTIMATE: Fields = {  # of a run's estimates.jsonl; see engine/saved.py
    "samples": Parameter(int | str),
    "variance": Parameter(str),
    "augment": Parameter(bool),
}
STEP: Fields = {"step": Parameter(int)}
EPOCH: Fields = {**STEP, "epoch": Parameter(float)}


def read_json(path: Path, fields: Fields = _ANY) -> dict[str, Any]:
    """A JSON object with at least these fields."""
    return _check(_parse(_text(path), path), fields, path)


def read_jsonl(path: Path, fields: Fields = _ANY, others: Any = Any, holding: str = "") -> list[dict[str, Any]]:
    """A JSON object in each whole line (a kill may have cut the last one); none where there is no file.

    What it has beyond the fields is of the type `others`. Lines without the text `holding` are left out unread: most of
    a long run's are of no use to a figure.
    """
    if not path.is_file():
        return []
    found, wanted = [], holding.encode()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if wanted in line and line.endswith(b"\n"):
                where = f"{path}, line {number}"
                found.append(_check(_parse(_decoded(line, path), where), fields, where, others))
    return found


def read_metrics(path: Path, fields: Fields = STEP, holding: str = "") -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, with at least these fields; all others are numbers."""
    return read_jsonl(path, fields, Real | None, holding)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """An error inside is one of this file, and says so."""
    try:
        yield
    except UserError as error:
        raise error if str(file) in str(error) else UserError(f"{file}: {error}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file of settings with names; an empty file has none."""
    found = read_yaml(path)
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError(f"{path}: {shown(found)}: expected settings with names, as name: value")
    return found


def read_yaml(path: Path) -> Any:
    """A file of conf/ or results/paper: plain values, no tags of Python's."""
    text = _text(path)
    try:
        if not _is_shallow(text):
            raise ValueError(f"settings that are nested more than {_DEEPEST} deep")
        return yaml.load(text, _YAML)
    except (yaml.YAMLError, ValueError) as error:  # PyYAML raises ValueError on an impossible date
        says = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise UserError(f"{path}: this is no YAML: {says}") from None


def _is_shallow(text: str) -> bool:
    """Whether libyaml can put it together: what is very deep overflows its stack and ends the process."""
    depth = 0
    for event in yaml.parse(text, _YAML):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            return False
    return True


def last_json(path: Path, fields: Fields = _ANY) -> dict[str, Any] | None:
    """The object in the last whole line, however long the file is; None where there is no line."""
    if not path.is_file():
        return None
    size, taken = path.stat().st_size, _A_ROW
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - taken))
            lines = file.read().split(b"\n")[:-1]
            if len(lines) > 1 or taken >= size:  # the first one may lack its beginning
                break
            taken *= 8
    where = f"{path}, last line"
    return _check(_parse(lines[-1].decode(errors="replace"), where), fields, where) if lines else None


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device be read without end
        raise UserError(f"{path}: this is no file")
    return _decoded(path.read_bytes(), path)


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is no text; the file is damaged, or none of normlab's") from None


class _NumberError(ValueError):
    """A number that is larger than any can be."""


def _whole(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise _NumberError(f"a number of {len(text)} digits")
    return int(text)


def _broken(text: str) -> float:
    if math.isinf(value := float(text)):
        raise _NumberError(f"{text[:_LONGEST_NUMBER]} is too large for a number")
    return value


def _parse(text: str, where: Path | str) -> Any:
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_broken)
    except _NumberError as error:
        raise UserError(f"{where}: {error}; the file is damaged, or none of normlab's") from None
    except (ValueError, RecursionError):
        raise UserError(f"{where}: this is no JSON; the file is damaged, or none of normlab's") from None
    sealed = _SEALED.match(text)
    if sealed is not None:
        if hashlib.sha256(text[sealed.end() :].rstrip().encode()).hexdigest() != sealed[1]:
            raise UserError(f"{where}: this is not what was written; it is damaged, or was changed by hand")
        del value[SEAL]
    return value


def _check(value: Any, fields: Fields, where: Path | str, others: Any = Any) -> dict[str, Any]:
    try:
        coerce(value, Mapping[str, Any], "all of it")
        for key in value.keys() - fields.keys() if others is not Any else ():
            coerce(value[key], others, key)
        known = {key: value[key] for key in fields if key in value}
        checked = schema.check(known, fields)
        if "headline" in fields:
            headline = value["headline"]
            schema.check({key: headline[key] for key in _HEADLINE if key in headline}, _HEADLINE, "headline")
    except UserError as error:
        raise UserError(f"{where}: {error}; the file is damaged, or none of normlab's") from None
    return value | {key: checked[key] for key in known}
