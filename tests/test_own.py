"""A user's own folder beside conf/: norms, data, models, experiments, tables and modules, normlab unchanged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.cli import main
from normlab.config import choices, files, load
from normlab.config.compose import recorded
from normlab.errors import UserError
from normlab.report.tables import load_table
from normlab.runs.folder import RunFolder

DATA = """
import numpy as np
import torch

from normlab.data.dataset import ImageDataset


class Blobs(ImageDataset):
    num_classes = 3

    def __init__(self, split, seed, *, size: int = 8, count: int = 24):
        random = np.random.RandomState(split == "val")
        labels_N = np.arange(count) % 3
        shift_N111 = labels_N[:, None, None, None]
        self.images_NCHW = torch.tensor(random.randn(count, 1, size, size) + shift_N111, dtype=torch.float32)
        self.shape = (1, size, size)
        super().__init__(seed, labels_N, eval_transform=lambda image: image)

    def read(self, index):
        return self.images_NCHW[index]
"""
MODEL = """
from torch import nn


def tiny(shape, num_classes, *, channels: int = 4):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(nn.Conv2d(shape[0], channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), *head)
"""
EXPERIMENT = """# @package _global_
defaults:
  - override /data: own_blobs
  - override /norm: own_norm
batch: 2x4
epochs: 1
seed: 3
model:
  width: 4
"""
WORDS = ("+experiment=quick", "tracker=none", "figures=summary")


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    """An own folder; environment and import path are afterwards what they were before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(files.OWN, "")
    monkeypatch.delenv(files.OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "lab"
    for group in ("norm", "data", "experiment", "table"):
        (folder / group).mkdir(parents=True)
    (folder / "own_data.py").write_text(DATA)
    (folder / "norm" / "own_norm.yaml").write_text(
        "# SN without BN\n_target_: normlab.norm.layer.Normalizer\nmean: [in, ln]\nvar: [in, ln]\n"
    )
    (folder / "data" / "own_blobs.yaml").write_text("# blobs in noise\n_target_: own_data.Blobs\n")
    (folder / "experiment" / "quick.yaml").write_text(EXPERIMENT)
    yield folder
    files.default_choice.cache_clear()
    for module in ("own_data", "own_model"):
        sys.modules.pop(module, None)


def refusal(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("normlab: ") and err.count("\n") == 1, err
    return err


def test_files_of_an_own_folder_are_choices_like_others(lab, capsys):
    assert "own_norm" not in choices("norm")
    assert main(["list", "norms", "--config-dir", str(lab)]) == 0
    assert "own_norm" in capsys.readouterr().out
    config = load(["norm=own_norm", "data=own_blobs"])
    assert config.norm["mean"] == ["in", "ln"] and config.data["_target_"] == "own_data.Blobs"
    assert "did you mean 'own_norm'" in refusal(capsys, "plan", "norm=own_nrm", f"--config-dir={lab}")


def test_an_experiment_sets_groups_and_values_and_words_change_them(lab):
    files.use_own_dir(str(lab))
    config = load(["+experiment=quick"])
    assert (config.choices["norm"], config.batch, config.seed, config.model["width"]) == ("own_norm", "2x4", 3, 4)
    config = load(["+experiment=quick", "norm=bn", "seed=5", "model.width=8"])
    assert (config.choices["norm"], config.batch, config.seed, config.model["width"]) == ("bn", "2x4", 5, 8)


def test_an_experiment_counts_more_than_a_scale(lab):
    files.use_own_dir(str(lab))
    for words in (["scale=cifar10_sn", "+experiment=quick"], ["+experiment=quick", "scale=cifar10_sn"]):
        config = load([*words, "model=digits_resnet"])
        assert (config.choices["data"], config.epochs, config.model["width"]) == ("own_blobs", 1, 4)
        assert config.schedule["milestones"] == [9, 18, 27] and config.optim["lr"] == 0.1  # the scale's


def test_a_run_of_own_parts_on_two_devices_is_named_after_them(lab, capsys):
    assert main(["train", "--config-dir", str(lab), *WORDS, "devices=2"]) == 0
    folder = RunFolder.of(load([*WORDS, "devices=2"]))
    assert folder.path.name.startswith("own_blobs-digits_resnet-own_norm-2x4-s3-")
    assert folder.summary()["norm"] == "own_norm" and folder.summary()["devices"] == 2


def test_a_sweep_over_own_and_other_norms(lab, capsys):
    assert main(["train", "-m", "--config-dir", str(lab), *WORDS, "norm=own_norm,sn", "jobs=2"]) == 0
    assert "2 finished" in capsys.readouterr().err


def test_what_a_command_names_is_trusted_by_that_command_alone(lab, capsys, monkeypatch):
    """Whoever has the run, and not the folder, does not import what the run's file names."""
    assert main(["train", "--config-dir", str(lab), *WORDS]) == 0
    run = str(RunFolder.of(load(list(WORDS))).path)
    monkeypatch.delenv(files.OWN)
    monkeypatch.delenv("NORMLAB_PACKAGES")
    assert "a run's own files may name what conf/ names there only" in refusal(capsys, "eval", run)
    capsys.readouterr()
    assert main(["eval", run, "--config-dir", str(lab)]) == 0


def test_modules_of_the_working_folder_are_for_words_that_name_them(lab, tmp_path, capsys):
    (tmp_path / "own_model.py").write_text(MODEL)
    words = ["model._target_=own_model.tiny", "model.channels=6", "iterations=1", "batch=2x2", "tracker=none"]
    normlab = [sys.executable, "-P", "-m", "normlab"]  # -P: as the installed command, which has no working folder in it
    done = subprocess.run([*normlab, "train", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "results" / "runs").glob("*/run.json")
    settings = json.loads(run.read_text())["config"]
    assert settings["model"] == {"_target_": "own_model.tiny", "channels": 6}  # no width of digits_resnet
    assert run.parent.name.startswith("digits-tiny-sn-")
    done = subprocess.run([*normlab, "eval", str(run.parent)], capture_output=True, text=True)
    assert done.returncode == 2 and "own_model.tiny" in done.stderr


def test_a_task_of_ones_own_names_the_run(tmp_path):
    config = load(["task._target_=toy_reading.Styled", f"task.style={__file__}", f"out={tmp_path}"])
    assert config.choices["task"] == "styled"


def test_a_file_that_is_wrong_matters_only_to_a_run_that_asks_for_it(lab, monkeypatch):
    (lab / "norm" / "half.yaml").write_text("mean: [bn")
    (lab / "norm" / "bare.yaml").write_text("mean: [bn]\n")
    monkeypatch.setenv(files.OWN, str(lab))
    config = load(["norm=own_norm", "batch=2x4"])
    assert recorded(config.to_dict()).norm == config.norm
    with pytest.raises(UserError, match=r"half\.yaml: .*no YAML"):
        load(["norm=half"])


def test_own_tables_are_found(lab, capsys):
    source = files.files_of("table")["sn_variants"]
    (lab / "table" / "own_table.yaml").write_text(source.read_text().replace("aliases:", "# aliases:"))
    files.use_own_dir(str(lab))
    assert load_table("own_table").name == "own_table"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["--config-dir"], "--config-dir: expected a folder after it"),
        (["experiment=quick"], "expected +experiment=NAME"),
        (["+experiment=quik"], "did you mean 'quick'?"),
        (["+experiment=broken"], "broken"),
        (["+experiment=typo"], "epoch: there is no such setting; did you mean 'epochs'?"),
        (["+experiment=unplaced"], "experiment/unplaced.yaml: its first line is to be `# @package _global_`"),
        (["+experiment=choosing"], "experiment/choosing.yaml: norm=snn: there is no such norm; did you mean 'sn'?"),
        (["+experiment=unknown"], "experiment/unknown.yaml: In 'experiment/unknown': Could not override 'nrom'"),
        (["+experiment=listless"], "experiment/listless.yaml: defaults=3: expected a list"),
        (["+experiment=nowhere", "scale=digits"], "epochs: Interpolation key 'nothing' not found"),
        (["norm=unready"], "unready.py, line 2: this is no Python"),
        (["norm=needy"], "importing needy failed: No module named 'absent_module'"),
        (["model._target_=timm.create_model"], "defines no create_model; did you mean 'timm.models.create_model'?"),
        (["model._target_=torchvision.models.resnet18"], "defines no resnet18; name the module that does"),
    ],
)
def test_what_does_not_work_is_one_line(lab, words, message, capsys):
    (lab / "experiment" / "broken.yaml").write_text("- 1\n")
    for name, says in {
        "typo": "epoch: 3",
        "choosing": "defaults: [{override /norm: snn}]",
        "unknown": "defaults: [{override /nrom: sn}]",
        "listless": "defaults: 3",
        "nowhere": "epochs: ${nothing}",
    }.items():
        (lab / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{says}\n")
    (lab / "experiment" / "unplaced.yaml").write_text("batch: 4x2\n")
    for name, says in {"unready": "x = 1\nno Python", "needy": "import absent_module\ndef norm(n):\n    pass"}.items():
        (lab / "norm" / f"{name}.yaml").write_text(f"_target_: {name}.norm\n")
        (lab / f"{name}.py").write_text(f"{says}\n")
    own = [] if "--config-dir" in words else ["--config-dir", str(lab)]
    assert message in refusal(capsys, "plan", *own, *words)


def test_a_folder_of_the_environment_is_looked_at_like_one_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NORMLAB_CONFIG_DIR", "nowhere")
    assert "NORMLAB_CONFIG_DIR=nowhere: there is no such folder" in refusal(capsys, "plan")
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "sn.yaml").write_text("_target_: normlab.norm.layer.Normalizer\nmean: [in]\nvar: [in]\n")
    monkeypatch.setenv("NORMLAB_CONFIG_DIR", str(tmp_path))
    assert "normlab has a norm of this name" in refusal(capsys, "plan")


def test_options_stand_behind_the_command(capsys):
    assert "--config-dir: options stand behind the command" in refusal(capsys, "--config-dir", "lab", "plan")


def test_an_own_file_cannot_take_the_name_of_another(lab, capsys):
    (lab / "norm" / "sn.yaml").write_text("_target_: normlab.norm.layer.Normalizer\nmean: [in]\nvar: [in]\n")
    assert "normlab has a norm of this name" in refusal(capsys, "plan", "--config-dir", str(lab))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("norm=sm", "did you mean 'sn'?"),
        ("model=resnet34", "model=timm model.name=resnet34 or model=torchvision model.name=resnet34"),
        ("norm=ws", "did you mean weight=ws?"),
        ("model=zzzzqq", "the nearest is"),
        ("data=q", "allowed: "),
    ],
)
def test_a_name_is_looked_for_nearby_and_in_other_groups(word, message):
    with pytest.raises(UserError) as error:
        load([word])
    assert message in str(error.value)
