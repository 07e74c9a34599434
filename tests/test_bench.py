"""Benchmarks: their arithmetic, what they read from others' records, and that each runs, tiny; no time is judged."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from page_scripts import script
from PIL import Image
from torch import nn

from normlab.bench import command, data, follow, norm, papers, rounds, run, start, step, tables, train
from normlab.bench.follow import Moment
from normlab.bench.images import make_folders
from normlab.cli import main
from normlab.config import load
from normlab.engine.loop import Loop
from normlab.errors import UserError
from normlab.schema import bind, signature
from normlab.trackers.tracker import NoTracker


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def result(capsys, *words: str) -> dict:
    """What a benchmark leaves in its file, and that it said so."""
    assert main(["bench", *words]) == 0
    out, _ = capsys.readouterr()
    assert f"written: {command.RESULTS}/{words[0]}.json" in out
    return json.loads(Path(command.RESULTS, f"{words[0]}.json").read_text())


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def test_each_candidate_once_a_round_in_changing_order() -> None:
    calls: list[str] = []
    done: list[int] = []

    def candidate(name: str):
        def measure() -> float:
            calls.append(name)
            return float(len(calls))

        return measure

    measured = rounds.interleave({name: candidate(name) for name in "abc"}, 8, lambda: done.append(1))
    orders = [tuple(calls[k : k + 3]) for k in range(0, 24, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(set(orders)) > 1
    assert [calls[int(value) - 1] for value in measured["b"]] == ["b"] * 8  # values stand with who measured them
    assert len(done) == 24


def test_spread_and_ratio_within_rounds() -> None:
    assert rounds.spread([5, 1, 2, 4, 3]) == {"median": 3, "low": 2, "high": 4}
    assert rounds.spread([7]) == {"median": 7, "low": 7, "high": 7}
    # twice as slow as the other in every round, however slow the rounds are
    assert rounds.ratio([2, 20, 200], [1, 10, 100]) == {"median": 2, "low": 2, "high": 2}
    assert rounds.ratio([1.0], [2.0], factor=4)["median"] == 2


def test_rate_between_records_after_the_warmup() -> None:
    moments = [Moment(9.0, 1), Moment(10.0, 5), Moment(10.5, 10), Moment(12.5, 30)]
    assert follow.rate(moments, samples=16, warmup=5) == pytest.approx(25 * 16 / 2.5)
    assert follow.rate(moments, samples=16, warmup=6) == pytest.approx(20 * 16 / 2.0)


def test_updates_in_records() -> None:
    line = "Train: 0 [  50/ 100 ( 51%)]  Loss: 6.91 (6.92)  Time: 0.123s,  130.00/s  (0.130s,  123.00/s)  LR: 5.0e-02"
    assert train.updates_in_timm_log(line) == 51
    assert train.updates_in_timm_log("Test: [   0/1]  Time: 0.1") is None
    assert start.updates_in_metrics('{"step": 7, "epoch": 0.5}') == 7


def test_numbers_and_tables() -> None:
    assert [tables.number(v) for v in (0.5, 12.345, 123.4, 1234.5, 0.0123)] == [
        "0.500",
        "12.3",
        "123",
        "1234",
        "0.0123",
    ]
    assert tables.shown({"median": 2.0, "low": 1.5, "high": 2.5}) == "2.00 (1.50-2.50)"
    rows = [
        {"shape": s, "layer": n, "x": {"median": v}}
        for s, n, v in [("a", "bn", 1.0), ("a", "sn", 2.0), ("b", "sn", 3.0)]
    ]
    table = tables.pivot("t", rows, {"shape": "shape"}, "layer", "x")
    assert table.title == "t"
    assert table.header == ["shape", "bn", "sn"]
    assert table.lines == [["a", "1.00", "2.00"], ["b", "-", "3.00"]]
    alike = tables.pivot("t", rows[:2], {"shape": "shape", "layer": "norm"}, "layer", "x")
    assert (alike.title, alike.header) == ("t, a", ["norm", "bn", "sn"])  # the shape is the same in all lines
    assert tables.markdown(table).splitlines() == [
        "| shape | bn | sn |",
        "| --- | --- | --- |",
        "| a | 1.00 | 2.00 |",
        "| b | - | 3.00 |",
    ]


def test_sum_over_layers_weighs_each_shape_by_its_layers() -> None:
    def row(layer: str, shape: str, layers: int, seconds: float) -> dict:
        way = {"batch": "8x2", "precision": "fp32", "layout": "contiguous"}
        return way | {"layer": layer, "shape": shape, "layers": layers, "seconds": {"median": seconds}}

    rows = [
        row(norm.TORCH_BN, "a", 1, 1.0),
        row("sn", "a", 1, 2.0),
        row(norm.TORCH_BN, "b", 3, 1.0),
        row("sn", "b", 3, 0.5),
    ]
    assert {r["layer"]: r["to_torch_bn"] for r in norm.summed(rows)} == {norm.TORCH_BN: 1.0, "sn": 3.5 / 4}


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_shapes_of_resnet50() -> None:
    """He et al. 2016, Table 1, with torchvision's stride in the 3 x 3 convolution: 53 norm layers."""
    shapes = norm.layer_shapes("resnet50")
    assert sum(shape.layers for shape in shapes) == 53
    counts = {str(shape): shape.layers for shape in shapes}
    assert counts["64x112x112"] == 1 and counts["256x56x56"] == 4 and counts["2048x7x7"] == 4
    large = [str(shape) for shape in norm.select(shapes, ["large"])]
    assert large == ["64x112x112", "256x56x56", "128x56x56", "512x28x28"]
    assert norm.select(shapes, ["all"]) == shapes
    assert norm.select(shapes, ["2048x7x7", "2048x7x7"]) == shapes[-1:]


def test_sn_as_in_the_papers_is_sn() -> None:
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    ours = bind(load(["norm=sn"]).norm)(6).double()
    theirs = papers.PaperSN(6).double()
    for logits in (ours.mean_logits, ours.var_logits, theirs.mean_logits, theirs.var_logits):
        logits.data = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    assert ours.mean_scopes == ["in", "ln", "bn"]
    torch.testing.assert_close(ours(x), theirs(x))


def test_kept_bytes_counts_storages_once_and_leaves_parameters_out() -> None:
    x = torch.randn(8, 4, 3, 3, requires_grad=True)
    size = x.numel() * 4
    assert norm.kept_bytes(nn.Conv2d(4, 4, 1), x) == size
    assert norm.kept_bytes(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid()), x) == 2 * size
    assert norm.kept_bytes(nn.Identity(), x) == 0


@pytest.mark.parametrize("name", ["bn", "sn"])
def test_the_ways_of_a_step_give_what_they_stand_for(name: str) -> None:
    """Replicas in one pass and one by one are the same update; a plain batch is another."""

    def weights(**how: int) -> torch.Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), bind(load([f"norm={name}"]).norm)(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
        )
        images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        step.Trainer(network, optimizer, images, labels, torch.autocast("cpu", enabled=False)).step(**how)
        return torch.cat([t.detach().flatten() for t in network.state_dict().values()])

    torch.testing.assert_close(weights(replicas=4), weights(passes=4))
    assert not torch.allclose(weights(), weights(passes=4))


def test_made_folders(tmp_path) -> None:
    mean_size = make_folders(tmp_path / "data", images=25, distinct=4)
    files = sorted((tmp_path / "data" / "train").glob("*/*.jpg"))
    assert len(files) == 25
    assert len(sorted((tmp_path / "data" / "val").glob("*/*.jpg"))) == 10
    assert {Image.open(file).size for file in files} == {(500, 375)}
    assert 80_000 < mean_size < 140_000  # ImageNet's is about 110 kB


# ---- each runs -----------------------------------------------------------------------------------------------------


def test_norm_runs(capsys) -> None:
    found = result(
        capsys,
        "norm",
        "norms=sn,gn",
        "batch=2x2",
        "shapes=512x7x7,2048x7x7",
        "precision=fp32,bf16",
        "rounds=1",
        "at_least=0",
    )
    layers = {norm.TORCH_BN, norm.TORCH_GN, norm.PAPER_SN, "sn", "gn"}
    assert len(found["rows"]) == 2 * 2 * 2 * len(layers)
    assert {row["layer"] for row in found["rows"]} == layers
    assert all(row["to_torch_bn"]["median"] == 1 for row in found["rows"] if row["layer"] == norm.TORCH_BN)
    kept = {
        row["layer"]: row["kept"] for row in found["rows"] if row["precision"] == "fp32" and row["shape"] == "2048x7x7"
    }
    assert 1 <= kept["sn"] < 1.5 < 2 < kept[norm.PAPER_SN]
    assert found["command"].startswith("normlab bench norm norms=sn,gn")
    assert {"processor", "threads", "versions", "kernels"} <= found["machine"].keys()


def test_step_runs(capsys) -> None:
    found = result(capsys, "step", "norms=sn", "model=resnet18", "batch=2x2", "size=32", "rounds=1", "at_least=0")
    assert [(row["layer"], row["way"]) for row in found["rows"]] == [
        (step.TORCH_BN, "plain"), ("sn", "plain"), ("sn", "replicas"), ("sn", "sequential"),
    ]  # fmt: skip
    assert found["rows"][1]["to_plain"]["median"] == 1


def test_data_runs(capsys) -> None:
    found = result(capsys, "data", "workers=0", "batch=4", "batches=3", "size=32", "rounds=1")
    assert [(row["who"], row["workers"]) for row in found["rows"]] == [("normlab", 0), ("timm", 0)]
    assert all(row["samples_per_second"]["median"] > 0 for row in found["rows"])


def test_loader_runs(capsys) -> None:
    found = result(capsys, "loader", "batch=2", "size=32", "rounds=1", "at_least=0")
    assert [row["part"] for row in found["rows"]] == ["decode"] * 3 + ["crop, resize, flip"] * 3
    assert all(row["milliseconds"]["median"] > 0 for row in found["rows"])


def test_fusion_runs(capsys) -> None:
    found = result(capsys, "fusion", "batch=2", "size=32", "rounds=1", "at_least=0")
    assert [row["network"] for row in found["rows"]] == ["as it is", "without its ReLUs"]


def test_both_loaders_give_the_same_kind_of_batch(tmp_path) -> None:
    make_folders(tmp_path, images=8, distinct=2)
    _, (images, labels) = next(iter(data._ours(tmp_path, 32, 4, 0)))
    their_images, their_labels = next(iter(data._timms(tmp_path, 32, 4, 0)))
    assert images.shape == their_images.shape and images.dtype == their_images.dtype
    assert labels.shape == their_labels.shape and labels.dtype == their_labels.dtype


FAKE_SCRIPT = """
import argparse, logging, time
parser = argparse.ArgumentParser()
parser.add_argument("data_dir")
for name in ("model", "img-size", "batch-size", "workers", "num-classes", "epochs", "opt", "log-interval", "device"):
    parser.add_argument("--" + name, required=True)
options, _ = parser.parse_known_args()
for update in range(0, 100, int(options.log_interval)):
    time.sleep(0.02)
    print(f"Train: 0 [{update:>4d}/100 ({update:>3.0f}%)]  Loss: 1.0", flush=True)
time.sleep(600)
"""


def test_train_runs_with_a_script_that_logs_as_timms_does(capsys, tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text(FAKE_SCRIPT)
    words = ["batch=2", "size=32", "workers=0", "updates=17", "warmup=2", "rounds=1", "device=cpu"]
    found = result(capsys, "train", f"script={script}", *words)
    assert [row["who"] for row in found["rows"]] == [train.NORMLAB_ROW, train.TIMM_ROW]
    assert all(row["samples_per_second"]["median"] > 0 for row in found["rows"])


def test_a_command_that_ends_early_is_told_with_its_last_line() -> None:
    words = [sys.executable, "-c", "print('3'); print('no such model')"]
    with pytest.raises(UserError, match="ended after 3 updates of 5: no such model"):
        follow.follow(words, lambda log: log, lambda line: int(line) if line.isdecimal() else None, until=5)


def test_scenes_run(capsys) -> None:
    found = result(capsys, "scenes", "sizes=16,24", "rounds=1", "repeats=1", "batch=4", "channels=3")
    assert [(row["data"], row["size"]) for row in found["rows"]] == [
        (name, size) for name in ("scenes", "scene_maps", "scene_boxes") for size in (16, 24)
    ]
    assert all(row["milliseconds"]["median"] > 0 and row["alone"]["median"] > 0 for row in found["rows"])


def test_threads_run(capsys) -> None:
    words = ("model=digits_resnet", "sizes=[8]", "batch=2x1", "threads=[1,2]", "beside=1", "rounds=1", "at_least=0")
    before = torch.get_num_threads()
    found = result(capsys, "threads", *words)
    torch.set_num_threads(before)
    assert [(row["size"], row["threads"], row["beside"]) for row in found["rows"]] == [(8, 1, 1), (8, 2, 1)]
    assert all(row["seconds"]["median"] > 0 for row in found["rows"]) and found["rows"][0]["to_first"]["median"] == 1


def test_run_runs(capsys) -> None:
    found = result(capsys, "run", "settings=[norm=bn,batch=2x128,model.width=4]", "epochs=1", "rounds=1")
    assert [row["who"] for row in found["rows"]] == [run.RUN, run.BARE, run.TORCH]
    assert all(row["updates"] == 5 and row["milliseconds"]["median"] > 0 for row in found["rows"])
    assert found["rows"][1]["to_bare"]["median"] == found["rows"][2]["to_torch"]["median"] == 1


def test_the_bare_loop_learns_as_the_run_does(tmp_path: Path) -> None:
    """The same network on the same samples: only then do their times compare."""
    config = load(["norm=sn", "batch=2x128", "epochs=1", "schedule.milestones=[]", "tracker=none", f"out={tmp_path}"])
    session = run._session(config, tmp_path, itertools.count())
    bare = run._BareLoop(session, config, False)
    loop = Loop(session, NoTracker(session.folder.path, "", "", {}))
    torch.manual_seed(config.seed)
    network = bare.network()
    network.load_state_dict(session.experiment.model.state_dict())
    bare.train_epochs(network)
    loop.run()
    for name, value in session.experiment.model.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_start_runs(monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        start, "_first_update", lambda: 1.0
    )  # training in a process of its own is in test_train_runs_...
    found = result(capsys, "start", "rounds=1")
    assert [row["command"] for row in found["rows"]][1:3] == [start.IMPORT, "normlab --help"]


def test_the_page_is_made_from_the_results() -> None:
    root = Path(__file__).resolve().parents[1]
    made = script("performance_tables")
    page = made.PAGE.read_text(encoding="utf-8")
    assert made.filled(page) == page
    for file in made.RESULTS.glob("*.json"):
        assert f"<!-- bench: {file.name} -->" in page
        assert str(Path.home()) not in file.read_text() and str(root) not in file.read_text()


# ---- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "norm, fusion, step, run, threads, train, data, loader, scenes, start"),
        (["nrm"], "did you mean 'norm'?"),
        (["norm", "norms=snn"], "norm=snn"),
        (["norm", "norms=none"], "nothing to measure"),
        (["norm", "round=3"], "did you mean 'rounds'?"),
        (["norm", "rounds=0"], "rounds=0"),
        (["norm", "rounds=many"], "expected a whole number"),
        (["norm", "shapes=64x57x56"], "allowed: all, large, 64x112x112"),
        (["norm", "layout=nhwc"], "contiguous or channels_last"),
        (["norm", "batch=8"], "batch=8"),
        (["norm", "batch=2024-99-99"], "batch=2024-99-99"),
        (["norm", "batch=" + "[" * 10_000], "batch="),
        (["norm", "model=mlp"], "no batch norm over images"),
        (["norm", "threads=0"], "threads=0"),
        (["norm", "out=."], ".json"),
        (["norm", "rounds"], "KEY=VALUE"),
        (["step", "size=0"], "size=0"),
        (["step", "ways=[plain,all]"], "plain or replicas or sequential"),
        (["data", "workers=-1"], "workers=-1"),
        (["data", "batches=1"], "batches=1"),
        (["scenes", "sizes=4"], "sizes=4: expected a whole number of 8 or more"),
        (["train"], "script"),
        (["train", "script=nowhere.py"], "script=nowhere.py: there is no such file"),
        (["start", "rounds=-1"], "rounds=-1"),
    ],
)
def test_bad_words_are_one_line(capsys, words: list[str], said: str) -> None:
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert not Path("results").exists()


def test_options_are_explained_without_torch() -> None:
    script = "import sys; from normlab.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for name in command.BENCHES:
        done = subprocess.run([sys.executable, "-c", script, "bench", name, "options"], capture_output=True, text=True)
        assert done.returncode == 0
        for option in signature(f"normlab.bench.{name}.bench"):
            assert f"{option}: " in done.stdout


def test_lists_have_commas_and_may_have_brackets() -> None:
    parameters = signature("normlab.bench.data.bench")
    for text in ("0,2", "[0,2]"):
        assert command.parse([f"workers={text}"], parameters)["workers"] == [0, 2]
    assert command.parse([], parameters)["workers"] == [0, 1, 2]
    assert command.parse(["threads=null"], parameters)["threads"] is None
