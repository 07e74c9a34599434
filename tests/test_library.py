"""normlab in other people's code: `import normlab`, and what docs/library.md says of it."""

import ast
import copy
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from norm_files import NORMS, build, images, randomize
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import normlab
from normlab.errors import UserError
from normlab.norm.weight import WeightStandardization

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
C = 8


def network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(3 if k == 0 else C, C, 3, stride=2), nn.BatchNorm2d(C), nn.ReLU()) for k in range(2)]
    return nn.Sequential(*(layer for block in blocks for layer in block), nn.Flatten(), nn.Linear(C * 9, 5))


# ---- import ----------------------------------------------------------------------------------------------------------


def test_every_name_is_imported_when_it_is_asked_for():
    code = (
        "import sys, normlab; print(*sorted({'torch', 'hydra', 'numpy'} & {*sys.modules})); print(*dir(normlab));"
        "[getattr(normlab, name) for name in normlab.__all__]; from normlab import *; print(convert.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, names, after = done.stdout.splitlines()
    assert (before, after) == ("", "convert")
    assert {*normlab.__all__, "__version__"} <= {*names.split()}


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse((ROOT / "normlab" / "__init__.py").read_text())
    typed = {a.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    where = {name: normlab._ELSEWHERE.get(name, "normlab.api") for name in normlab.__all__}
    assert {name: typed[name] for name in where} == where
    assert all(callable(getattr(normlab, name)) and getattr(normlab, name).__doc__ for name in where)


def test_a_name_that_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'normlab' has no attribute 'convrt'"):
        _ = normlab.convrt


# ---- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_a_layer_by_name_is_that_of_a_run(norm):
    layer, of_run = normlab.create_norm_layer(norm, C), build(norm, C)
    assert repr(layer) == repr(of_run) and {**vars(layer)}.keys() == {**vars(of_run)}.keys()
    torch.testing.assert_close(layer.state_dict(), of_run.state_dict(), rtol=0, atol=0)
    assert norm in normlab.norms()


def test_none_is_no_layer():
    assert isinstance(normlab.create_norm_layer("none", C), nn.Identity)
    model = network()
    normlab.convert(model, "none")
    assert not any(isinstance(m, nn.BatchNorm2d | normlab.Normalizer) for m in model.modules())


def test_models_that_take_a_class_of_norms():
    model = torchvision.models.resnet18(norm_layer=partial(normlab.create_norm_layer, "gn", groups=4))
    layers = [m for m in model.modules() if isinstance(m, normlab.Normalizer)]
    assert len(layers) == 20 and "{'gn': 4}" in repr(layers[0])


def test_conversion_by_names_and_settings():
    model = network()
    model[1].eps, model[4].momentum = 1e-3, 0.3
    found = normlab.convert(
        model, "sn", "ws", groups=4, keep=["eps"], select=lambda name: name in ("0", "1"), tied=True
    )
    assert (found.norms, found.weights) == (["1"], ["0"])
    assert (model[1].mean_scopes, model[1].tied, model[1].eps) == (["in", "ln", "bn"], True, 1e-3)
    assert isinstance(model[0].parametrizations.weight[0], WeightStandardization)
    assert isinstance(model[4], nn.BatchNorm2d) and found.eps == {"1": (1e-3, 1e-3)}


def test_weights_alone_leave_the_norms():
    model = network()
    assert normlab.convert(model, weight="ws").weights == ["0", "3"]
    assert isinstance(model[1], nn.BatchNorm2d)
    assert normlab.convert(model) == normlab.Conversion()


def test_what_makes_layers_may_be_given_itself():
    model = network()
    normlab.convert(model, nn.InstanceNorm2d, eps=1e-3)
    assert isinstance(model[1], nn.InstanceNorm2d) and model[1].eps == 1e-3


def test_nothing_to_replace_is_said_where_it_was_asked_for():
    with pytest.warns(normlab.NothingReplacedWarning) as caught:
        normlab.convert(nn.Linear(2, 2), "sn")
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda model: normlab.convert(model, "sm"), "norm 'sm' does not exist; did you mean 'sn'?"),
        (lambda model: normlab.convert(model, "gn", "sw"), "weight 'sw' does not exist; did you mean 'ws'?"),
        (lambda model: normlab.convert(model, "gn", group=4), "norm.group: there is no such setting; .*'groups'"),
        (lambda model: normlab.convert(model, "gn", groups=0), "norm.groups=0: expected a whole number of 1 or more"),
        (lambda model: normlab.convert(model, "gn", eps="a"), "norm.eps=a: expected a finite number"),
        (lambda model: normlab.convert(model, "gn", keep=["ep"]), "keep 'ep' does not exist; did you mean 'eps'?"),
        (lambda model: normlab.convert(model, groups=4), "groups: settings are those of a norm, and none was given"),
        (lambda model: normlab.create_norm_layer("none", 4, groups=4), "norm.groups: 'norm' is none here"),
        (lambda model: normlab.receptive_fields(model, (1, 9, 9)), r"does not run on a sample of \(1, 9, 9\): "),
    ],
)
def test_a_mistake_is_one_line(wrong, said):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(normlab.UserError, match=said.replace("?", r"\?")) as error:
        wrong(model)
    assert "\n" not in str(error.value) and normlab.UserError is UserError
    torch.testing.assert_close(model.state_dict(), before)


def test_a_users_own_folder_is_known_here_too(tmp_path, monkeypatch):
    (tmp_path / "norm").mkdir()
    own = "# SN without BN\n_target_: normlab.norm.layer.Normalizer\nmean: [in, ln]\nvar: [in, ln]\n"
    (tmp_path / "norm" / "own.yaml").write_text(own)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("NORMLAB_CONFIG_DIR", str(tmp_path))
    assert normlab.norms()["own"] == "SN without BN"
    assert normlab.create_norm_layer("own", C).mean_scopes == ["in", "ln"]


# ---- measures --------------------------------------------------------------------------------------------------------


def test_ratios_are_the_softmax_of_the_logits_by_scope():
    model = nn.Sequential(build("sn", 4), build("group_sn", 4), build("hn", 4), nn.BatchNorm2d(4))
    found = normlab.ratios(randomize(model))
    assert found.keys() == {"0", "1", "2"} and found["2"] == {"mean": {"bn": 1.0}, "var": {"en": 1.0}}
    for layer in (0, 1):
        for moment in ("mean", "var"):
            logits = getattr(model[layer], f"{moment}_logits").detach().double().exp()
            wanted = (logits / logits.sum(-1, keepdim=True)).reshape(-1, 3).mean(0)
            assert found[str(layer)][moment] == pytest.approx(
                dict(zip(["in", "ln", "bn"], wanted.tolist(), strict=True))
            )


def test_receptive_fields_by_hand_before_and_after():
    model = network()
    by_hand = {"1": 3, "4": 3 + 2 * 2}  # the second kernel's neighbours are two pixels apart
    assert normlab.receptive_fields(model, (3, 15, 15)) == by_hand
    normlab.convert(model, "sn")
    assert normlab.receptive_fields(model, [3, 15, 15]) == by_hand and model.training


# ---- the libraries around --------------------------------------------------------------------------------------------


def converted(norm: str = "sn") -> nn.Sequential:
    model = network()
    normlab.convert(model, norm)
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # its successor is another package
def test_dynamic_quantization_leaves_the_layers_alone():
    model = randomize(converted()).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    x = images(3, 3, 15, 15, dtype=torch.float32)
    assert "quantized" in type(quantized[-1]).__module__ and isinstance(quantized[1], normlab.Normalizer)
    torch.testing.assert_close(quantized[:-1](x), model[:-1](x), rtol=0, atol=0)


def test_torch_fx_takes_a_layer_as_a_leaf():
    """It cannot look inside: what the layer does depends on shapes."""
    model = torchvision.models.resnet18().eval()
    normlab.convert(model, "sn")
    whole = create_feature_extractor(model, ["layer2"], tracer_kwargs={"leaf_modules": [normlab.Normalizer]})
    x = images(2, 3, 32, 32, dtype=torch.float32)
    before = nn.Sequential(*list(model.children())[:6])
    torch.testing.assert_close(whole(x)["layer2"], before(x), rtol=0, atol=0)


def test_timms_features_only():
    model = timm.create_model("resnet18", features_only=True)
    assert len(normlab.convert(model, "sn").norms) == 20
    assert [f.shape[1] for f in model(images(2, 3, 64, 64, dtype=torch.float32))] == [64, 64, 128, 256, 512]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_network_trains_as_it_would(backend):
    torch._dynamo.reset()
    model, eager = converted(), converted()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for step in range(2):
        x = images(4, 3, 15, 15, seed=step, dtype=torch.float32)
        for run in (compiled, eager):
            run(x).square().mean().backward()
    gradients: list[dict[str, Tensor]] = [{k: p.grad for k, p in m.named_parameters()} for m in (model, eager)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(dict(model.named_buffers()), dict(eager.named_buffers()))


# ---- the page --------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_names_a_test():
    rows = PAGE.partition("| with | ")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) > 12
    for row in rows:
        assert re.search(r"\| `tests/\w+\.py` `test_\w+`.* \|$", row), row
        named = re.findall(r"`(tests/\w+\.py)`|`(test_\w+)`", row)
        code = "".join((ROOT / file).read_text() for file, _ in named if file)
        assert all(f"def {test}(" in code for _, test in named if test), row


def test_the_page_names_what_there_is():
    assert {*re.findall(r"normlab\.(\w+)\(", PAGE)} <= {*normlab.__all__}
    for name in normlab.__all__:
        assert f"{name}" in PAGE, name
