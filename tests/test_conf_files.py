"""Files of conf/ that hold the wrong things: one line that names the file and the setting, never a traceback."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fuzz import JSON, ORDINARY, TEXT, answer, thorough

from normlab.config import compose, conf_dir, files
from normlab.errors import UserError
from normlab.report import claims, deviations, runs

REAL = conf_dir()
NAMES = sorted(str(file.relative_to(REAL).with_suffix("")) for file in REAL.rglob("*.yaml"))
CACHED = (
    *(compose._compose_files, files.default_choice, claims._elsewhere, deviations.load_deviations, runs._composed),
)

LOADED = {"claims": claims._elsewhere, "deviations": deviations.load_deviations}


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Iterator[Path]:
    """A copy of conf/, which every module takes for the real one."""
    copy = Path(shutil.copytree(REAL, tmp_path_factory.mktemp("files") / "conf"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy.parent)
        patch.delenv("NORMLAB_DATA", raising=False)
        for name, module in list(sys.modules.items()):
            if name.startswith("normlab.") and hasattr(module, "conf_dir"):
                patch.setattr(module, "conf_dir", lambda: copy)
        yield copy
    forget()


def forget() -> None:
    for cached in CACHED:
        cached.cache_clear()


def commands(name: str) -> list[list[str]]:
    """Those that read a file."""
    group, _, choice = name.partition("/")
    found = {
        "config": [["train", "--cfg", "job"], ["train", "--cfg", "job", "norm=bn"], ["train", "bacth=8x2"]],
        "claims": [],  # the verb reads all papers and tables too, which takes seconds
        "deviations": [],
        "scale": [["train", "--cfg", "job", f"scale={choice}"], ["report", "table2", f"scale={choice}"]],
        "table": [["report", choice], ["list", "tables"]],
        "figure": [["figure", choice, "RUN"], ["list", "figures"]],
    }.get(group, [["train", "--cfg", "job", f"{group}={choice}"], ["train", "bacth=8x2"], ["list", f"{group}s"]])
    if group == "norm":
        found.append(["train", "--cfg", "job", f"parts.head={choice}"])
    if group == "data":
        found.append(["data", "verify", choice])
    return found


def written(conf: Path, name: str, text: str, *words: list[str]) -> str:
    """What commands say, all of them in one line, while a file has another text."""
    file = conf / f"{name}.yaml"
    before = file.read_bytes()
    forget()
    file.write_text(text)
    try:
        if name in LOADED and not words:
            try:
                LOADED[name]()
            except UserError as error:
                assert "\n" not in str(error)
        return "".join(answer(*command)[1] for command in words or commands(name))
    finally:
        file.write_bytes(before)
        forget()


def changed(draw: st.DrawFn, value: Any) -> Any:
    """A value of a file dropped, replaced, moved into a list, or added."""
    if draw(st.integers(0, 4)) == 0 or not isinstance(value, dict | list) or not value:
        return draw(st.one_of(JSON, st.just([value]), st.just({"a": value}), st.just({1: value})))
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    elif isinstance(copy, dict) and draw(st.integers(0, 5)) == 0:
        copy[draw(TEXT)] = draw(JSON)
    else:
        copy[key] = changed(draw, value[key])
    return copy


@st.composite
def mutation(draw: st.DrawFn) -> tuple[str, str]:
    name = draw(st.sampled_from(NAMES))
    text = (REAL / f"{name}.yaml").read_text()
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        return name, text[:at] + draw(TEXT) + text[at + draw(st.integers(0, 9)) :]
    return name, yaml.safe_dump(changed(draw, yaml.safe_load(text)), sort_keys=False)


def any_mutation(conf: Path, case: tuple[str, str]) -> None:
    written(conf, *case)


@settings(ORDINARY, max_examples=150)
@given(case=mutation())
def test_files(conf: Path, case: tuple[str, str]) -> None:
    any_mutation(conf, case)


@pytest.mark.long
@thorough(2000)
@given(case=mutation())
def test_many_files(conf: Path, case: tuple[str, str]) -> None:
    any_mutation(conf, case)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model/mlp", "_target_: [x]\n", "_target_=[x]: expected package.module.name or null"),
        ("model/mlp", "[1, 2]\n", "[1,2]: expected settings with names"),
        ("model/mlp", "1: 2\n", "{1:2}: expected settings with names"),
        ("model/mlp", "_kind_: {a: b}\n_target_: normlab.models.mlp.mlp\n", "_kind_={a:b}"),
        ("norm/gn", "_target_: normlab.norm.layer.Normalizer\nmean: 3\nvar: [gn]\n", "norm.mean=3: expected a list"),
        ("norm/gn", "_target_: normlab.norm.layer.Normalizer\nmean: [gn]\nvar: [gn]\neps: {a: 1}\n", "norm.eps={a:1}"),
        ("norm/gn", "_target_: normlab.norm.layer.Normalizer\nmean: [gn]\nvar: [gn]\neps: ${nope}\n", "norm.eps"),
        ("norm/gn", "{}\n", "no _target_ says what builds it"),
        ("scale/digits", "overrides: [1]\n", "'1': expected KEY=VALUE"),
        ("scale/digits", "overrides: 3\n", "overrides=3: expected a list"),
        ("scale/digits", "overrides: ['batch=[1]']\n", "batch=[1]: expected a word"),
        ("scale/digits", "{}\n", "overrides=null: expected a list"),
        ("config", "defaults: {norm: sn}\n", "defaults={norm:sn}: expected a list"),
        ("config", "defaults: [norm: sn]\n", "defaults: expected a weight"),
        ("config", "defaults: [norm: [sn]]\n", "defaults: expected a norm"),
        ("config", "batch: 8x2\n", "defaults=null: expected a list"),
        ("data/cifar100", "_target_: normlab.data.cifar.CIFAR100\nroot: ${nope}\n", "root"),
        ("data/cifar100", "_target_: normlab.data.cifar.CIFAR100\nroot: [a]\n", "root=[a]: expected a word"),
        ("figure/ratios", "{}\n", "no _target_ says what builds it"),
        ("figure/ratios", "_target_: normlab.figures.bars.nothing\n", "defines no nothing"),
        ("table/sn_table2", "rows: 3\n", "sn_table2"),
        ("table/sn_table2", "aliases: 3\n", "aliases=3: expected a list"),
        ("claims", "needs: [a]\n", "needs"),
        ("claims", "other: {a: []}\n", "group of claims 'other' does not exist"),
    ],
)
def test_the_line_names_the_file_and_the_setting(conf: Path, name: str, text: str, said: str) -> None:
    lines = written(conf, name, text, *([["claims"]] if name == "claims" else [])).splitlines()
    assert f"normlab: {conf / name}.yaml: " in lines[0] and said in lines[0]
    for line in lines:
        assert str(conf / f"{name}.yaml") in line or "bacth" in line  # who mistypes a setting hears of that


@pytest.mark.parametrize("kind", ["3", "-4.4e+16", "[3]"])
def test_a_kind_that_is_a_number_is_a_word(conf: Path, kind: str) -> None:
    text = f"_kind_: {kind}\n_target_: normlab.models.mlp.mlp\n"
    assert "and task=classification takes classifier" in written(conf, "model/mlp", text)


def test_a_wrong_setting_of_config_is_of_that_file(conf: Path) -> None:
    text = (REAL / "config.yaml").read_text().replace("epochs: 30", "epochs: [30]")
    assert f"{conf / 'config.yaml'}: epochs=[30]: expected" in written(conf, "config", text, ["train", "--cfg", "job"])


def test_a_word_of_the_command_line_is_no_fault_of_a_file(conf: Path) -> None:
    forget()
    for word in ("norm.eps=[1]", "epochs=[30]", "batch=[1]"):
        assert answer("train", "--cfg", "job", "norm=gn", word)[1].startswith(f"normlab: {word.partition('=')[0]}=")


def test_the_ledger_of_deviations(conf: Path) -> None:
    for text in ("{}\n", "- 3\n", "- topic: [a]\n", "- {1: 2}\n"):
        (conf / "deviations.yaml").write_text(text)
        forget()
        with pytest.raises(UserError, match=r"deviations\.yaml: deviations"):
            deviations.load_deviations()
    shutil.copy(REAL / "deviations.yaml", conf / "deviations.yaml")
