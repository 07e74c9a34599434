"""What `init` names, and what a run takes from it: weights, a snapshot's, or the ratios alone."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sealed import forget_digests
from test_engine import config, run

from normlab.config import identity
from normlab.engine.build import build
from normlab.engine.initialize import _unwrapped
from normlab.engine.saved import open_run
from normlab.errors import UserError
from normlab.replicas import normalizers
from normlab.runs.folder import RunFolder

LOGITS = ("mean_logits", "var_logits")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> RunFolder:
    """A run of SN whose snapshot has logits that differ, and differ from those at its end."""
    folder = run(config(tmp_path_factory.mktemp("source"), "norm=sn", "epochs=1", "snapshots=[0.5]"))
    torch.manual_seed(0)
    state = load_file(folder.weights_at(0.5))
    save_file({n: torch.randn(3) if n.endswith(LOGITS) else t for n, t in state.items()}, folder.weights_at(0.5))
    forget_digests(folder)
    return folder


def started(source: RunFolder, init: str, *more: str) -> torch.nn.Module:
    return build(config(source.path.parent, f"init={init}", *more)).model


@pytest.mark.parametrize("name", ["id", "name", "folder"])
def test_a_run_starts_from_the_snapshot_of_another(source, name):
    word = {"id": source.run()["id"], "name": source.path.name, "folder": source.path}[name]
    for at, file in (("@0.5", source.weights_at(0.5)), ("@0.50", source.weights_at(0.5)), ("@1", source.weights)):
        state = started(source, f"{word}{at}").state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in load_file(file).items())


def test_hard_ratios_are_the_largest_of_the_snapshots(source):
    """Of its logits, layer by layer, for mean and variance apart; all other tensors are the snapshot's."""
    kept = load_file(source.weights_at(0.5))
    model = started(source, f"{source.run()['id']}@0.5", "norm=sn_hard")
    chosen = set()
    for name, layer in model.named_modules():
        if layer in normalizers(model):
            for ratio, logits in zip(layer.ratios(), LOGITS, strict=True):
                largest = int(kept[f"{name}.{logits}"].argmax())
                assert ratio.tolist() == [float(k == largest) for k in range(3)]
                chosen.add((logits, largest))
    assert len(chosen) > 3
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in kept.items())
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.endswith(LOGITS))


def test_ratios_alone_leave_the_rest_fresh(source):
    kept = load_file(source.weights_at(0.5))
    fresh = build(config(source.path.parent, "norm=sn_hard")).model.state_dict()
    state = started(source, f"{source.path}@0.5:ratios", "norm=sn_hard").state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, kept[name] if name.endswith(LOGITS) else fresh[name]), name


def test_hard_ratios_train_as_they_were_chosen(source):
    """And weight decay does not touch the logits."""
    settings = config(source.path.parent, f"init={source.path.name}@0.5", "norm=sn_hard", "epochs=1")
    kept, trained = load_file(source.weights_at(0.5)), load_file(run(settings).weights)
    assert all(torch.equal(trained[name], kept[name]) for name in kept if name.endswith(LOGITS))
    assert not torch.equal(trained["fc.weight"], kept["fc.weight"])


def test_identity_is_that_of_the_words(source, tmp_path):
    """An id needs no run yet, so that a table knows all its cells before it runs any."""

    def of(init: str, out: Path = tmp_path) -> str:
        return identity(config(out, f"init={init}"))

    run_id = source.run()["id"]
    different = [of(run_id + at) for at in ("@1", "@0.5", "@0.6", "@0.5:ratios", "@1:ratios")]
    assert len(set(different)) == len(different)
    assert of(f"{run_id}@0.50") == of(f"{source.path}@0.5") == of(f"{source.path.name}@.5", source.path.parent)
    assert of(f"{run_id}@1") == of(str(source.path)) == of(str(source.path), source.path.parent)


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ("{id}@0.7", "has kept 0.5; train it with snapshots=[0.7]"),
        ("{id}@2", "expected a share of the run's updates"),
        ("{id}@0", "expected a share of the run's updates"),
        ("{id}@half", "expected a share of the run's updates"),
        ("{id}@nan", "expected a share of the run's updates"),
        ("nobody@0.5", "there is no such run or file"),
        ("0badcafe@0.5", "there is no run of this id"),
        ("{folder}/checkpoints/weights.safetensors@0.5", "snapshots are those of runs"),
        ("{folder}/run.json", "expected a run, or a .safetensors file"),
        ("{folder}/checkpoints/batch_average.safetensors:ratios", "none of its 0 tensors fits"),
    ],
)
def test_what_is_not_there_is_one_line(source, init, said):
    with pytest.raises(UserError) as error:
        started(source, init.format(id=source.run()["id"], folder=source.path))
    assert said in str(error.value) and "init=" in str(error.value) and "\n" not in str(error.value)


def test_two_runs_of_one_name_are_refused(tmp_path):
    for name in ("a-12ab34cd", "b-12ab34cd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"id": "12ab34cd"}))
    with pytest.raises(UserError, match="2 runs in"):
        config(tmp_path, "init=12ab34cd@1")


@pytest.mark.parametrize("norm", ["bn", "sn_in_bn"])
def test_hard_ratios_need_logits(tmp_path, norm):
    """Without, argmax would choose the first scope everywhere."""
    folder = run(config(tmp_path, f"norm={norm}", "epochs=1"))
    with pytest.raises(UserError, match=r"init=.*bn1\.mean_logits is not in it, or of another shape"):
        started(folder, f"{folder.run()['id']}@1", "norm=sn_hard")


# ---- files of others -----------------------------------------------------------------------------------------------


@pytest.fixture
def weights(source, tmp_path) -> dict[str, torch.Tensor]:
    return load_file(source.weights)


@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"])
@pytest.mark.parametrize("what", ["", ":ratios"])
def test_what_ddp_and_compile_add_to_names_does_not_count(source, weights, tmp_path, wrap, what):
    """Around the whole network; a piece of it is the next test."""
    file = tmp_path / "wrapped.safetensors"
    save_file({wrap.format(name): tensor for name, tensor in weights.items()}, file)
    expected = started(source, f"{source.weights}{what}").state_dict()
    found = started(source, f"{file}{what}").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_compiled_piece_of_a_network(source, weights, tmp_path):
    model = started(source, str(source.weights))
    model.layer1 = torch.compile(model.layer1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any("layer1._orig_mod." in name for name in state)
    save_file(state, tmp_path / "piece.safetensors")
    found = started(source, str(tmp_path / "piece.safetensors")).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_names_that_the_model_has_stay():
    """A network of one's own may have a module that is called so."""
    state = {"encoder.module.weight": torch.zeros(1), "module.head.weight": torch.ones(1)}
    assert _unwrapped(state, {"encoder.module.weight", "head.weight"}).keys() == {
        "encoder.module.weight",
        "head.weight",
    }
    both = {"module.weight": torch.zeros(1), "weight": torch.ones(1)}  # neither takes the other's place
    assert _unwrapped(both, {"weight"}).keys() == both.keys()


@pytest.mark.parametrize("name", ["model@v2.safetensors", "model@0.5", "a:ratios.safetensors"])
def test_a_file_that_is_there_counts_whatever_its_name(source, weights, tmp_path, name):
    if name.endswith(".safetensors"):
        save_file(weights, tmp_path / name)
        state = started(source, str(tmp_path / name)).state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())
        ratios = started(source, f"{tmp_path / name}:ratios").state_dict()
        assert torch.equal(ratios["bn1.mean_logits"], weights["bn1.mean_logits"])
        assert not torch.equal(ratios["conv1.weight"], weights["conv1.weight"])
    else:  # a folder of a run
        shutil.copytree(source.path, tmp_path / name)
        state = started(source, str(tmp_path / name)).state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("conv1.weight", lambda t: t * torch.nan, "conv1.weight has values that are not finite"),
        ("conv1.weight", lambda t: t.double() * 1e300, "conv1.weight has values above 3.4e+38"),
        ("fc.bias", lambda t: t > 0, "fc.bias holds true and false"),
        ("fc.bias", lambda t: t.to(torch.complex64), "fc.bias holds complex numbers"),
        ("bn1.running_var", lambda t: -t - 1, "bn1.running_var has values below 0"),
        ("bn1.num_batches_tracked", lambda t: t.float(), "bn1.num_batches_tracked holds floating-point numbers"),
    ],
)
def test_values_that_the_model_would_not_keep_are_refused(source, weights, tmp_path, capsys, name, change, said):
    """Of a file that a run begins from, and of the run's own."""
    changed = weights | {name: change(weights[name])}
    save_file(changed, tmp_path / "changed.safetensors")
    with pytest.raises(UserError, match=re.escape(said)):
        started(source, str(tmp_path / "changed.safetensors"))
    shutil.copytree(source.path, tmp_path / "copy")
    save_file(changed, tmp_path / "copy" / "checkpoints" / "weights.safetensors")
    with pytest.raises(UserError, match=re.escape(said)):
        open_run(RunFolder(tmp_path / "copy"))
