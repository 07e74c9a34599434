"""Runs, checkpoints and weights of others are data: nothing in them is executed, what is wrong is said in a line."""

import io
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sealed import rewrite

from normlab import schema
from normlab.cli import main
from normlab.config import GROUPS, conf_dir, load, recorded
from normlab.errors import UserError, plain
from normlab.runs.folder import RunFolder

SMALL = ["model.width=4", "data.fraction=0.1", "batch=4x4", "epochs=1", "batch_average.samples=64", "tracker=none"]
PLANTED = "from pathlib import Path\n\nPath('executed').touch()\n\n\ndef run(*_, **__):\n    pass\n"
TARGETS = ["os.system", "subprocess.Popen", "builtins.eval", "torch.load", "planted.run", "normlab", "", ".", "a\0b.c"]


class Evil:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> Any:
        return open, ("executed", "w")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        assert main(["train", *SMALL]) == 0
        return next(Path("results/runs").resolve().iterdir())


@pytest.fixture
def theirs(trained: Path, tmp_path: Path, monkeypatch) -> RunFolder:
    """A copy of it that came from elsewhere, and a module of the same origin where Python finds it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NORMLAB_PACKAGES", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    Path("planted.py").write_text(PLANTED)
    copy = tmp_path / "theirs"
    for file in (f for f in trained.rglob("*") if f.is_file()):
        target = copy / file.relative_to(trained)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return RunFolder(copy)


def refusal(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("normlab: ") and err.count("\n") == 1, err
    assert not Path("executed").exists()
    return err


def name_target(folder: RunFolder, group: str, target: str) -> None:
    """Write it into the run's file."""
    rewrite(folder.run_file, lambda run: run["config"].update({group: {"_target_": target}}))


# ---- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("group", ["norm", "task"])
def test_a_run_names_no_target_outside_normlab(target: str, group: str, theirs: RunFolder, capsys) -> None:
    name_target(theirs, group, target)
    for verb in ("eval", "estimate"):
        assert f"_target_={plain(target)}" in refusal(capsys, verb, str(theirs.path))
    assert "planted" not in sys.modules


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_and_part_is_looked_at(group: str, theirs: RunFolder) -> None:
    name_target(theirs, group, "planted.run")
    with pytest.raises(UserError, match="NORMLAB_PACKAGES=planted"):
        theirs.config()


def test_parts_are_looked_at(theirs: RunFolder) -> None:
    settings = theirs.run()["config"]
    for part in ({"norm": {"_target_": "planted.run"}}, {"weight": {"_target_": "planted.run"}}):
        with pytest.raises(UserError, match=r"parts\.head\..*NORMLAB_PACKAGES=planted"):
            recorded(settings | {"parts": {"head": part}})


def test_packages_that_the_user_names_are_trusted(theirs: RunFolder, monkeypatch) -> None:
    name_target(theirs, "tracker", "planted.run")
    for value in ("planted", "other, planted"):
        monkeypatch.setenv("NORMLAB_PACKAGES", value)
        assert theirs.config().tracker == {"_target_": "planted.run"}
    for value in ("planted.more", "plant", "planted2", "*"):
        monkeypatch.setenv("NORMLAB_PACKAGES", value)
        with pytest.raises(UserError, match="NORMLAB_PACKAGES=planted"):
            theirs.config()


def test_what_the_user_types_is_the_users_own(theirs: RunFolder) -> None:
    assert load(["tracker._target_=planted.run"]).tracker == {"_target_": "planted.run"}
    assert "planted" not in sys.modules


def test_texts_of_a_run_are_not_resolved(theirs: RunFolder) -> None:
    config = recorded(theirs.run()["config"] | {"out": "${oc.env:HOME}"})
    assert config.out == "${oc.env:HOME}"


def test_the_normal_run_is_evaluated(theirs: RunFolder, capsys) -> None:
    """What the refusals above differ from."""
    assert main(["eval", str(theirs.path)]) == 0
    assert "moving average" in capsys.readouterr().out


# ---- weights and checkpoints ---------------------------------------------------------------------------------------


def evil_bytes() -> bytes:
    return pickle.dumps(Evil())


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "weights.safetensors"])
@pytest.mark.parametrize("by_torch", [False, True])
def test_weights_to_start_from_execute_nothing(name: str, by_torch: bool, theirs: RunFolder, capsys) -> None:
    if by_torch:
        torch.save(Evil(), name)
    else:
        Path(name).write_bytes(evil_bytes())
    for verb in ("plan", "train"):
        assert name in refusal(capsys, verb, *SMALL, f"init={name}")
    data = Path(name).read_bytes()
    torch.load(io.BytesIO(data), weights_only=False) if by_torch else pickle.loads(data)
    assert Path("executed").exists()  # they would have


def test_weights_of_a_run_execute_nothing(theirs: RunFolder, capsys) -> None:
    for file in (theirs.batch_average, theirs.weights):
        whole = file.read_bytes()
        for damaged in (evil_bytes(), whole[:-5], whole[:4], b""):
            file.write_bytes(damaged)
            assert file.name in refusal(capsys, "eval", str(theirs.path))
        file.write_bytes(whole)


def test_weights_of_another_model_are_refused(theirs: RunFolder, capsys) -> None:
    rewrite(theirs.run_file, lambda run: run["config"]["model"].update(width=8))
    assert "weights" in refusal(capsys, "eval", str(theirs.path))


def test_checkpoints_execute_nothing(trained: Path, theirs: RunFolder, monkeypatch, capsys) -> None:
    """A run that goes on from a checkpoint which is a pickle."""
    out = Path("out")
    out.mkdir()
    folder = RunFolder(theirs.path.rename(out / trained.name))
    for file in (folder.status_file, folder.summary_file):
        file.unlink()
    checkpoints = list(folder.checkpoints.glob("*.pt"))
    assert checkpoints
    for file in checkpoints:
        file.write_bytes(evil_bytes())
    status = main(["train", *SMALL, f"out={out}"])
    assert status in (0, 2) and "Traceback" not in capsys.readouterr().err
    assert not Path("executed").exists()


# ---- conf/ ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"# a norm\nmean: [bn\n", "mine.yaml: this is no YAML: while parsing a flow sequence at line 2, column 7"),
        (b"# a norm\nmean: " + 10**6 * b"[", "norm/mine.yaml: this is no YAML: settings that are nested more than"),
        (b"# a norm\nmean: " + 10**6 * b"- ", "norm/mine.yaml: this is no YAML"),
        (b"# a norm \xff\nmean: [bn]\n", "norm/mine.yaml: this is no text"),
        (b"# a norm\n_target_: !!python/object/apply:os.system [touch executed]\n", "norm/mine.yaml: this is no YAML"),
        (b"# a norm\nmean: [bn]\n", "norm/mine.yaml: no _target_ says what builds it"),
        (b"# a norm\n- bn\n", "norm/mine.yaml: [bn]: expected settings with names"),
        (b"", "norm/mine.yaml: no _target_ says what builds it"),
        (b"# a norm\n_target_: ${batch}\n", "_target_=8x2"),
        (b"# a norm\n_target_: normlab.launch.start.start\n", "f(num_channels, *, ...)"),
    ],
)
def test_files_of_conf(data: bytes, message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    conf, name = tmp_path / "conf", f"mine{abs(hash(data))}"  # composed files are kept by their names
    shutil.copytree(conf_dir(), conf)
    (conf / "norm" / f"{name}.yaml").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("normlab.config.files.conf_dir", lambda: conf)
    assert message in refusal(capsys, "train", f"norm={name}", "--cfg", "job").replace(name, "mine")
    assert main(["list", "norm"]) == 0


@pytest.mark.parametrize(("group", "target"), [
    ("norm", "normlab.cli.main"), ("norm", "normlab.launch.start._clear"), ("norm", "normlab./tmp/evil.f"),
    ("model", "normlab.writing.write_json"), ("data", "normlab.datasets.prepare"), ("norm", "normlab.errors.UserError"),
    ("task", "normlab.trackers.tracker.NoTracker"), ("model", "normlab.norm.layer.Normalizer"),
])  # fmt: skip
def test_a_run_names_what_conf_names_in_its_group_alone(group: str, target: str, theirs: RunFolder, capsys) -> None:
    name_target(theirs, group, target)
    said = refusal(capsys, "eval", str(theirs.path))
    assert f"{group}._target_={target}: a run's own files may name what conf/ names there only" in said


def test_a_target_that_the_command_named_reaches_the_ranks(monkeypatch) -> None:
    """Of normlab too, where no file of conf/ has it; its name is trusted, and not all of normlab."""
    monkeypatch.setenv("NORMLAB_PACKAGES", "")
    config = load(["norm=sn", "tracker=none"])
    settings = config.to_dict() | {"tracker": {"_target_": "normlab.trackers.tracker.NoTracker"}}
    with pytest.raises(UserError, match="what conf/ names there only"):
        recorded(settings | {"model": {"_target_": "normlab.models.mlp.other"}})
    schema.trust(["normlab.trackers.tracker.NoTracker", "my_models.net"])
    recorded(settings)
    assert os.environ["NORMLAB_PACKAGES"] == "my_models.net,normlab.trackers.tracker.NoTracker"
