"""What the papers print, at the right place of our tables: read off the papers by eye."""

import pytest

from normlab.errors import UserError
from normlab.report.printed import metric_words, paper_claims, printed, subject
from normlab.report.table import Source
from normlab.report.tables import load_table

TABLE = load_table("sn_table2")


def values(name: str) -> dict:
    return printed(load_table(name)).values


def test_table_2_of_the_sn_papers():
    found = values("table2")
    assert found["bn", "8x2"] == 65.3 and found["sn", "8x32"] == 76.9 and found["gn", "1x8"] == 75.5
    assert found["bn", "8x1"] is None and found["SN-BN", "8x1"] is None
    assert found["GN-BN", "8x2"] == 10.6 and found["SN-GN", "8x1"] == -0.5
    assert len(found) == 6 * 9


@pytest.mark.parametrize("name", ["sn_table2", "distinct_table1", "distinct_depths"])
def test_printed_differences_are_those_of_printed_rows(name):
    table, found = load_table(name), values(name)
    for label, difference in table.differences.items():
        for column in table.columns:
            of, minus = found[difference.of, column], found[difference.minus, column]
            expected = None if of is None or minus is None else pytest.approx(of - minus)
            assert found[label, column] == expected


def test_a_transposed_table():
    found = values("distinct_table1")
    assert found["sn_tied", "8x8"] == 76.1 and found["in", "8x32"] == 71.6 and found["ln", "8x2"] is None
    assert found["BN-SN", "8x2"] == -10.3


def test_two_metrics_of_a_run():
    found = values("distinct_depths")
    assert (found["bn", "r101_top1"], found["bn", "r101_top5"]) == (77.6, 93.6)
    found = values("distinct_hard")
    assert found["30", "finetune_top1"] == 77.4 and found["90", "scratch_top5"] == 93.0
    assert found["soft", "scratch_top1"] is None
    assert metric_words(load_table("distinct_hard")) == "top-1 accuracy in percent or top-5 accuracy in percent"


def test_numbers_of_claims():
    assert values("distinct_pools")["ln_bn", "top5"] == 92.92
    assert values("distinct_factors")["small", "top1"] == 55.90
    assert values("distinct_factors")["sn", "top1"] == 76.943
    found = values("sn_inference")
    assert found["50k", "sn_8x32"] == 76.90 and found["all", "sn_8x32"] == 76.92 and found["moving", "sn_8x2"] is None
    assert values("sn_brn")["brn", "8x4"] == 73.7
    assert [values("sn_variants")[row, "top1"] for row in ("sn", "sparse", "group")] == [76.9, 77.0, 77.2]


def test_papers_that_disagree():
    """Distinct prints 77.1 where SN and SN-TPAMI print 76.9: the first that the table names counts."""
    table = load_table("distinct_table1")
    found = printed(table)
    assert found.values["sn", "8x32"] == 77.1
    assert found.disagreements == ["sn_iclr table2 prints 76.9 at SN, (8,32); sn_distinct table1 77.1."]
    table.paper.reverse()
    assert printed(table).values["sn", "8x32"] == 76.9 and printed(table).values["sn_tied", "8x32"] == 76.2
    assert printed(TABLE).disagreements == []


def test_subjects():
    assert subject(TABLE) == "ResNet50 on ImageNet (val)"
    assert "without numbers" in subject(load_table("distinct_practices"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("sn_icrl", table="table2"), "'sn_icrl' does not exist; did you mean 'sn_iclr'"),
        (Source("sn_iclr", table="table22"), "sn_iclr: table 'table22' does not exist; did you mean 'table2'"),
        (Source("sn_iclr", claim="bnr"), "sn_iclr: claim 'bnr' does not exist; did you mean 'brn'"),
        (Source("sn_iclr"), "expected a table or a claim, and not both"),
        (Source("sn_iclr", table="table2", transpose=True), "sn_iclr table2: row '\\(8,32\\)' does not exist"),
        (Source("sn_iclr", claim="brn", values=["(8,4)"]), "sn_iclr brn: row 'BN' does not exist"),
    ],
)
def test_a_source_that_leads_nowhere_is_one_line(source, message):
    table = load_table("table2")
    table.paper = [source]
    with pytest.raises(UserError, match=message) as caught:
        printed(table)
    assert "\n" not in str(caught.value)


def test_every_claim_of_the_papers():
    claims = paper_claims()
    assert len(claims) == 152 and claims["sn_iclr.brn"]["values"]["BRN"] == 73.7
