"""normlab import: released layouts, made by networks of the tests' own, give the same logits here."""

import zipfile
from functools import partial
from pathlib import Path

import pytest
import released
import safetensors.torch
import torch
from released import ResNet, SwitchNorm, data_parallel
from torch import nn

from normlab.cli import main
from normlab.config import identity, load
from normlab.engine.build import build
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


def test_a_detector_begins_from_a_released_one(detector: tuple[Path, ResNet], tmp_path: Path) -> None:
    """From its backbone, all of it."""
    file, network = detector
    assert main(["import", str(file), f"out={tmp_path}", "data.num_classes=10", *SMALL]) == 0
    words = ["task=detection", "data.channels=3", "model=faster_rcnn_fpn", "model.backbone=resnet18", "norm=sn",
             "norm.profile=official", f"init={imported(tmp_path).path}", f"out={tmp_path}"]  # fmt: skip
    experiment = build(load(words))
    assert experiment.unused == ["fc.bias", "fc.weight"]
    body = experiment.model.backbone.body
    assert torch.equal(body.bn1.mean_logits, network.sn1.mean_weight)
    assert torch.equal(body.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    assert torch.equal(body.layer4[1].bn2.running_var, network.layer4[1].sn2.running_var.flatten())


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


# ---- what a file may hold ------------------------------------------------------------------------------------------

KEY = "module.conv1.weight"


def refused_with(changes: dict[str, torch.Tensor], plain, tmp_path: Path, capsys, suffix: str = ".pth") -> str:
    """What is said of the plain checkpoint with other tensors in it; nothing is left of it."""
    file = tmp_path / f"changed{suffix}"
    tensors = data_parallel(plain[1]) | changes
    safetensors.torch.save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    err = refusal(capsys, "import", str(file), f"out={tmp_path}", *SMALL)
    assert f"{file}: " in err and not list(tmp_path.glob("*/run.json"))
    return err


VARIANCE = "module.layer1.0.sn1.running_var"
VALUES = {  # a name and its tensor, of what the file has there, and what is said of it
    "nan": (KEY, lambda t: t * torch.nan, f"{KEY} has values that are not finite"),
    "infinite": (VARIANCE, lambda t: t / 0, f"{VARIANCE} has values that are not finite"),
    "large": (KEY, lambda t: t.double() * 1e200, f"{KEY} has values above 3.4e+38"),
    "complex": (KEY, lambda t: t.to(torch.complex64), f"{KEY} holds complex numbers; expected floating-point numbers"),
    "bool": (KEY, lambda t: t > 0, f"{KEY} holds true and false"),
    "int": (KEY, lambda t: t.to(torch.int32), f"{KEY} holds whole numbers"),
    "negative": (VARIANCE, lambda t: -t - 5, f"{VARIANCE} has values below 0"),
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_values_that_the_model_would_not_keep_are_refused(case: str, suffix: str, plain, tmp_path, capsys) -> None:
    name, change, said = VALUES[case]
    changed = {name: change(data_parallel(plain[1])[name])}
    assert said in refused_with(changed, plain, tmp_path, capsys, suffix)


@pytest.mark.filterwarnings("ignore")  # torch's own, on quantized tensors
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(),
        lambda t: torch.empty(t.shape, device="meta"),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: torch.nested.nested_tensor([t, t]),
    ],
    ids=["sparse", "meta", "quantized", "nested"],
)
def test_tensors_that_are_no_plain_ones_are_refused(change, plain, tmp_path, capsys) -> None:
    changed = {KEY: change(data_parallel(plain[1])[KEY].detach())}
    assert f"{KEY} is sparse, nested, quantized or without values" in refused_with(changed, plain, tmp_path, capsys)


@pytest.mark.parametrize("name", ["module.fc.bias", "module.layer1.0.sn1.mean_weight", KEY, "module.sn1.weight"])
def test_a_tensor_without_dimensions_is_of_another_shape(name: str, plain, tmp_path: Path, capsys) -> None:
    torch.save(data_parallel(plain[1]) | {name: torch.tensor(1.0)}, tmp_path / "point.pth")
    err = refusal(capsys, "import", str(tmp_path / "point.pth"), f"out={tmp_path}", *SMALL)
    assert "of another shape" in err and "(), not (" in err and "point.pth" in err


def test_a_file_that_asks_for_more_than_it_holds_is_refused(plain, tmp_path: Path, capsys) -> None:
    """A number that is repeated 10^10 times, and zeros that were packed: little on the disk, much in memory."""
    torch.save({KEY: torch.zeros(1).expand(10**5, 10**5), "module.bn1.weight": torch.ones(1)}, tmp_path / "a.pth")
    assert f"{KEY} would take 40,000,000,000 bytes" in refusal(capsys, "import", str(tmp_path / "a.pth"))
    torch.save({KEY: torch.zeros(2**20), "module.bn1.weight": torch.ones(1)}, tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "b.pth") as whole, zipfile.ZipFile(tmp_path / "packed.pth", "w") as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part), zipfile.ZIP_DEFLATED)
    assert "unpacked, it would take 4,1" in refusal(capsys, "import", str(tmp_path / "packed.pth"))
    torch.save(data_parallel(plain[1]) | {"module.fc.bias": torch.zeros(10**5)}, tmp_path / "classes.pth")
    assert "fc.bias (100000,), not (1000,)" in refusal(capsys, "import", str(tmp_path / "classes.pth"), *SMALL)


def test_two_names_that_become_one_are_refused(plain, tmp_path: Path, capsys) -> None:
    assert "conv1.weight here" in refused_with({"conv1.weight": torch.zeros(64, 3, 7, 7)}, plain, tmp_path, capsys)


@pytest.mark.parametrize("data", [b"\x80\x02a.", b"\x80\x02.", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
def test_bytes_that_torchs_reader_trips_over(data: bytes, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    assert "nothing in it was executed" in refusal(capsys, "import", str(tmp_path / "x.pth"))
