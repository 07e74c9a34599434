"""The schema read from source text, against the signatures of the imported targets."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from normlab import schema
from normlab.config import GROUPS, choices, conf_dir
from normlab.errors import UserError

FILES = [(group, name) for group in GROUPS for name in choices(group)]


def node_of(group: str, name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))  # type: ignore[return-value]


TARGETS = sorted({node["_target_"] for node in (node_of(*file) for file in FILES) if node["_target_"]})


@pytest.mark.parametrize("target", TARGETS)
def test_signature_is_that_of_the_imported_target(target: str) -> None:
    module, _, name = target.rpartition(".")
    imported = getattr(import_module(module), name)
    assert imported.__module__ == module, "a _target_ is a real path, no re-export"
    parameters = inspect.signature(imported).parameters.values()
    hints = typing.get_type_hints(imported.__init__ if inspect.isclass(imported) else imported)
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
    ],
)
def test_coerce(value: Any, hint: Any, expected: Any) -> None:
    got = schema.coerce(value, hint, "key")
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
    ],
)
def test_coerce_refuses(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        schema.coerce(value, hint, "key")
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
        "def odd(*, dtype: Dtype = 1): ...\n"
        "def computed(*, size: int = 2 * SIZE): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert schema.signature("own_norms.Plain") == {}
    assert schema.signature("own_norms.Mine")["power"] == (float, 2)
    for name, parameter in (("odd", "dtype"), ("computed", "size")):
        with pytest.raises(UserError, match=f"own_norms.{name}: '{parameter}' needs a plain type"):
            schema.signature(f"own_norms.{name}")


def test_bind_calls_the_target_with_its_settings() -> None:
    norm = schema.bind({"_target_": "normlab.norm.layer.Normalizer", "mean": ["bn"], "var": ["en"], "eps": 1e-3})(8)
    assert (norm.num_channels, norm.mean_scopes, norm.var_scopes, norm.eps) == (8, ["bn"], ["en"], 1e-3)
