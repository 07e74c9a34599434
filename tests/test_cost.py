"""Plans without the data, and the GPU-hours that they state."""

import json

import pytest

from normlab.cli import main
from normlab.config import load
from normlab.data.published import data_may_be_absent
from normlab.dynamics.dry_run import multiply_adds
from normlab.engine.build import build_task
from normlab.engine.length import Length
from normlab.errors import UserError
from normlab.launch.cost import Costs, throughput
from normlab.report.tables import all_tables

# Of Kinetics' videos nobody knows how many are still to be had.
PAPERS = sorted(
    {(scale, table.task) for table in all_tables() for scale in table.scales.values() if scale != "kinetics_sn"}
)


@pytest.mark.parametrize(("scale", "task"), PAPERS)
def test_every_protocol_is_planned_without_its_data(scale, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with data_may_be_absent():
        config = load([f"scale={scale}", *([f"task={task}"] if task else []), "tracker=none"])
        made = build_task(config)
        length = Length(config, made)
        assert length.total > 0 and all(len(made.dataset(split)) for split in made.tested)


def test_a_run_needs_its_data_still(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for verb in ("train", "reproduce"):
        words = ["table2", "scale=imagenet", "seeds=1"] if verb == "reproduce" else ["scale=imagenet_sn"]
        assert main([verb, *words]) == 2
        assert "data.root=data/imagenet: there is no such folder" in capsys.readouterr().err
    assert main(["train", "scale=imagenet_sn", "--cfg", "job"]) == 0


def test_gpu_hours_of_imagenet(tmp_path, monkeypatch, capsys):
    """100 epochs of 1,281,167 images but for the last, incomplete update of each, at 400 a second."""
    monkeypatch.chdir(tmp_path)
    hours = 100 * (1_281_167 // 256) * 256 / 400 / 3600
    assert main(["plan", "scale=imagenet_sn", "batch=8x32", "throughput=400"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"GPU-hours {hours:,.2f} of training, at 400 samples a second on a GPU" in shown
    assert "(as published: data/imagenet is not there)" in shown
    assert main(["reproduce", "table2", "scale=imagenet", "--dry-run", "throughput=400", "seeds=1"]) == 0
    shown = capsys.readouterr().out
    total = float(shown.split("GPU-hours")[0].split()[-1].replace(",", ""))
    assert total == pytest.approx(27 * hours, rel=1e-3)


def measured(tmp_path, **changes):
    row = {"who": "normlab train norm=bn", "model": "resnet18", "size": 128, "samples_per_second": {"median": 500.0}}
    machine = {"gpu": "Some GPU", "processor": "x"}
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"bench": "train", "rows": [row], "machine": machine} | changes))
    return file


def test_another_network_costs_its_operations(tmp_path):
    """By a measurement of ResNet-18 at 128 pixels: for itself as measured, for others by their multiply-adds."""
    given = throughput(str(measured(tmp_path)))
    assert given.words == "500 samples a second of resnet18 on one Some GPU"
    words = ["data=synthetic", "data.size=128", "data.num_classes=1000", "iterations=36", "batch=8x32", "tracker=none"]
    costs = Costs(given)
    same, other = (load([*words, f"model={model}"]) for model in ("resnet18", "resnet50"))
    assert costs.hours(same) == pytest.approx(36 * 256 / 500 / 3600)
    operations = [multiply_adds(task.build({}), (3, 128, 128)) for task in map(build_task, (same, other))]
    assert costs.hours(other) / costs.hours(same) == pytest.approx(operations[1] / operations[0])
    assert 2 < operations[1] / operations[0] < 2.4  # 4.1 and 1.8 billion, of 224 pixels


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf", "nothing.json", "."])
def test_what_is_no_throughput(text):
    with pytest.raises(UserError, match=r"throughput=.*expected samples a second on one GPU"):
        throughput(text)


def test_another_benchmark_is_none(tmp_path):
    for changes in ({"bench": "norm"}, {"rows": []}):
        with pytest.raises(UserError, match=r"train"):
            throughput(str(measured(tmp_path, **changes)))


def test_it_is_for_plans_alone(capsys):
    assert main(["reproduce", "table2", "throughput=400"]) == 2
    assert "throughput=400: expected with --dry-run alone" in capsys.readouterr().err
