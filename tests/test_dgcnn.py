"""Dynamic Graph CNN against loops over points and neighbours, and what its layers see."""

import pytest
import torch
from torch import nn

from normlab.cli import main
from normlab.config import choices, kinds_of, load
from normlab.engine.build import build
from normlab.errors import UserError
from normlab.models.dgcnn import EdgeBlock, EdgeConv2d, Transform, dgcnn, dgcnn_torch, neighbours
from normlab.norm.convert import convert, is_replaceable
from normlab.norm.layer import Normalizer
from normlab.norm.weight import weight_standardization

SMALL = ("task=points", "model.width=8", "model.k=4", "data.points=24", "data.length=32", "data.val_length=16",
         "threads=1", "tracker=none")  # fmt: skip
NORMS = {"dgcnn": 12, "dgcnn_small": 12, "dgcnn_torch": 7}


def distinct(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n in choices("model") if "point_classifier" in kinds_of("model", n)])
def test_norm_layers_by_part(name, capsys):
    """As `normlab plan` prints them."""
    assert main(["plan", *SMALL, f"model={name}", "norm=bn", "batch=1x32"]) == 0
    counts = "12 (transform 5, backbone 5, head 2)" if NORMS[name] == 12 else "7 (backbone 5, head 2)"
    assert counts in " ".join(capsys.readouterr().out.split())


def test_the_pytorch_codes_number_of_parameters():
    model = dgcnn_torch((1024, 3), 40)
    assert sum(p.numel() for p in model.parameters()) == 1_809_576


def test_the_tensorflow_codes_number_of_parameters():
    """Counted by its shapes: kernels, a bias and two of a norm for each of twelve layers, and the last two."""
    layers = [(6, 64), (64, 128), (128, 1024), (1024, 512), (512, 256)]  # T-Net
    layers += [(6, 64), (128, 64), (128, 64), (128, 128), (320, 1024), (1024, 512), (512, 256)]
    expected = sum(before * after + 3 * after for before, after in layers) + (256 * 9 + 9) + (256 * 40 + 40)
    assert sum(p.numel() for p in dgcnn((1024, 3), 40).parameters()) == expected


# ---- edges ---------------------------------------------------------------------------------------------------------


def loops(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, x_BCP: torch.Tensor, k: int) -> list[torch.Tensor]:
    """Of each cloud and point the outputs (k, O) of its edges, by increasing distance."""
    found = []
    for cloud_CP in x_BCP:
        for i in range(cloud_CP.shape[1]):
            own = cloud_CP[:, i]
            distance = [sum((own[c] - cloud_CP[c, j]) ** 2 for c in range(len(own))) for j in range(cloud_CP.shape[1])]
            nearest = sorted(range(len(distance)), key=lambda j: distance[j].item())[:k]
            edges = [torch.cat([own, cloud_CP[:, j] - own]) for j in nearest]
            found.append(torch.stack([weight_OI @ edge + (0 if bias_O is None else bias_O) for edge in edges]))
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("standardized", [False, True])
def test_an_edge_convolution_is_its_loops(bias, standardized):
    """In float64, the largest over the neighbours, with gradients of points and weights."""
    x_BCP, k = distinct(2, 3, 11).requires_grad_(), 4
    conv = EdgeConv2d(3, 5, bias).double()
    if standardized:
        weight_standardization(conv)
    nearest_BPk = neighbours(x_BCP, k)
    y_BOPk = conv(x_BCP, nearest_BPk)
    weight_OI = conv.weight[..., 0, 0]
    rows = loops(weight_OI, conv.bias, x_BCP, k)
    theirs = torch.stack([row.amax(0) for row in rows]).view(2, 11, 5).mT
    torch.testing.assert_close(y_BOPk.amax(3), theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y_BOPk.sum(3), torch.stack([row.sum(0) for row in rows]).view(2, 11, 5).mT)
    cost = distinct(2, 5, 11, seed=1)
    over = [x_BCP, *conv.parameters()]
    for mine, other in zip(
        torch.autograd.grad((y_BOPk.amax(3) * cost).sum(), over, retain_graph=True),
        torch.autograd.grad((theirs * cost).sum(), over), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_an_edge_convolution_is_one_of_two_dimensions():
    """torch's own, over an image of points and neighbours."""
    x_BCP, conv = distinct(2, 3, 9), EdgeConv2d(3, 4).double()
    nearest_BPk = neighbours(x_BCP, 3)
    own = x_BCP[..., None].expand(2, 3, 9, 3)
    other = torch.stack([x_BCP[b][:, nearest_BPk[b]] for b in range(2)])
    expected = nn.functional.conv2d(torch.cat([own, other - own], 1), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x_BCP, nearest_BPk), expected, rtol=1e-12, atol=1e-12)


def test_neighbours_are_the_nearest_and_the_point_itself():
    x_BCP = distinct(3, 5, 20)
    nearest_BPk = neighbours(x_BCP, 6)
    for b in range(3):
        for i in range(20):
            distance = (x_BCP[b] - x_BCP[b][:, i : i + 1]).norm(dim=0)
            assert set(nearest_BPk[b, i].tolist()) == set(distance.argsort()[:6].tolist()) and i in nearest_BPk[b, i]
    with pytest.raises(UserError, match=r"model\.k=6: the clouds have 5 points"):
        neighbours(x_BCP[..., :5], 6)


@pytest.mark.parametrize("model", ["dgcnn", "dgcnn_torch"])
def test_more_neighbours_than_points_are_refused_before_training(tmp_path, capsys, model):
    words = ["task=points", f"model={model}", "model.k=30", "data.points=24", "norm=bn", "batch=1x4", f"out={tmp_path}"]
    assert main(["plan", *words]) == 2
    assert "model.k=30: the clouds have 24 points; expected as many neighbours or fewer" in capsys.readouterr().err


# ---- the whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["dgcnn", "dgcnn_torch"])
@pytest.mark.parametrize("training", [True, False])
def test_logits_do_not_depend_on_the_order_of_points(model, training):
    """In training, under batch statistics, too."""
    network = build(load([*SMALL, f"model={model}", "norm=sn", "model.dropout=0"])).model.train(training)
    points = torch.randn(4, 24, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(points[:, order]), network(points), rtol=1e-5, atol=1e-5)


def test_the_transform_begins_as_none_and_multiplies_rows():
    torch.manual_seed(0)
    model = dgcnn((24, 3), 8, width=8, k=4)
    x_B3P = torch.randn(3, 3, 24)
    assert torch.equal(model.transform(x_B3P, neighbours(x_B3P, 4)), x_B3P)
    matrix_33 = torch.arange(9.0).view(3, 3)
    model.transform.matrix.bias.data.copy_(matrix_33.flatten())
    expected = (x_B3P.mT @ matrix_33).mT
    torch.testing.assert_close(model.transform(x_B3P, neighbours(x_B3P, 4)), expected)
    assert isinstance(model.transform, Transform) and all(isinstance(block, EdgeBlock) for block in model.edges)


def test_shapes_that_norms_see():
    experiment = build(load([*SMALL, "norm=bn"]))
    seen = {}
    for name, layer in experiment.model.named_modules():
        if isinstance(layer, Normalizer):
            layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: tuple(args[0].shape)}))
    experiment.model(torch.randn(5, 24, 3))
    assert seen["transform.norm1"] == (5, 8, 24, 4) and seen["transform.norm3"] == (5, 128, 24)
    assert seen["transform.norm5"] == (5, 32) and seen["edges.3.norm"] == (5, 16, 24, 4)
    assert seen["embed.1"] == (5, 128, 24) and seen["head.1"] == (5, 64) and seen["head.5"] == (5, 32)


@pytest.mark.parametrize("model", ["dgcnn", "dgcnn_torch"])
def test_weight_standardization_is_for_all_that_a_norm_follows(model):
    """Convolutions and fully connected layers, as the code of WS; not the matrix, not the logits."""
    network = build(load([*SMALL, f"model={model}", "norm=gn", "norm.groups=4", "weight=ws"])).model
    standardized = {name for name, module in network.named_modules() if hasattr(module, "parametrizations")}
    every = {n for n, m in network.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)}
    assert every - standardized == {"transform.matrix", "head.8"} & every and len(standardized) == NORMS[model]
    weight_OI = network.head[0].weight
    torch.testing.assert_close(weight_OI.mean(1), torch.zeros(len(weight_OI)), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight_OI.std(1, correction=0), torch.ones(len(weight_OI)), atol=1e-3, rtol=0)


def test_other_tasks_keep_the_weights_of_their_linear_layers():
    model = build(load(["model=mlp", "norm=gn", "weight=ws", "tracker=none"])).model
    assert not any(hasattr(module, "parametrizations") for module in model.modules())


@pytest.mark.parametrize(
    ("model", "layer"), [("dgcnn", "transform.norm4"), ("dgcnn_small", "transform.norm4"), ("dgcnn_torch", "head.1")]
)
def test_instance_norm_is_refused_where_a_cloud_is_one_value(tmp_path, capsys, model, layer):
    """In a line that names the layer; with another norm there, it trains."""
    words = ["train", *SMALL, f"model={model}", "norm=in", "batch=1x8", "iterations=1", f"out={tmp_path}"]
    assert main(words) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and f"scope 'in' cannot give the mean of {layer}, a layer of " in errors[0]
    assert not list(tmp_path.iterdir())
    assert main([*words, "parts.head=bn", *(["parts.transform=ln"] if model != "dgcnn_torch" else [])]) == 0


def test_a_norm_with_two_names_becomes_one_layer():
    """As in the PyTorch code, which registers each norm by itself and in its block."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn1 = nn.BatchNorm2d(4)
            self.conv1 = nn.Sequential(nn.Conv2d(3, 4, 1), self.bn1)

    model = Twice()
    convert(model, lambda channels: Normalizer(channels, mean=["ln"], var=["ln"]))
    assert model.bn1 is model.conv1[1] and not any(is_replaceable(module) for module in model.modules())
