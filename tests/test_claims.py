"""`normlab claims`: every claim of the papers is tested, or says what it needs; verdicts are those of the reports."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian

from normlab import cli
from normlab.config import choices, conf_dir
from normlab.errors import UserError
from normlab.norm.layer import Normalizer, ScopeError
from normlab.norm.weight import WeightStandardization, weight_standardization
from normlab.reading import read_yaml
from normlab.report import claims
from normlab.report.claims import NOT_MEASURED, Part, Standing, chosen, standings, tables_of
from normlab.report.results import load_results
from normlab.report.tables import load_table
from normlab.sweeps import reproduce as module

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def committed() -> dict[str, Standing]:
    return standings("digits", ROOT / "results")


def test_every_claim_is_tested_or_says_what_it_needs(committed):
    assert len(committed) == 152
    assert [s.id for s in committed.values() if not s.tested and not s.elsewhere] == []


def test_verdicts_are_those_of_the_reports(committed):
    results = load_results(load_table("table2"), "digits", ROOT / "results")
    judged = results.judged
    found = {test.name: test for s in committed.values() for test in s.tested if test.table == "sn_table2"}
    assert found.keys() == judged.keys()
    assert {name: test.verdict for name, test in found.items()} == {name: j.verdict for name, j in judged.items()}
    assert {test.seeds for test in found.values()} == {len(results.seeds)}


def test_without_records_nothing_is_measured(tmp_path):
    tested = [test for s in standings(None, tmp_path).values() for test in s.tested]
    assert {"digits", "scenes"} <= {test.scale for test in tested}
    assert {test.verdict for test in tested} == {NOT_MEASURED} and {test.seeds for test in tested} == {0}


def test_a_scale_that_a_table_lacks():
    found = {s.id: s for s in chosen(["sn_iclr.brn", "headline_8_32"], "cifar10", ROOT / "results")}
    assert found["sn_iclr.brn"].verdict == "has no scale cifar10"
    assert found["sn_iclr.headline_8_32"].tested[0].verdict == NOT_MEASURED


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "not enough seeds"], "not enough seeds"),
        (["not enough seeds", "does not hold", "holds"], "does not hold"),
        ([], "no table tests it"),
    ],
)
def test_a_claim_is_all_of_its_tests(verdicts, expected):
    assert Standing("a.b", "", "1", [Part("t", "c", "digits", verdict, 3) for verdict in verdicts]).verdict == expected


def test_names_of_claims():
    def ids(*names):
        return [s.id for s in chosen(names, "digits", ROOT / "results")]

    assert ids("sn_iclr.brn") == ["sn_iclr.brn"] and ids("brn") == ["sn_iclr.brn", "sn_tpami.brn"]
    assert len(ids("ws")) == 19 and len(ids()) == 152
    with pytest.raises(UserError, match=r"claim 'sn_iclr.bnr' does not exist; did you mean 'sn_iclr.brn'"):
        ids("sn_iclr.bnr")


def test_a_claim_that_no_paper_makes_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "claims.yaml").write_text("needs: {detection: [sn_iclr.coco_fnp]}\n")
    monkeypatch.setattr(claims, "conf_dir", lambda: tmp_path)
    claims._elsewhere.cache_clear()
    with pytest.raises(
        UserError, match=r"claims: claim 'sn_iclr.coco_fnp' does not exist; did you mean 'sn_iclr.coco_fpn'"
    ):
        standings("digits", tmp_path)
    claims._elsewhere.cache_clear()


def test_what_is_named_exists():
    elsewhere = read_yaml(conf_dir() / "claims.yaml")
    assert set(elsewhere) == {"needs", "tests", "figures"}
    assert set(elsewhere["figures"]) <= set(choices("figure"))
    assert all((ROOT / file).is_file() for file in elsewhere["tests"])


def test_the_command(capsys):
    assert cli.main(["claims", "sn_iclr.brn", "enas_better"]) == 0
    shown = capsys.readouterr().out
    assert "brn (Sec. 4.1)" in shown and "sn_brn between" in shown and "needs neural architecture search" in shown
    assert "3 claims, each table at its first scale" in shown and max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run"], "claims --run: expected a claim"),
        (["--run", "sn_iclr.enas_better"], "there is nothing to run: sn_iclr.enas_better: needs neural architecture"),
        (["--run", "brn", "scale=cifar10"], "there is nothing to run"),
        (["--run", "brn", "seeds=0"], "seeds=0: expected a whole number from 1"),
        (["brn", "sede=1"], "did you mean 'seeds'"),
    ],
)
def test_mistakes(capsys, words, message):
    assert cli.main(["claims", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_run_runs_the_tables_that_test_a_claim(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(module, "reproduce", lambda tables, scale, seeds, *_: asked.append((tables, scale, seeds)) or 0)
    assert cli.main(["claims", "--run", "sn_tpami.practices", "seeds=2"]) == 0
    assert {(scale, seeds, *(table.name for table in tables)) for tables, scale, seeds in asked} == {
        ("scenes", 2, "distinct_hard", "distinct_practices", "distinct_table3")
    }
    assert [t.name for t in tables_of(chosen(["brn"], "digits", ROOT / "results"), "digits")] == ["sn_brn"]


def test_it_does_without_torch():
    code = (
        "import sys; from pathlib import Path; from normlab.report.claims import chosen; "
        "chosen([], 'digits', Path('results')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- arithmetic of the papers that no other test has ----------------------------------------------------------------


def test_mean_removal_lowers_the_hessian():
    """WS, Eq. 16-19: by at least (sum of all entries)^2 / I^2; the rows and columns of the new one sum to 0."""
    generator = torch.Generator().manual_seed(0)
    fan_in = 12
    matrix = torch.randn(fan_in, fan_in, generator=generator, dtype=torch.float64)
    quadratic_II = matrix @ matrix.T + 0.5 * torch.ones(fan_in, fan_in, dtype=torch.float64)
    center = WeightStandardization(torch.ones(1, fan_in), center=True, divide=False, affine=False, eps=0.0)

    def loss(weight_OI):
        return 0.5 * (weight_OI @ quadratic_II @ weight_OI.T).sum()

    start = torch.randn(1, fan_in, generator=generator, dtype=torch.float64)
    before = hessian(loss, start).reshape(fan_in, fan_in)
    after = hessian(lambda weight: loss(center(weight)), start).reshape(fan_in, fan_in)
    torch.testing.assert_close(after.sum(0), torch.zeros(fan_in, dtype=torch.float64))
    torch.testing.assert_close(after.sum(1), torch.zeros(fan_in, dtype=torch.float64))
    assert before.square().sum() - after.square().sum() >= (before.sum() / fan_in) ** 2 > 1


def test_bn_cancels_the_division():
    """WS, Sec. 2.2: with BN behind, dividing the filters changes neither outputs nor gradients at the inputs."""
    torch.manual_seed(0)
    x_NCHW = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    outcomes = []
    for divide in (False, True):
        torch.manual_seed(1)
        conv = nn.Conv2d(3, 5, 3, bias=False, dtype=torch.float64)
        if divide:
            weight_standardization(conv, center=False)
        norm = Normalizer(5, mean=["bn"], var=["bn"], eps=1e-20).double()
        x = x_NCHW.clone().requires_grad_()
        y = norm(conv(x))
        y.square().mul(torch.arange(5.0).view(1, 5, 1, 1)).sum().add(y.pow(3).sum()).backward()
        outcomes.append((y.detach(), x.grad))
    for plain, divided in zip(*outcomes, strict=True):
        torch.testing.assert_close(plain, divided, rtol=1e-9, atol=1e-9)


def test_bn_of_one_sample_is_in_and_gn_lies_between_ln_and_in():
    """HN, Sec. 2, against torch's own layers."""
    x_NCHW = torch.randn(1, 6, 4, 3, dtype=torch.float64)

    def normalized(scope):
        return Normalizer(6, mean=[scope], var=[scope]).double()(x_NCHW)

    torch.testing.assert_close(normalized("bn"), nn.functional.instance_norm(x_NCHW))
    torch.testing.assert_close(normalized("in"), nn.functional.group_norm(x_NCHW, 6))
    torch.testing.assert_close(normalized("gn1"), nn.functional.layer_norm(x_NCHW, x_NCHW.shape[1:]))


def test_in_of_a_fully_connected_layer_is_not_ln():
    """SN, Sec. 4.4, says that it is, SN-TPAMI, Sec. 4.7, that it does not apply: over H and W there is one value."""
    x_NC = torch.randn(3, 6, dtype=torch.float64)
    layer = Normalizer(6, mean=["ln"], var=["ln"]).double()
    torch.testing.assert_close(layer(x_NC), nn.functional.layer_norm(x_NC, (6,)))
    with pytest.raises(ScopeError, match="scope 'in' cannot give the mean"):
        Normalizer(6, mean=["in"], var=["in"]).double()(x_NC)
