"""Frozen layers: the same thing as torchvision's FrozenBatchNorm2d, alone, in a model, in a run and over ranks."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from norm_files import build as layer_of
from norm_files import gradients, images, learned, randomize
from safetensors.torch import load_file, save_file
from test_engine import config, run
from test_replicas import agree, engine, on_ranks
from test_replicas import config as of_replicas
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18, resnet50
from torchvision.ops import FrozenBatchNorm2d

from normlab.cli import main
from normlab.config import load
from normlab.engine.build import Experiment, build
from normlab.engine.optim import sgd
from normlab.exchange.folding import Affine, PlainNormalizer, fold
from normlab.norm.convert import convert
from normlab.norm.layer import Normalizer
from normlab.replicas import normalizers, set_replicas
from normlab.runs.folder import RunFolder

C = 6
NAMES = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
SN = ["in", "ln", "bn"]
MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])


def trained_state(seed: int = 0) -> dict[str, Tensor]:
    return randomize(nn.BatchNorm2d(C), seed).state_dict()


def both(state: dict[str, Tensor]) -> tuple[Normalizer, FrozenBatchNorm2d]:
    ours, theirs = layer_of("bn_frozen", C), FrozenBatchNorm2d(C)
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    return ours, theirs


# ---- the layer -------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(4, C, 5, 3), (1, C, 1, 1)], ids=str)
def test_outputs_and_gradients_are_those_of_torchvision(shape, dtype, training):
    """Also of a single value, and of several replicas: nothing is measured."""
    ours, theirs = (layer.to(dtype).train(training) for layer in both(trained_state()))
    set_replicas(ours, 3)
    x = images(*shape, dtype=dtype)
    before = copy.deepcopy(ours.state_dict())
    torch.testing.assert_close(gradients(ours, x, {}), gradients(theirs, x, {}))
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_it_has_buffers_alone_by_the_names_of_batch_norm():
    layer = layer_of("bn_frozen", C)
    assert not list(layer.parameters()) and sorted(layer.state_dict()) == sorted(NAMES)
    layer.requires_grad_(True)
    assert not layer.weight.requires_grad
    without = layer_of("bn_frozen", C, affine=False)
    assert without.weight is None and without.bias is None
    assert sorted(without.state_dict()) == sorted(NAMES[2:])


def test_frozen_ratios_are_buffers():
    learning, frozen = (Normalizer(C, mean=SN, var=SN, frozen=frozen) for frozen in (False, True))
    assert not list(frozen.parameters()) and frozen.state_dict().keys() == learning.state_dict().keys()
    frozen.load_state_dict(randomize(learning).state_dict())
    x = images(4, C, 5, 3, dtype=torch.float32)
    assert torch.equal(frozen(x), learning.eval()(x))


def test_a_state_dict_of_frozen_batch_norm_loads_strictly():
    state = both(trained_state())[1].state_dict()
    assert "num_batches_tracked" not in state
    layer, model = layer_of("bn_frozen", C), nn.Sequential(layer_of("bn_frozen", C))
    layer.load_state_dict(state)
    model.load_state_dict({f"0.{name}": t for name, t in state.items()})
    for loaded in (layer, model[0]):
        assert all(torch.equal(loaded.state_dict()[name], t) for name, t in state.items())
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        layer_of("bn", C).load_state_dict(state)  # this one counts
    with pytest.raises(RuntimeError, match="running_var"):
        layer.load_state_dict({name: t for name, t in state.items() if name != "running_var"})


def test_copies_and_dtypes():
    layer, theirs = both(trained_state())
    twin = copy.deepcopy(layer).double()
    assert {t.dtype for t in twin.state_dict().values()} == {torch.float64, torch.int64}
    assert layer.weight.dtype == torch.float32 and twin.weight.data_ptr() != layer.weight.data_ptr()
    x = images(4, C, 5, 3)
    torch.testing.assert_close(twin(x), theirs.double()(x))
    narrow = layer.bfloat16()
    assert narrow.weight.dtype == narrow(x.bfloat16()).dtype == torch.bfloat16


@MODES
def test_it_is_compiled_and_exported_as_constants(training):
    torch._dynamo.reset()
    layer, theirs = (m.double().train(training) for m in both(trained_state()))
    x = images(4, C, 5, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, x, {}), gradients(theirs, x, {}))
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert not program.graph_signature.parameters and not program.graph_signature.buffers_to_mutate
    torch.testing.assert_close(program.module()(x[:3]), theirs(x[:3]))


@MODES
@pytest.mark.parametrize("name", ["sn_tied", "bn", "hn"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "learning"])
def test_every_mode_is_one_graph(name, frozen, training):
    """Of stored statistics, which stand for both moments, and of tied ratios too: each is given to an operator once."""
    torch._dynamo.reset()
    layer = randomize(layer_of(name, C, frozen=frozen)).double().train(training)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = images(4, C, 5, 3)
    torch.testing.assert_close(gradients(compiled, x, learned(layer)), gradients(twin, x, learned(twin)))


def test_folding_takes_it_into_a_convolution_and_else_keeps_buffers():
    sn = randomize(Normalizer(C, mean=SN, var=SN, frozen=True))
    bn = both(trained_state())[0]
    model = nn.Sequential(nn.Conv2d(3, C, 3), bn, nn.ReLU(), sn, nn.ReLU(), copy.deepcopy(bn)).double().eval()
    x = images(2, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        fold(model, lambda network: network(x))
        torch.testing.assert_close(model(x), before)
    assert [type(m) for m in model[1::2]] == [nn.Identity, PlainNormalizer, Affine]
    assert not list(model[3].parameters())
    alone = nn.Sequential(bn).double().eval()  # a model without any parameter
    x = images(2, C, 4, 4)
    expected = bn(x)
    fold(alone, lambda network: network(x))
    torch.testing.assert_close(alone(x), expected)


# ---- a model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_layer", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_a_converted_resnet50_counts_and_computes_what_torchvisions_does(norm_layer):
    torch.manual_seed(0)
    theirs = resnet50(norm_layer=FrozenBatchNorm2d)
    plain = resnet50(norm_layer=norm_layer)
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    plain.load_state_dict(theirs.state_dict())
    assert len(convert(plain, partial(layer_of, "bn_frozen")).norms) == 53
    ours, full = (sum(p.numel() for p in model.parameters()) for model in (plain, resnet50()))
    assert ours == sum(p.numel() for p in theirs.parameters()) == full - 53_120
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain.double()(x), theirs.double()(x), rtol=1e-10, atol=1e-10)


def steps_under_ddp() -> dict[str, Tensor]:
    """Two steps of plain DDP, each rank with its own samples."""
    torch.manual_seed(0)
    model = small_network()
    rank = torch.distributed.get_rank()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    for x in images(4, 2, 3, 8, 8).chunk(2):
        optimizer.zero_grad()
        ddp(x[rank]).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def small_network() -> nn.Module:
    layers = [nn.Conv2d(3, C, 3), layer_of("bn_frozen", C), nn.ReLU(), nn.Conv2d(C, C, 3)]
    frozen_sn = Normalizer(C, mean=SN, var=SN, frozen=True)
    return nn.Sequential(*layers, randomize(frozen_sn)).double()


def steps_and_run(out: Path) -> dict[str, dict[str, Tensor]]:
    return {"steps": steps_under_ddp(), "run": engine(of_replicas("bn_frozen", "fp64", out))}


def test_ddp_finds_no_parameter_unused(tmp_path):
    found = on_ranks(2, steps_and_run, tmp_path / "ddp")
    agree(found["run"], engine(of_replicas("bn_frozen", "fp64", tmp_path)), "fp64")
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x in images(4, 2, 3, 8, 8).chunk(2):
        optimizer.zero_grad()
        model(x.flatten(0, 1)).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(dict(found["steps"]), dict(model.state_dict()))


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> RunFolder:
    return run(config(tmp_path_factory.mktemp("source"), "norm=bn", "epochs=1"))


def started(init: RunFolder | Path, out: Path, *words: str) -> Experiment:
    return build(config(out, f"init={init.path if isinstance(init, RunFolder) else init}", *words))


@pytest.mark.parametrize("words", [["norm=bn_frozen"], ["norm=sn", "parts.backbone.norm=bn_frozen"]], ids=str)
def test_a_run_of_bn_fills_a_frozen_one(source, tmp_path, words):
    """Nothing is left over on either side."""
    kept = load_file(source.weights)
    assert kept["bn1.running_mean"].any() and not kept["bn1.weight"].eq(1).all()
    experiment = started(source, tmp_path, *words)
    state = experiment.model.state_dict()
    assert experiment.unused == [] and state.keys() == kept.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
    assert all(layer.frozen for layer in normalizers(experiment.model))
    assert {name for name in experiment.trainable if ".bn" in f".{name}"} == set()


def test_a_frozen_run_fills_one_of_bn(source, tmp_path):
    """Names are the same in both directions, whichever of them are parameters."""
    frozen = started(source, tmp_path, "norm=bn_frozen").model
    save_file(frozen.state_dict(), tmp_path / "frozen.safetensors")
    experiment = started(tmp_path / "frozen.safetensors", tmp_path, "norm=bn")
    assert experiment.unused == []
    assert torch.equal(experiment.model.bn1.weight, frozen.bn1.weight) and experiment.model.bn1.weight.requires_grad


def test_a_file_of_torchvisions_layers_fills_a_frozen_run(tmp_path):
    torch.manual_seed(0)
    theirs = resnet18(norm_layer=FrozenBatchNorm2d, num_classes=10)
    theirs.bn1.running_mean.normal_()
    save_file(theirs.state_dict(), tmp_path / "frozen.safetensors")
    words = ["data=synthetic", "data.size=32", "model=torchvision", "model.name=resnet18", "norm=bn_frozen"]
    words += [f"init={tmp_path / 'frozen.safetensors'}", f"out={tmp_path}", "batch=2x2", "tracker=none"]
    experiment = build(load(words))
    assert experiment.unused == []
    assert torch.equal(experiment.model.bn1.running_mean, theirs.bn1.running_mean)


def test_synchronization_is_no_tensor(tmp_path):
    """What SN learned is all used by SyncSN."""
    folder = run(config(tmp_path, "norm=sn", "epochs=1"))
    experiment = started(folder, tmp_path, "norm=syncsn")
    kept, state = load_file(folder.weights), experiment.model.state_dict()
    assert experiment.unused == [] and state.keys() == kept.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())


def test_training_moves_the_convolutions_alone(source, tmp_path, capsys):
    """Weight decay included."""
    words = ["norm=bn_frozen", "model.width=4", "data.fraction=0.1", "batch=4x4", "epochs=1", "tracker=none"]
    words += [f"init={source.path}", "optim.weight_decay=0.1", f"out={tmp_path}"]
    assert main(["train", *words]) == 0
    (folder,) = (RunFolder(path.parent) for path in tmp_path.glob("*/run.json"))
    before, after = load_file(source.weights), load_file(folder.weights)
    model = build(folder.config()).model
    learned = {name for name, _ in model.named_parameters()}
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == (name not in learned), name
    assert folder.summary()["parameters"] == sum(before[name].numel() for name in learned)
    assert folder.summary()["metrics"]["moving_average"] == folder.summary()["metrics"]["batch_average"]
    assert main(["eval", str(folder.path)]) == 0


@pytest.mark.parametrize("decay", ["all", "not_norm"])
def test_no_optimizer_holds_a_frozen_layer(tmp_path, decay):
    model = build(config(tmp_path, "norm=bn_frozen")).model
    held = {id(p) for group in sgd(model, 16, decay=decay).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert not held & {id(t) for layer in normalizers(model) for t in layer.state_dict(keep_vars=True).values()}
