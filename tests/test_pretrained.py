"""A pretrained network is fetched where a run starts from it, and nowhere else."""

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from normlab.cli import main
from normlab.errors import UserError
from normlab.models.library import nothing_fetched, timm_model, torchvision_model


@pytest.fixture
def no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)
    for fetch in ("torch.hub.load_state_dict_from_url", "torchvision.models._api.load_state_dict_from_url"):
        monkeypatch.setattr(fetch, refused)
    for fetch in ("hf_hub_download", "load_state_dict_from_hf", "load_state_dict_from_url", "load_custom_from_hf"):
        monkeypatch.setattr(f"timm.models._builder.{fetch}", refused, raising=False)


@pytest.mark.parametrize(
    "build,name,size",
    [
        *((torchvision_model, name, 64) for name in ("resnet18", "googlenet", "inception_v3")),
        *((timm_model, name, 64) for name in ("resnet18.a1_in1k", "mobilenetv2_050", "inception_v3")),
    ],
)
def test_a_pretrained_network_whose_weights_follow_is_built_without_a_network(build, name, size, no_network):
    """It computes what the one does that was fetched: the same tensors, and the same range of its input."""
    size = 96 if "inception" in name else size
    with nothing_fetched():
        bare = build((3, size, size), 10, name=name, pretrained=True)
    plain = build((3, size, size), 10, name=name)
    assert {n: t.shape for n, t in bare.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    if build is torchvision_model and hasattr(bare, "transform_input"):
        assert bare.transform_input and not plain.transform_input  # as torchvision sets it beside its weights
    with pytest.raises((AssertionError, UserError)):
        build((3, size, size), 10, name=name, pretrained=True)


def test_a_run_of_a_pretrained_network_is_read_without_a_network(tmp_path, no_network, monkeypatch):
    """eval, estimate and export, and going on with it; only the start of a run fetches."""
    words = [
        *("model=torchvision", "model.name=resnet18", "data=synthetic", "data.size=32", "data.length=16", "norm=bn"),
        *("data.val_length=8", "batch=2x2", "epochs=2", "tracker=none", "batch_average.samples=8", f"out={tmp_path}"),
    ]
    fetched = torchvision.models.resnet18().state_dict()
    with monkeypatch.context() as patch:
        kind = type(torchvision.models.ResNet18_Weights.DEFAULT)
        patch.setattr(kind, "get_state_dict", lambda self, *args, **kwargs: fetched)
        assert main(["train", *words, "model.pretrained=true"]) == 0
    (run,) = tmp_path.glob("*/run.json")
    for verb in ("eval", "export", "show"):
        assert main([verb, str(run.parent)]) == 0
    assert main(["estimate", str(run.parent), "samples=8"]) == 0
    (run.parent / "status.json").write_text('{"status": "running"}')
    weights = run.parent / "checkpoints" / "weights.safetensors"
    before = load_file(weights)
    assert main(["train", *words, "model.pretrained=true"]) == 0  # from its last checkpoint
    weights.unlink()
    for file in (run.parent / "checkpoints").glob("*.pt"):
        file.write_bytes(b"damaged")
    (run.parent / "status.json").write_text('{"status": "running"}')
    monkeypatch.setattr(kind, "get_state_dict", lambda self, *args, **kwargs: fetched)
    assert main(["train", *words, "model.pretrained=true"]) == 0  # from the beginning: now they are fetched
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(weights).items())
