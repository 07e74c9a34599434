"""Options of classifiers: a norm behind the pooling, blocks that begin as their shortcuts, where ratios start."""

import warnings

import pytest
import torch
from torch import nn

from normlab.config import identity, load
from normlab.engine.build import build
from normlab.errors import UserError
from normlab.norm.layer import Normalizer

RESIDUAL = {
    "model=digits_resnet": "layer2.0",
    "model=digits_resnext": "layer2.0",
    "model=resnet20 data=synthetic": "layer2.1",
    "model=resnet18 data=synthetic": "layer2.0",
    "model=resnet50 data=synthetic": "layer2.0",
    "model=timm model.name=resnet26d data=synthetic": "layer2.1",
}


def model_of(*words: str) -> nn.Module:
    return build(load(["tracker=none", *words])).model


@pytest.mark.parametrize("words", RESIDUAL)
def test_a_block_begins_as_its_shortcut(words):
    """Only its last gamma is 0, and its output the shortcut's, but for the ReLU behind; gradients reach all of it."""
    plain, model = (model_of(*words.split(), *more) for more in ((), ("task.zero_init_residual=true",)))
    zeros = {name for name, p in model.named_parameters() if name.endswith(".weight") and not p.any()}
    assert zeros and all(name.split(".")[-2] in ("bn2", "bn3") for name in zeros)
    assert not {name for name, p in plain.named_parameters() if name.endswith(".weight") and not p.any()}
    blocks = [name for name, m in model.named_modules() if hasattr(m, "downsample") and hasattr(m, "bn2")]
    assert len(zeros) == len(blocks)
    block = model.get_submodule(RESIDUAL[words])
    channels = block.conv1.in_channels
    x_NCHW = torch.randn(2, channels, 8, 8)
    shortcut = block.downsample(x_NCHW) if block.downsample is not None else x_NCHW
    torch.testing.assert_close(block(x_NCHW), shortcut.relu())


def test_a_network_without_such_blocks_is_refused():
    with pytest.raises(UserError, match=r"task.zero_init_residual=true: model 'DenseNet' has no residual blocks"):
        model_of("model=densenet121_small", "data=synthetic", "task.zero_init_residual=true")


@pytest.mark.parametrize("model", ["digits_resnet", "mobilenetv2_100_small data=synthetic"])
def test_a_norm_behind_the_pooling(model):
    """It is of the run's norm and of the part `head`, and takes single positions."""
    words = f"model={model}".split()
    plain, pooled = (model_of("norm=sn", *words, *more) for more in ((), ("task.pooled_norm=true",)))
    before, after = ({n for n, m in net.named_modules() if isinstance(m, Normalizer)} for net in (plain, pooled))
    assert len(after) == len(before) + 1
    (name,) = after - before
    layer = pooled.get_submodule(name)
    assert layer.mean_scopes == ["in", "ln", "bn"]
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    config = load([*words, "norm=sn"])
    side = config.data.get("size", 8)
    with warnings.catch_warnings():  # of IN, which sees single values: said once
        warnings.simplefilter("ignore")
        pooled(torch.randn(4, plain_channels(plain), side, side))
    assert seen == [(4, layer.num_channels)]
    gn = model_of("norm=sn", *words, "task.pooled_norm=true", "task.dropout=0.5", "parts.head.norm=gn")
    assert gn.get_submodule(name).mean_scopes == ["gn"]


def plain_channels(model: nn.Module) -> int:
    return next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def test_ratios_start_where_they_are_told_to():
    layer = Normalizer(8, mean=["in", "bn"], var=["in", "bn"], start={"bn": 0.75, "in": 0.25}, ratio_groups=2)
    for ratios in layer.ratios():
        torch.testing.assert_close(ratios, torch.tensor([[0.25, 0.75]] * 2))
    equal, default = (
        Normalizer(8, mean=["in", "bn"], var=["in", "bn"], start={"bn": 0.5, "in": 0.5}),
        Normalizer(8, mean=["in", "bn"], var=["in", "bn"]),
    )
    torch.testing.assert_close(equal.mean_logits, default.mean_logits)


@pytest.mark.parametrize("start", [{"in": 0.5, "bn": 0.6}, {"in": 1.0}, {"in": 0.5, "ln": 0.5}])
def test_ratios_that_are_none_are_refused(start):
    with pytest.raises(UserError, match="expected a ratio for each of in, bn, whose sum is 1"):
        Normalizer(8, mean=["in", "bn"], var=["in", "bn"], start=start)


def test_what_is_not_set_makes_no_other_experiment():
    ids = {identity(load(words)) for words in ([], ["norm.start=null"])}
    assert len(ids) == 1
    assert identity(load(["norm.start={in:0.2,ln:0.2,bn:0.6}"])) not in ids


def test_the_loss_of_a_test():
    """Over batches of different sizes, against the formula in float64; one that is not finite is left out."""
    task = build(load(["tracker=none", "task.label_smoothing=0.1"])).task
    logits_NK, labels_N = 5 * torch.randn(7, 10), torch.arange(7)
    metric = task.metric("val")
    for part in (slice(0, 5), slice(5, 7)):
        task.update(metric, logits_NK[part], (torch.empty(0), labels_N[part]), range(7)[part])
    log_NK = logits_NK.double() - logits_NK.double().logsumexp(1, keepdim=True)
    assert task.results(metric)["loss"] == pytest.approx(-log_NK[range(7), labels_N].mean().item(), rel=1e-6)
    task.update(metric, torch.full((1, 10), torch.nan), (torch.empty(0), labels_N[:1]), [0])
    assert set(task.results(metric)) == {"top1", "top5"}
