"""The ledger of deviations: its options exist, its document is up to date, tables find what concerns them."""

import re
from pathlib import Path

import pytest

from normlab.config import conf_dir, load
from normlab.report.deviations import Deviation, deviations, ledger, load_deviations
from normlab.report.printed import paper_dir
from normlab.report.tables import load_table, tables

DOCUMENT = Path(__file__).parents[1] / "docs" / "deviations.md"
WITH_OPTION = [d for d in load_deviations() if d.option]


@pytest.mark.parametrize("deviation", WITH_OPTION, ids=[d.topic for d in WITH_OPTION])
def test_every_option_is_a_command_line_that_works_and_changes_something(deviation: Deviation) -> None:
    assert deviation.option
    chosen = [word for word in deviation.option if word.partition("=")[0] in ("norm", "weight", "data")]
    assert load(deviation.option).to_dict() != load([]).to_dict()
    if len(chosen) < len(deviation.option):
        assert load(deviation.option).to_dict() != load(chosen).to_dict()


def test_papers_and_tables_exist() -> None:
    papers = {file.stem for file in paper_dir().glob("*.yaml")}
    names = [file.stem for file in (conf_dir() / "table").glob("*.yaml")]
    for deviation in load_deviations():
        assert set(deviation.papers) <= papers and len(deviation.says) > 1
        assert all(re.match(r"(Distinct|SN|WS|HN|[SPDW]|the|all five papers)\b", place) for place in deviation.says), (
            deviation.topic
        )
        for pattern in deviation.tables or ():
            assert any(Path(name).match(pattern) for name in names), f"{deviation.topic}: {pattern}"


def test_the_document_is_what_the_ledger_says() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == ledger(), "run scripts/deviations.py"


def test_a_table_finds_what_concerns_it() -> None:
    lines = deviations(load_table("sn_table2"))
    assert any(line.startswith("**variance of a map**") and "`norm=sn norm.profile=official`" in line for line in lines)
    assert not any("Weight Standardization" in line or "heat map" in line for line in lines)
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("name", sorted(tables().keys() - {"light"}))  # which is of no paper
def test_every_table_has_its_papers_deviations_and_not_all(name: str) -> None:
    assert 0 < len(deviations(load_table(name))) < len(load_deviations())
