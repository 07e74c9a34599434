"""normlab import: released layouts, made by networks of the tests' own, give the same logits here."""

from functools import partial
from pathlib import Path

import pytest
import released
import torch
from released import ResNet, SwitchNorm, data_parallel
from torch import nn

from normlab.cli import main
from normlab.config import identity
from normlab.engine.saved import open_run
from normlab.errors import UserError
from normlab.exchange.importing import import_run
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder

BASIC, DEEP = [2, 2, 2, 2], [3, 4, 6, 3]
SMALL = ("data.size=64", "data.length=16", "data.val_length=8")

CASES = {
    "v1": (lambda: ResNet(BASIC, wide=False), "norm=sn", "model=resnet18"),
    "v1 of bottlenecks": (lambda: ResNet(DEEP, wide=True), "norm=sn", "model=resnet50"),
    "v1 of IN and LN": (lambda: ResNet(BASIC, wide=False, norm=partial(SwitchNorm, logits=2)), "norm=sn_in_ln", ""),
    "v2": (lambda: ResNet(DEEP, wide=True, v2=True), "norm=sn", "model=resnet50_v2"),
    "sparse": (
        lambda: ResNet(DEEP, wide=True, sparse=True, norm=partial(SwitchNorm, sparse=True)),
        "norm=sn_hard",
        "model=resnet50_ssn model.name=resnet50",
    ),
    "sparse, of 18 layers": (
        lambda: ResNet(BASIC, wide=False, sparse=True, norm=partial(SwitchNorm, sparse=True)),
        "norm=sn_hard",
        "model=resnet50_ssn model.name=resnet18",
    ),
    "ws": (
        lambda: ResNet(BASIC, wide=False, conv=released.StandardizedConv2d, norm=partial(nn.GroupNorm, 32)),
        "norm=gn weight=ws weight.profile=official",
        "model=resnet18",
    ),
}


def write(file: Path, network: nn.Module, case: str) -> None:
    if case == "ws":
        torch.save(released.with_bn_names(data_parallel(network)), file)
    else:
        torch.save({"state_dict": data_parallel(network), "step": 5, "arch": "resnet", "optimizer": {}}, file)


def imported(out: Path) -> RunFolder:
    (run,) = out.glob("*/run.json")
    return RunFolder(run.parent)


def refusal(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("normlab: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("case", CASES)
def test_a_released_layout_gives_the_logits_of_the_network_that_made_it(case: str, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    make, norm, model = CASES[case]
    network = make().double().eval()
    file = tmp_path / "released.pth"
    write(file, network, case)
    assert main(["import", str(file), f"out={tmp_path}", "precision=fp64", *SMALL]) == 0
    assert norm in (said := capsys.readouterr().out) and model in said
    folder = imported(tmp_path)
    ours = open_run(folder).experiment.model.eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), network(x), rtol=1e-9, atol=1e-9)
    # the weights are kept as they were stored
    assert torch.equal(load_tensors(folder.weights)["fc.weight"], network.fc.weight)


@pytest.fixture
def detector(tmp_path: Path) -> tuple[Path, ResNet]:
    torch.manual_seed(0)
    network = ResNet(BASIC, wide=False)
    file = tmp_path / "detector.pkl"
    torch.save({"model": released.detector(network), "iters_per_epoch": 7}, file)
    return file, network


def test_the_backbone_of_a_detector(detector: tuple[Path, ResNet], tmp_path: Path, capsys) -> None:
    file, network = detector
    assert main(["import", str(file), f"out={tmp_path}", "data.num_classes=10", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "not in the file, and random: fc.bias, fc.weight" in said and "2 tensors" in said
    ours = open_run(imported(tmp_path)).experiment.model.eval()
    ours.fc.load_state_dict(network.fc.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), network(x), rtol=1e-3, atol=1e-3)


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, ResNet]:
    torch.manual_seed(0)
    network = ResNet(BASIC, wide=False)
    write(tmp_path / "released.pth", network, "v1")
    return tmp_path / "released.pth", network


def test_show_prints_the_ratios_and_eval_and_figure_take_the_run(plain, tmp_path: Path, capsys) -> None:
    file, network = plain
    out = tmp_path / "runs"
    assert main(["import", str(file), f"out={out}", *SMALL]) == 0
    folder = imported(out)
    capsys.readouterr()
    assert main(["show", str(folder.path)]) == 0
    ratios = torch.stack([m.mean_weight.softmax(0) for m in network.modules() if isinstance(m, SwitchNorm)]).mean(0)
    said = capsys.readouterr().out
    assert "imported" in said
    assert f"in {ratios[0]:.3f}  ln {ratios[1]:.3f}  bn {ratios[2]:.3f}" in said
    assert main(["status", f"out={out}"]) == 0
    assert main(["eval", str(folder.path)]) == 0
    assert "batch average" not in capsys.readouterr().out  # none was ever measured
    assert main(["figure", "layers", str(folder.path), f"out={tmp_path / 'layers.png'}"]) == 0
    assert (tmp_path / "layers.png").stat().st_size > 0


def test_settings_of_the_words_take_the_place_of_the_files(plain, tmp_path: Path) -> None:
    words = ["data=synthetic", "data.num_classes=10", "batch=8x2", "norm=sn_tied", "norm.profile=paper"]
    with pytest.raises(UserError, match=r"not in the model: bn1\.var_logits"):
        import_run(plain[0], [*words, *SMALL, f"out={tmp_path}"])
    words[-2] = "norm=sn"
    folder, _ = import_run(plain[0], [*words, *SMALL, f"out={tmp_path}"])
    config = folder.config()
    assert (config.batch, config.norm["profile"], config.data["size"]) == ("8x2", "paper", 64)


def test_it_is_not_taken_for_the_run_that_would_be_trained(plain, tmp_path: Path) -> None:
    assert main(["import", str(plain[0]), f"out={tmp_path}", *SMALL]) == 0
    folder = imported(tmp_path)
    assert RunFolder.of(folder.config()).path != folder.path
    assert folder.run()["id"] != identity(folder.config()) and folder.path.name.endswith(folder.run()["id"])
    assert main(["import", str(plain[0]), f"out={tmp_path}", *SMALL]) == 0  # again: the same folder
    imported(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["norm=sn_in_ln"], r"of another shape: bn1.mean_logits (3,), not (2,)"),
        (["norm=gn"], "not in the model: bn1.mean_logits, bn1.running_mean, bn1.running_var and 77 more"),
        (["model=resnet50"], "not in the file: layer1.0.bn3.bias, layer1.0.bn3.mean_logits"),
        (["data.num_classes=7"], "fc.bias (10,), not (7,)"),
        (["data.channels=1"], "conv1.weight (64, 3, 7, 7), not (64, 1, 7, 7)"),
        (["model=resnet51"], "did you mean"),
    ],
)
def test_what_does_not_fit_is_named_with_what_the_file_tells_of(words, said, plain, tmp_path: Path, capsys) -> None:
    err = refusal(capsys, "import", str(plain[0]), f"out={tmp_path}", *SMALL, *words)
    assert said in err
    assert "model=resnet51" in words or "norm=sn norm.profile=official model=resnet18" in err
    assert not list(tmp_path.glob("*/run.json"))


def test_files_that_are_no_released_checkpoint_are_refused_in_a_line(plain, tmp_path: Path, capsys) -> None:
    file, network = plain
    whole = file.read_bytes()
    contents = {
        "cut.pth": whole[: len(whole) // 2],
        "text.pth": b"not a checkpoint",
        "empty.pth": b"",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        assert "executed" in refusal(capsys, "import", str(tmp_path / name), f"out={tmp_path}")
    for value, said in (
        ([1, 2], "no tensors with names"),
        ({"a": torch.zeros(2)}, "none of the released layouts"),
        ({"state_dict": data_parallel(network) | {"module.fc.bias": torch.full((10,), torch.nan)}}, "not finite"),
    ):
        torch.save(value, tmp_path / "other.pth")
        assert said in refusal(capsys, "import", str(tmp_path / "other.pth"), f"out={tmp_path}")
    assert "no such file" in refusal(capsys, "import", str(tmp_path / "nothing.pth"))


class Evil:
    def __reduce__(self):
        return open, ("executed", "w")


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}, "more": Evil()}, "evil.pth")
    refusal(capsys, "import", "evil.pth")
    assert not Path("executed").exists()


def test_layers_that_had_not_become_sparse_are_counted(tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    network = ResNet(BASIC, wide=False, norm=partial(SwitchNorm, sparse=True))
    network.sn1.mean_fixed.zero_()
    write(tmp_path / "sparse.pth", network, "sparse")
    assert main(["import", str(tmp_path / "sparse.pth"), f"out={tmp_path}", *SMALL]) == 0
    assert "had not become sparse yet, whose largest ratio counts alone: 1" in capsys.readouterr().out
