"""normlab export: what is folded, and that nothing changes by it."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from norm_files import build, images, randomize
from sealed import forget_digests
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from normlab.cli import main
from normlab.engine.evaluate import statistics
from normlab.engine.saved import open_run
from normlab.exchange import exporting
from normlab.exchange.folding import Affine, PlainNormalizer, fold
from normlab.models.resnet_v2 import resnet_v2
from normlab.norm.convert import convert
from normlab.norm.layer import Normalizer
from normlab.runs.checkpoint import load_tensors, save_tensors
from normlab.runs.folder import RunFolder

KEPT = (("sn", "official"), ("sn_std", "paper"), ("gn", "paper"))
SMALL = ["model.width=4", "data.fraction=0.1", "batch=4x4", "epochs=1", "batch_average.samples=64", "tracker=none"]


# ---- folding -------------------------------------------------------------------------------------------------------


def check(model: nn.Module, x: Tensor) -> tuple[int, int, int]:
    """Fold it; the outputs must be the same. Returns how many norms were folded, became affine, and were kept."""
    model.eval()
    with torch.no_grad():
        before = model(x)
        found = fold(model, lambda network: network(x))
        torch.testing.assert_close(model(x), before)
    assert not any(isinstance(module, Normalizer) for module in model.modules())
    return len(found.folded), len(found.affine), len(found.kept)


def converted(model: nn.Module, norm: str) -> nn.Module:
    """With norms whose every tensor is random, in float64."""
    torch.manual_seed(0)
    convert(model, partial(build, norm))
    for module in model.modules():
        if isinstance(module, Normalizer):
            randomize(module)
    return model.double()


def test_a_folded_weight_is_the_one_that_torch_computes() -> None:
    conv, norm = nn.Conv2d(3, 6, 3).double(), randomize(build("bn", 6)).double()
    expected = fuse_conv_bn_weights(
        *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    )
    model = nn.Sequential(conv, norm)
    assert check(model, images(2, 3, 8, 8)) == (1, 0, 0)
    torch.testing.assert_close((model[0].weight, model[0].bias), expected)
    assert isinstance(model[1], nn.Identity)


@pytest.mark.parametrize(
    ("make", "norm", "counts"),
    [
        (lambda: torchvision.models.resnet18(), "bn", (20, 0, 0)),
        (lambda: torchvision.models.resnet18(), "hn", (20, 0, 0)),
        (lambda: torchvision.models.resnet18(), "sn_std", (0, 0, 20)),
        (lambda: timm.create_model("efficientnet_b0"), "hn", (49, 0, 0)),
        (lambda: torchvision.models.densenet121(), "en", (59, 62, 0)),
        (lambda: resnet_v2((3, 32, 32), 10), "bn", (33, 17, 0)),
    ],
)
def test_networks_of_both_libraries_and_ours(make: Callable, norm: str, counts: tuple[int, int, int]) -> None:
    assert check(converted(make(), norm), images(2, 3, 64, 64)) == counts


@pytest.mark.parametrize("norm", ["bn", "hn", "sn", "gn", "sn_tied", "group_sn", "brn", "hn_sn", "bn_frozen"])
def test_a_linear_layer_takes_its_norm_like_a_convolution(norm: str) -> None:
    model = nn.Sequential(nn.Linear(5, 8), randomize(build(norm, 8)), nn.ReLU(), nn.Linear(8, 3)).double()
    kept = norm in ("sn", "gn", "sn_tied", "group_sn")
    assert check(model, images(4, 5)) == (int(not kept), 0, int(kept))


@pytest.mark.parametrize("conv", [nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Conv3d(4, 8, 3, bias=False)])
def test_every_convolution(conv: nn.Module) -> None:
    model = nn.Sequential(conv, randomize(build("hn", 8))).double()
    assert check(model, images(2, 4, *(6 for _ in conv.kernel_size))) == (1, 0, 0)


def choose(layer: Normalizer, mean: str, var: str) -> None:
    with torch.no_grad():
        for logits, scopes, name in (
            (layer.mean_logits, layer.mean_scopes, mean),
            (layer.var_logits, layer.var_scopes, var),
        ):
            logits.copy_(torch.tensor([float(scope == name) for scope in scopes]))


@pytest.mark.parametrize("profile", ["paper", "official"])
def test_hard_ratios_fold_where_mean_and_variance_both_choose_bn(profile: str) -> None:
    choices = [("bn", "bn"), ("bn", "in"), ("ln", "bn"), ("in", "ln")]
    layers = [randomize(build("sn_hard", 4, profile=profile)) for _ in choices]
    for layer, chosen in zip(layers, choices, strict=True):
        choose(layer, *chosen)
    model = nn.Sequential(*(m for layer in layers for m in (nn.Conv2d(4, 4, 3, padding=1), layer))).double()
    assert check(model, images(2, 4, 6, 6)) == (1, 0, 3)
    assert [type(m) for m in model[1::2]] == [nn.Identity, PlainNormalizer, PlainNormalizer, PlainNormalizer]


class Branches(nn.Module):
    """One convolution that two read, one that runs twice, one norm at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.twice, self.alone = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norm1, self.norm2, self.norm3, self.norm4 = (randomize(build("bn", 4), seed) for seed in range(4))
        self.again = self.norm3

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(x)
        y = y + self.norm1(y)
        y = self.norm2(self.twice(self.twice(y)))
        y = self.again(self.norm3(y).relu())
        return self.norm4(self.alone(y))


def test_a_layer_is_left_alone_where_anything_else_reads_it_or_it_runs_twice() -> None:
    model = Branches().double()
    assert check(model, images(2, 4, 5, 5)) == (1, 3, 0)
    assert isinstance(model.norm4, nn.Identity) and isinstance(model.norm3, Affine) and model.again is model.norm3


def test_a_linear_layer_over_positions_is_not_taken_for_one_over_channels() -> None:
    class OverPositions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), randomize(build("bn", 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x))  # (N, C, L): the norm's channels are axis 1

    assert check(OverPositions().double(), images(2, 4, 4)) == (0, 1, 0)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[RunFolder, dict]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "_ROUNDS", 2)
    monkeypatch.setattr(exporting, "_AT_LEAST", 0.001)

    def train_and_export(*words: str) -> tuple[RunFolder, dict]:
        assert main(["train", *SMALL, *words]) == 0
        folder = RunFolder(next(Path("results/runs").resolve().iterdir()))
        capsys.readouterr()
        assert main(["export", str(folder.path)]) == 0
        return folder, json.loads((folder.path / "export" / "export.json").read_text())

    return train_and_export


def logits(folder: RunFolder, estimator: str) -> tuple[Tensor, Tensor]:
    """Some images, and what the run's own model makes of them."""
    session = open_run(folder)
    model, dataset = session.experiment.model.eval(), session.experiment.task.dataset("val")
    x = torch.stack([dataset[None, i][0] for i in range(20)])
    state = load_tensors(folder.batch_average) if estimator == "batch_average" else {}
    with statistics(model, state), torch.no_grad():
        return x, model(x)


@pytest.mark.parametrize(
    ("words", "estimator"),
    [(["norm=bn", "weight=ws"], "moving_average"), (["norm=hn_sn"], "batch_average")],
    ids=["bn ws", "hn_sn"],
)
def test_the_exported_network_gives_the_logits_of_the_run(words: list[str], estimator: str, exported, capsys) -> None:
    folder, report = exported(*words)
    assert (len(report["folded"]), report["affine"], report["kept"]) == (9, [], [])
    assert report["estimator"] == estimator and max(report["differences"].values()) < exporting.TOLERANCE
    said = capsys.readouterr().out
    assert "9 of 9 norm layers folded" in said and "times as fast" in said
    x, expected = logits(folder, estimator)
    model = torch.export.load(folder.path / "export" / "model.pt2").module()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


WITHOUT_NORMLAB = """
import sys, torch
model = torch.export.load("model.pt2").module()
torch.save(model(torch.load("images.pt")), "logits.pt")
assert not any(name.startswith("normlab") for name in sys.modules)
"""


def test_layers_that_are_kept_run_without_normlab(tmp_path: Path) -> None:
    norms = [randomize(build(norm, 4, profile=profile)) for norm, profile in KEPT]
    model = nn.Sequential(*(m for norm in norms for m in (nn.Conv2d(4, 4, 3, padding=1), norm))).eval()
    x = images(3, 4, 6, 6, dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
    assert len(fold(model, lambda network: network(x)).kept) == len(KEPT)
    (tmp_path / "model.pt2").write_bytes(
        exporting._exported(model, exporting._Inputs((x,), ({0: torch.export.Dim.AUTO},), 3))
    )
    torch.save(x, tmp_path / "images.pt")
    command = [sys.executable, "-P", "-c", WITHOUT_NORMLAB]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


def test_the_weights_are_plain_and_name_their_run(exported) -> None:
    folder, report = exported("norm=bn", "weight=ws")
    path = folder.path / "export" / "model.safetensors"
    weights = load_tensors(path)
    assert weights["conv1.weight"].shape == (4, 1, 3, 3) and weights["conv1.bias"].shape == (4,)
    assert not any("parametrizations" in name or "running" in name or "bn1" in name for name in weights)
    assert folder.path.name.encode() in path.read_bytes()[:1000]
    assert report["folded"]["bn1"] == "conv1" and "conv1" in report["plain_weights"]


def test_outputs_that_change_are_an_error_and_nothing_is_written(exported, monkeypatch, capsys) -> None:
    folder, _ = exported("norm=bn")
    before = {file: file.stat().st_mtime_ns for file in (folder.path / "export").iterdir()}
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    assert main(["export", str(folder.path)]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert before == {file: file.stat().st_mtime_ns for file in (folder.path / "export").iterdir()}


def test_what_cannot_be_exported_is_said_in_a_line(exported, tmp_path: Path, capsys) -> None:
    folder, _ = exported("norm=bn")
    for words, said in (
        ([str(folder.path), "estimator=mean"], "estimator 'mean' does not exist; allowed:"),
        ([], "expected a run"),
        (["nothing"], "there is no such run"),
        ([str(folder.path), str(folder.path), "out=there"], "expected one run"),
    ):
        capsys.readouterr()
        assert main(["export", *words]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    forget_digests(folder)
    save_tensors(folder.batch_average, {"bn1.running_mean": torch.zeros(3)})
    assert main(["export", str(folder.path), "estimator=batch_average"]) == 2
    assert "not tensors of the model" in capsys.readouterr().err
    folder.batch_average.unlink()
    assert main(["export", str(folder.path), "estimator=batch_average"]) == 2
    assert "has no batch average" in capsys.readouterr().err
    folder.weights.unlink()
    assert main(["export", str(folder.path)]) == 2
    assert "has no weights" in capsys.readouterr().err
