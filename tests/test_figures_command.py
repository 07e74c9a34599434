"""`normlab figure`: what it writes, and its refusals in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from normlab import schema
from normlab.cli import main
from normlab.config import choices, conf_dir

RATIO = {"in": 0.2, "ln": 0.3, "bn": 0.5}
LAYER = {"layer": "bn1", "index": 1, "kernel_size": [3, 3], "shortcut": False, "receptive_field": 3}
MOMENTS = [{"epoch": e, "step": e, "layers": [LAYER | {"mean": RATIO, "var": RATIO}]} for e in range(3)]


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch) -> Path:
    """results/runs with a run that has ratios (sn) and one that has none (bn)."""
    monkeypatch.chdir(tmp_path)
    for name, records in (("sn-1a2b3c4d", MOMENTS), ("bn-5e6f7a8b", [])):
        folder = tmp_path / "results" / "runs" / name
        folder.mkdir(parents=True)
        config = {"choices": {"norm": name[:2], "data": "digits"}, "batch": "8x2", "seed": 0}
        (folder / "run.json").write_text(json.dumps({"id": name[3:], "name": name, "config": config}))
        (folder / "ratios.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    return tmp_path / "results" / "runs"


@pytest.mark.parametrize("name", choices("figure"))
def test_every_file_names_its_figure(name):
    text = (conf_dir() / "figure" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and len(choices("figure")[name]) > 20
    node = schema.check_target(yaml.safe_load(text), name)
    function = schema.bind(node)
    described = function.func.__doc__
    assert all(
        f"{setting}:" in described or f"{setting}," in described for setting in schema.signature(node["_target_"])
    )


def test_where_a_figure_goes(runs, capsys):
    assert main(["figure", "hard_ratios", "1a2b3c4d", "epochs=[0,2]"]) == 0
    assert capsys.readouterr().out == "written: results/runs/sn-1a2b3c4d/hard_ratios.png\n"
    assert main(["figure", "averages", "sn-1a2b3c4d", str(runs / "sn-1a2b3c4d"), "by=norm"]) == 0
    assert Path("results/figures/averages.png").is_file()
    assert main(["figure", "ratios", "1a2b3c4d", "out=a/b.svg", f"runs={runs}"]) == 0
    assert Path("a/b.svg").read_text().startswith("<?xml")
    assert main(["figure", "geometry", "out=c.pdf"]) == 0
    assert Path("c.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "expected the name of a figure and runs"),
        ("hard_ratio 1a2b3c4d", "figure 'hard_ratio' does not exist; did you mean 'hard_ratios'?"),
        ("hard_ratios", "figure hard_ratios: this figure needs 1 run, got 0"),
        ("hard_ratios 1a2b3c4d 1a2b3c4d", "this figure needs 1 run, got 2"),
        ("hard_ratios 99999999", "there is no such run in results/runs"),
        ("hard_ratios 5e6f7a8b", "figure hard_ratios: bn-5e6f7a8b: there is no ratios.jsonl: norm=bn has no ratios"),
        ("hard_ratios 1a2b3c4d epoch=1", "epoch: there is no such option; did you mean 'epochs'?"),
        ("hard_ratios 1a2b3c4d epochs=one", "epochs=[one]: expected a list"),
        ("averages 1a2b3c4d by=bath", "did you mean 'batch'?"),
        ("averages 1a2b3c4d by=block block_depth=0", "block_depth=0: expected a whole number of 1 or more"),
        ("ratio_curves 1a2b3c4d show=[std]", "show=[std]: expected a list"),
        ("ratio_parts 1a2b3c4d", "figure ratio_parts: sn-1a2b3c4d: all its layers are of one part of the model"),
        ("averages 1a2b3c4d by=part", "by=part: sn-1a2b3c4d: all its layers are of one part of the model"),
        ("ratios 1a2b3c4d out=a.jpg", "out=a.jpg: expected a file that ends in .png, .pdf, .svg"),
        ("learning_curves 1a2b3c4d", "no epoch of it was evaluated"),
        ("estimators 1a2b3c4d", "no epoch of it was evaluated"),
        ("evolution 1a2b3c4d", "there is no statistics.jsonl"),
        ("fluctuation 1a2b3c4d last=1", "last=1: expected a whole number of 2 or more"),
        ("gradient_reduction 1a2b3c4d", "there is no gradients.jsonl"),
        ("geometry 1a2b3c4d", "there are no weights in"),
        ("geometry gamma=-1", "gamma=-1: expected a number above 0"),
    ],
)
def test_refusals_are_one_line(capsys, words, said):
    assert main(["figure", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith("normlab: ")
    assert said in err
    assert not list(Path().rglob("*.png"))


def test_a_figure_is_drawn_without_torch():
    script = (
        "import sys; from normlab.cli import main; "
        "status = main(sys.argv[1:]); sys.exit(77 if 'torch' in sys.modules else status)"
    )
    words = ["figure", "ratio_ranges", "1a2b3c4d"]
    assert subprocess.run([sys.executable, "-c", script, *words], capture_output=True).returncode == 0
