"""The schema read from source text, against the signatures of the imported targets."""

import inspect
import math
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, Literal, NamedTuple

import pytest
import yaml
from annotated_types import Ge, Gt, Interval, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from normlab import schema
from normlab.bench.command import BENCHES
from normlab.config import GROUPS, BatchAverage, Checkpoint, Config, Record, choices, conf_dir
from normlab.errors import UserError
from normlab.values import coerce, describe

FILES = [(group, name) for group in GROUPS for name in choices(group)]


def node_of(group: str, name: str) -> dict[str, Any]:
    node: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))  # type: ignore
    for word in ("_kind_", "defaults"):  # what tasks it is for, what files a task brings; no settings
        node.pop(word, None)
    return node


TARGETS = sorted({node["_target_"] for node in (node_of(*file) for file in FILES) if node["_target_"]})


@pytest.mark.parametrize("target", TARGETS)
def test_signature_is_that_of_the_imported_target(target: str) -> None:
    module, _, name = target.rpartition(".")
    imported = getattr(import_module(module), name)
    assert imported.__module__ == module, "a _target_ is a real path, no re-export"
    parameters = inspect.signature(imported).parameters.values()
    hints = typing.get_type_hints(imported.__init__ if inspect.isclass(imported) else imported, include_extras=True)
    expected = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    read = schema.signature(target)
    assert list(read) == list(expected)
    for key, parameter in expected.items():
        assert read[key].hint == hints[key], key
        if parameter.default is not parameter.empty:
            assert read[key].default == parameter.default, key
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters), "a **kwargs would hide misspelt settings"


@pytest.mark.parametrize(("group", "name"), FILES)
def test_files_are_described_and_name_settings_of_their_target(group: str, name: str) -> None:
    assert len(choices(group)[name]) > 10
    node = node_of(group, name)
    checked = schema.check_target(node, group)
    if node["_target_"] is not None:
        assert checked is not None
        assert node.keys() <= checked.keys() == {"_target_", *schema.signature(node["_target_"])}


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        (1e-3, float, 1e-3),
        (None, float | None, None),
        (3, str, "3"),
        ("auto", int | Literal["auto"], "auto"),
        (2, int | str, 2),
        ([1, 2], Sequence[float], [1.0, 2.0]),
        ((0.5, 2), tuple[float, float], [0.5, 2.0]),
        ({1: 2}, Mapping[str, float], {"1": 2.0}),
        ({"a": [1]}, Any, {"a": [1]}),
        (1, Annotated[float, Gt(0)], 1.0),
        (1, Annotated[float, Interval(gt=0, le=1)], 1.0),
        (None, Annotated[int, Ge(1)] | None, None),
        ("epoch", Annotated[int, Ge(1)] | Literal["epoch"], "epoch"),
        ([], Sequence[Annotated[float, Gt(0)]], []),
    ],
)
def test_coerce(value: Any, hint: Any, expected: Any) -> None:
    got = coerce(value, hint, "key")
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, int, "key=true: expected a whole number"),
        (1.0, int, "key=1.0: expected a whole number"),
        (True, float, "key=true: expected a finite number"),
        (float("nan"), float, "key=nan: expected a finite number"),
        (10**400, float, "expected a finite number"),
        (1, bool, "key=1: expected true or false"),
        (None, str, "key=null: expected a word"),
        ("stdd", Literal["var", "std"], "key=stdd: expected var or std; did you mean 'std'?"),
        ("bn", Sequence[str], "key=bn: expected a list, each a word; did you mean '[bn]'?"),
        ([1, "x"], Sequence[float], "key=[1,x]: expected a list, each a finite number"),
        ([1.0], tuple[float, float], "key=[1.0]: expected a list of 2, each a finite number"),
        ({"a": None}, int | None, "key={a:null}: expected a whole number or null"),
        ({"a": "b"}, Mapping[str, float], "key={a:b}: expected settings with names"),
        (0, Annotated[int, Ge(1)], "key=0: expected a whole number of 1 or more"),
        (0, Annotated[int, Ge(1)] | None, "key=0: expected a whole number of 1 or more, or null"),
        (0, Annotated[int, Ge(1)] | Literal["auto"], "key=0: expected a whole number of 1 or more, or auto"),
        (1.5, Annotated[int, Ge(1)] | None, "key=1.5: expected a whole number or null"),
        (True, Annotated[int, Ge(0)], "key=true: expected a whole number"),
        (-1, Annotated[float, Gt(0)], "key=-1: expected a number above 0"),
        (float("nan"), Annotated[float, Gt(0)], "key=nan: expected a finite number"),
        (float("inf"), Annotated[float, Gt(0)], "key=inf: expected a finite number"),
        (10**400, Annotated[float, Gt(0)], "expected a finite number"),
        (1, Annotated[float, Ge(0), Lt(1)], "key=1: expected a number from 0 to below 1"),
        (0, Annotated[float, Gt(0), Lt(1)], "key=0: expected a number between 0 and 1"),
        (2, Annotated[float, Interval(ge=0.5, le=1.5)], "key=2: expected a number of 0.5 or more, up to 1.5"),
        (2**63, Annotated[int, Le(2**63 - 1)], f"key={2**63}: expected a whole number up to {2**63 - 1}"),
        (5, Annotated[int, Lt(5)], "key=5: expected a whole number below 5"),
        ([1, 0], Sequence[Annotated[float, Gt(0)]], "key=0: expected a number above 0"),
        ([0, "x"], Sequence[Annotated[float, Lt(1)]], "key=[0,x]: expected a list, each a finite number"),
        (0.3, Sequence[Annotated[float, Gt(0)]], "key=0.3: expected a list, each a finite number; did you mean"),
    ],
)
def test_coerce_refuses(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        coerce(value, hint, "key")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("sn", "norm=sn: expected settings with a _target_"),
        ({"mean": ["bn"]}, "norm: no _target_"),
        ({"_target_": 3}, "norm._target_=3: expected package.module.name"),
        ({"_target_": ["a"]}, "norm._target_=[a]: expected"),
        ({"_target_": ""}, "there is no Python module"),
        ({"_target_": "Normalizer"}, "there is no Python module"),
        ({"_target_": "math.sqrt"}, "there is no Python module 'math'"),
        ({"_target_": "normlab.norms.layer.Normalizer"}, "there is no Python module 'normlab.norms.layer'"),
        ({"_target_": "normlab.norm.layer.Normaliser"}, "did you mean 'Normalizer'?"),
        ({"_target_": "normlab.norm.layer.Normalizer"}, "norm.mean: this setting has no default; expected a list"),
        ({"_target_": None, "eps": 1}, "norm.eps: 'norm' is none"),
    ],
)
def test_bad_nodes(node: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        schema.check_target(node, "norm")
    assert message in str(raised.value)


def test_targets_of_others(tmp_path, monkeypatch) -> None:
    """A user's own module on the path works, if its settings can be read; it is not imported to find out."""
    (tmp_path / "own_norms.py").write_text(
        "raise ImportError\n"
        "class Plain:\n    pass\n"
        "class Mine:\n    def __init__(self, channels, *, power: float = 2, kinds: 'list[int] | None' = None): ...\n"
        "def ranged(*, power: Annotated[float, Gt(0)] = 2, share: Annotated[float, Interval(ge=0, lt=0.5)] = 0): ...\n"
        "def odd(*, dtype: Dtype = 1): ...\n"
        "def computed(*, size: int = 2 * SIZE): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert schema.signature("own_norms.Plain") == {}
    assert schema.signature("own_norms.Mine")["power"] == schema.Parameter(float, 2)
    ranged = schema.signature("own_norms.ranged")
    assert ranged["power"] == schema.Parameter(Annotated[float, Gt(0)], 2)
    assert describe(ranged["share"].hint) == "a number from 0 to below 0.5"
    for name, parameter in (("odd", "dtype"), ("computed", "size")):
        with pytest.raises(UserError, match=f"own_norms.{name}: '{parameter}' needs a plain type"):
            schema.signature(f"own_norms.{name}")


def test_bind_calls_the_target_with_its_settings() -> None:
    norm = schema.bind({"_target_": "normlab.norm.layer.Normalizer", "mean": ["bn"], "var": ["en"], "eps": 1e-3})(8)
    assert (norm.num_channels, norm.mean_scopes, norm.var_scopes, norm.eps) == (8, ["bn"], ["en"], 1e-3)


# ---- ranges --------------------------------------------------------------------------------------------------------

# Of these parameters any number works, or what works depends on other settings (normlab/config/checks.py).
ANY_NUMBER = {
    *{"Config.devices", "BatchAverage.samples"},
    *{"normlab.report.verdicts.exceeds.margins"},
    *{"normlab.report.verdicts.lies_above.value", "normlab.report.verdicts.lies_below.value"},
}


SIDES = ("gt", "ge", "lt", "le")


def targets_in(node: Any) -> set[str]:
    """Every `_target_` in a file of conf/, however deep."""
    if isinstance(node, Mapping):
        own = {node["_target_"]} if node.get("_target_") else set()
        return own.union(*map(targets_in, node.values()))
    return set().union(*map(targets_in, node)) if isinstance(node, list) else set()


class Number(NamedTuple):
    """A number that a parameter takes: by itself (length 0), in a list of this length, or in a mapping (length -1)."""

    name: str
    parameter: schema.Parameter
    hint: Any  # int or float, plain or Annotated
    length: int

    @property
    def bounds(self) -> dict[str, Any]:
        stated = [(side, getattr(s, side, None)) for s in typing.get_args(self.hint)[1:] for side in SIDES]
        return {side: bound for side, bound in stated if bound is not None}

    def settings(self, value: Any) -> dict[str, Any]:
        several = {"a": value} if self.length < 0 else [value] * self.length
        return {self.name.rpartition(".")[2]: several if self.length else value}

    def check(self, value: Any) -> Any:
        settings = self.settings(value)
        (checked,) = schema.check(settings, dict.fromkeys(settings, self.parameter), "group").values()
        return checked["a"] if self.length < 0 else checked[0] if self.length else checked


def numbers_in(hint: Any, length: int = 0) -> Iterator[tuple[Any, int]]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float) or (origin is Annotated and arguments[0] in (int, float)):
        yield hint, length
    elif origin is not Literal:
        own = 1 if origin in (list, Sequence) else len(arguments) if origin is tuple else -1 if origin is Mapping else 0
        for argument in arguments:
            yield from numbers_in(argument, length or own)


def all_numbers() -> Iterator[Number]:
    files = sorted(conf_dir().rglob("*.yaml"))
    targets = set().union(*(targets_in(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files))
    assert targets >= set(TARGETS)
    targets |= {f"normlab.bench.{name}.bench" for name in BENCHES}
    schemas = {target: schema.signature(target) for target in sorted(targets)}
    schemas |= {kind.__name__: schema.parameters_of(kind) for kind in (Config, BatchAverage, Checkpoint, Record)}
    for owner, parameters in schemas.items():
        for key, parameter in parameters.items():
            for hint, length in numbers_in(parameter.hint):
                yield Number(f"{owner}.{key}", parameter, hint, length)


NUMBERS = list(all_numbers())
RANGED = [number for number in NUMBERS if number.bounds]


def test_every_number_states_its_range() -> None:
    assert len(RANGED) > 80
    assert {number.name for number in NUMBERS if not number.bounds} == ANY_NUMBER


@pytest.mark.parametrize("number", RANGED, ids=lambda number: number.name)
def test_defaults_lie_in_their_range(number: Number) -> None:
    if number.parameter.default is not schema.Parameter(int).default:
        coerce(number.parameter.default, number.parameter.hint, "key")


def within(kind: type, low: Any, high: Any, above: bool = False, below: bool = False) -> st.SearchStrategy:
    """Finite numbers from low to high; `above` and `below` leave out the ends."""
    if kind is int:
        return st.integers(low if low is None else low + above, high if high is None else high - below)
    return st.floats(low, high, exclude_min=above, exclude_max=below, allow_nan=False, allow_infinity=False)


def good_and_bad(number: Number) -> st.SearchStrategy:
    """Pairs of a value in the range and one outside."""
    kind, b = typing.get_args(number.hint)[0], number.bounds
    low, high = b.get("ge", b.get("gt")), b.get("le", b.get("lt"))
    outside = [within(kind, None, low, below="ge" in b)] if low is not None else []
    outside += [within(kind, high, None, above="le" in b)] if high is not None else []
    return st.tuples(within(kind, low, high, "gt" in b, "lt" in b), st.one_of(outside))


@pytest.mark.parametrize("number", RANGED, ids=lambda number: number.name)
@settings(deadline=None, max_examples=10)
@given(st.data())
def test_values_in_a_range_are_accepted_and_others_refused(number: Number, data: st.DataObject) -> None:
    good, bad = data.draw(good_and_bad(number))
    assert number.check(good) == good
    with pytest.raises(UserError) as raised:
        number.check(bad)
    message = str(raised.value)
    assert message.startswith(f"group.{number.name.rpartition('.')[2]}={bad}: expected a ")
    assert all(f"{bound:g}" in message or str(bound) in message for bound in number.bounds.values())
    for odd in (math.nan, math.inf, -math.inf, True, "one"):
        with pytest.raises(UserError, match=r"expected (a|settings with names)"):
            number.check(odd)


def test_signatures_are_read_without_torch() -> None:
    code = (
        "import sys; from normlab import schema, config; "
        "[schema.signature(target) for target in sys.argv[1:]]; "
        "sys.exit(77 if 'torch' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code, *TARGETS]).returncode == 0
