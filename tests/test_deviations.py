"""The ledger of deviations: its options exist, its document is up to date, tables find what concerns them."""

import re
from pathlib import Path

import pytest

from normlab.config import conf_dir, load
from normlab.report.deviations import Deviation, concerning, ledger, load_deviations, page_from
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
    found = {deviation.topic: deviation for deviation in concerning(load_table("sn_table2"))}
    assert found["variance of a map"].words == "norm=sn norm.profile=official"
    assert not any("Weight Standardization" in topic or "heat map" in topic for topic in found)


def test_reports_link_its_entries(tmp_path: Path) -> None:
    """Each has an anchor of its own; a report elsewhere names the page alone, since no link leads there."""
    anchors = re.findall(r'<a id="([^"]+)"></a>', DOCUMENT.read_text(encoding="utf-8"))
    assert anchors and len(anchors) == len(set(anchors)) == len(load_deviations())
    assert page_from(DOCUMENT.parents[1] / "results" / "sn_table2-digits") == "../../docs/deviations.md"
    assert page_from(tmp_path) is None


@pytest.mark.parametrize("name", sorted(tables().keys() - {"light"}))  # which is of no paper
def test_every_table_has_its_papers_deviations_and_not_all(name: str) -> None:
    assert 0 < len(concerning(load_table(name))) < len(load_deviations())
