"""KEY=VALUE words, as verbs take them whose options are a target's keyword-only parameters: `bench`, `figure`."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml

from normlab import schema
from normlab.errors import UserError, nearest
from normlab.schema import Parameter


def parse(words: Sequence[str], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """KEY=VALUE words as the parameters ask, defaults filled in; a list is VALUE,VALUE. Raises UserError."""
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"'{word}': expected KEY=VALUE; options: {', '.join(parameters)}")
        if key not in parameters:
            raise UserError(f"{key}: there is no such option; {nearest(key, parameters)}")
        settings[key] = _value(text, parameters[key].hint)
    return schema.check(settings, parameters)


def _value(text: str, hint: Any) -> Any:
    if Sequence in (get_origin(hint), *map(get_origin, get_args(hint))) and text != "null":
        return [_scalar(part) for part in text.strip("[]").split(",")]
    return _scalar(text)


def _scalar(text: str) -> Any:
    """As in conf/: a number, true or false, null; all else is a word."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, brackets a thousand deep
        return text
    return value if isinstance(value, bool | int | float) or text == "null" else text
