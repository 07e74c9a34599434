"""Networks for clips, digits that move, and runs of the task video."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from test_replicas import agree, engine, on_ranks
from torch import nn
from torch.nn.functional import pad

from normlab.cli import main
from normlab.config import load
from normlab.data.moves import Moves
from normlab.engine.build import build
from normlab.engine.evaluate import evaluate
from normlab.engine.session import open_session
from normlab.models.video import FrameByFrame, ShiftedConv2d, i3d, inflated, shifted, tsm
from normlab.norm.layer import Normalizer
from normlab.runs.checkpoint import load_tensors, save_tensors
from normlab.runs.folder import RunFolder

SMALL = ("task=video", "data.length=48", "data.val_length=20", "threads=1", "tracker=none",
         "batch_average.samples=16")  # fmt: skip
KINETICS = (3, 32, 64, 64)


def words(out, *more: str) -> list[str]:
    return [*SMALL, "norm=sn", "batch=4x2", "iterations=3", f"out={out}", *more]


# ---- networks --------------------------------------------------------------------------------------------------------


def test_parameters_and_norms_of_i3d() -> None:
    """28.04 million as published for 400 classes (Wang et al. 2018, Table 1); convolutions that see three frames."""
    model = i3d(KINETICS, 400)
    assert sum(p.numel() for p in model.parameters()) == 28_043_472
    assert sum(isinstance(m, nn.BatchNorm3d) for m in model.modules()) == 53
    seen = {name: m.kernel_size[0] for name, m in model.named_modules() if isinstance(m, nn.Conv3d)}
    three = {name for name, frames in seen.items() if frames == 3}
    blocks = {"layer1": [0, 1, 2], "layer2": [0, 2], "layer3": [0, 2, 4], "layer4": [1]}
    assert three == {f"{stage}.{block}.conv1" for stage, numbers in blocks.items() for block in numbers}
    assert seen["conv1"] == 5
    sizes = {}
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: sizes.update({name: out.shape}))
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, *KINETICS)).shape == (1, 400)
    assert [sizes[name][2] for name in ("conv1", "maxpool", "layer1", "layer2", "layer4")] == [16, 8, 4, 4, 4]


@pytest.mark.parametrize("backbone", ["resnet50", "scenes_resnet"])
@pytest.mark.parametrize("norm", ["bn", "sn", "gn"])
def test_inflated_on_a_still_clip_it_is_the_network_for_images(backbone, norm) -> None:
    """With the frames at its ends standing still beyond them, where an inflated network sees zeros."""
    channels = 3 if backbone == "resnet50" else 1
    image_words = [f"norm={norm}", "data=synthetic", "data.size=64", f"data.channels={channels}"]
    image_words += ["model=torchvision", "model.name=resnet50"] if channels == 3 else ["model=scenes_resnet"]
    image = build(load(image_words)).model.eval()
    own = ["stem=5", "strides=[2,2,2]"] if channels == 3 else []
    experiment = build(load(["task=video", f"norm={norm}", f"model.backbone={backbone}", *(f"model.{w}" for w in own)]))
    for layer in image.modules():
        if isinstance(layer, Normalizer):
            for tensor in [*layer.parameters(), *layer.buffers()]:
                if tensor.is_floating_point():
                    tensor.data = tensor + 0.2 * torch.rand_like(tensor)
    model = i3d((channels, 32, 64, 64), 10, backbone=backbone) if channels == 3 else experiment.model
    if channels == 3:
        build_norm = load([f"norm={norm}"]).norm
        from normlab.norm.convert import convert
        from normlab.schema import bind

        convert(model, bind(build_norm))
    model.load_state_dict({**model.state_dict(), **{
        name: t for name, t in experiment.task.initial(image.state_dict(), model).items()
        if name in model.state_dict() and t.shape == model.state_dict()[name].shape
    }})  # fmt: skip
    model.fc = copy.deepcopy(image.fc)

    def still(module: nn.Conv3d, given: tuple[torch.Tensor]) -> torch.Tensor:
        beyond = module.kernel_size[0] // 2
        return pad(given[0], (0, 0, 0, 0, beyond, beyond), mode="replicate")

    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            module.padding = (0, *module.padding[1:])
            module.register_forward_pre_hook(still)
    x = torch.randn(2, channels, 64, 64).double()
    frames = 32 if channels == 3 else 8
    with torch.no_grad():
        expected = image.double()(x)
        found = model.double().eval()(x[:, :, None].expand(-1, -1, frames, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_inflated_filter() -> None:
    weight = torch.randn(4, 3, 5, 5)
    clip = inflated(weight, 3)
    assert clip.shape == (4, 3, 3, 5, 5)
    torch.testing.assert_close(clip.sum(2), weight)
    assert torch.equal(clip[:, :, 0], clip[:, :, 2])


def test_shifted_channels_are_those_of_a_loop() -> None:
    T, moved = 5, 2
    x = torch.randn(3 * T, 7, 2, 2)
    expected = x.clone()
    for clip in range(3):
        for t in range(T):
            row = clip * T + t
            expected[row, :moved] = x[row + 1, :moved] if t + 1 < T else 0
            expected[row, moved : 2 * moved] = x[row - 1, moved : 2 * moved] if t > 0 else 0
    assert torch.equal(shifted(x, T, moved), expected)


def test_tsm_is_torchvisions_network_frame_by_frame() -> None:
    """Without a shift, the mean of its logits; with one, an eighth of the channels goes each way in each block."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(num_classes=5).eval()
    clips = torch.randn(2, 3, 4, 64, 64)
    for share in (0.0, 0.125):
        model = tsm((3, 4, 64, 64), 5, shift=share).eval()
        model.network.load_state_dict(theirs.state_dict())
        convs = [m for m in model.modules() if isinstance(m, ShiftedConv2d)]
        assert [m.moved for m in convs[:4]] == [int(share * c) for c in (64, 256, 256, 256)] and len(convs) == 16
        reference = copy.deepcopy(theirs)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(reference, stage):
                block.conv1.register_forward_pre_hook(
                    lambda m, a, share=share: shifted(a[0], 4, int(share * m.in_channels)) if share else None
                )
        with torch.no_grad():
            frames = torch.stack([clip[:, t] for clip in clips for t in range(4)])
            expected = reference(frames).view(2, 4, 5).mean(1)
            torch.testing.assert_close(model(clips), expected, rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, ShiftedConv2d) for m in tsm((3, 4, 64, 64), 5, every=2).modules()) == 9


def test_batch_norm_of_tsm_is_over_the_frames_of_a_replica() -> None:
    experiment = build(load([*SMALL, "norm=bn", "model=moves_tsm"]))
    model = experiment.model.train()
    layer, seen = model.network.bn1, []
    layer.register_forward_hook(lambda m, given, out: seen.append((given[0], out.clone())))
    from normlab.replicas import replicated, tell

    tell(replicated(model), 2, [0, 1])
    model(torch.randn(6, 1, 8, 32, 32))  # two replicas of three clips
    (x, y), *_ = seen
    assert x.shape[0] == 48
    for rows in (slice(0, 24), slice(24, 48)):
        mean, var = x[rows].mean((0, 2, 3), keepdim=True), x[rows].var((0, 2, 3), correction=0, keepdim=True)
        torch.testing.assert_close(y[rows], (x[rows] - mean) / (var + layer.eps).sqrt(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.backbone=vgg11"], "expected a ResNet, as resnet50, or one of scenes_resnet"),
        (["model.strides=[4,1,4]"], "a clip of 8 frames has less than they take"),
        (["data=scenes"], "data=scenes"),
        (["model=digits_resnet"], "model=digits_resnet"),
    ],
)
def test_what_does_not_go_together(capsys, more, message) -> None:
    assert main(["plan", *SMALL, *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said


# ---- digits that move ------------------------------------------------------------------------------------------------


def test_a_motion_backwards_is_the_other_of_its_pair() -> None:
    """Bit for bit but for the noise: order alone tells them apart."""
    data = Moves("train", 3, noise=0.0)
    key_B = data.bits([(2, k) for k in range(20)])[1]
    for pair in range(4):
        forth, back = (data.drawn(key_B, np.full(20, 2 * pair + k)) for k in range(2))
        assert torch.equal(forth.flip(1), back)
        assert (forth.float() - forth.flip(1).float()).abs().mean() > 1


def test_motions_are_what_their_names_say() -> None:
    """By the centre of the ink, in the middle of each frame's brightness beyond the texture."""
    data = Moves("val", 0, noise=0.0, light=0.0, val_length=160)
    for index in range(160):
        (clip_TCSS,), motion = data.take(None, index, index)
        ink_TSS = (clip_TCSS[:, 0].float() - 140).clamp(min=0)
        place_S = torch.arange(32.0)
        mass_T = ink_TSS.sum((1, 2))
        x_T, y_T = ((ink_TSS.sum(axis) * place_S).sum(1) / mass_T for axis in (1, 2))
        name, ways = data.classes[motion], {"right": x_T, "left": -x_T, "down": y_T, "up": -y_T}
        if name in ways:
            assert ways[name][-1] - ways[name][0] > 1.5
        else:
            assert (x_T[-1] - x_T[0]).abs() < 4 and (y_T[-1] - y_T[0]).abs() < 4
        if name in ("closer", "away"):
            grown = (ink_TSS[-1] > 0).sum() / (ink_TSS[0] > 0).sum()
            assert grown > 1.1 if name == "closer" else grown < 0.91


def test_a_clip_is_a_function_of_seed_epoch_and_index() -> None:
    data, other = Moves("train", 0), Moves("train", 1)
    together = data.take_all([(1, 5), (None, 7), (2, 5)])
    assert torch.equal(together[0][0], data.take(1, 5, 5)[0]) and torch.equal(together[1][0], data.take(None, 7, 7)[0])
    assert not torch.equal(together[0][0], together[2][0]) and not torch.equal(together[0][0], other.take(1, 5, 5)[0])
    assert torch.equal(Moves("val", 0).take(None, 9, 9)[0], Moves("val", 1).take(4, 9, 9)[0])
    held, pilot = Moves("val", 0), Moves("val", 0, validation="pilot")
    assert held.take(None, 9, 9)[0].shape == (1, 8, 1, 32, 32) and data.take(0, 9, 9)[0].shape == (8, 1, 32, 32)
    assert not torch.equal(held.take(None, 9, 9)[0], pilot.take(None, 9, 9)[0])
    assert [data.take(0, k, k)[1] for k in range(10)] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    with pytest.raises(IndexError, match="clips 0 to 3999"):
        data.take(0, 4000, 4000)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_ten_clips_are_a_mean_of_probabilities(tmp_path) -> None:
    """Of each video by hand; a batch of several of them, and accuracy of what comes out."""
    experiment = build(load([*SMALL, "norm=gn"]))
    task, model = experiment.task, experiment.model.eval()
    clips = torch.randn(3, 10, 1, 8, 32, 32)
    with torch.no_grad():
        found = task.predict(model, (clips, torch.zeros(3)))
        expected = torch.stack(
            [torch.stack([model(clip[None])[0].softmax(0) for clip in video]).mean(0) for video in clips]
        )
    torch.testing.assert_close(found, expected)
    metric = task.metric("val")
    labels = expected.argmax(1).clone()
    labels[0] = (labels[0] + 1) % 8
    task.update(metric, found, (clips, labels), [0, 1, 2])
    assert task.results(metric)["top1"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("model", ["moves_i3d", "moves_tsm"])
def test_it_begins_from_a_classifier_of_images(tmp_path, model) -> None:
    """All but its last layer, of a run and of a file; filters inflated."""
    image = ["data=scenes", "model=scenes_resnet", "data.length=32", "data.val_length=8", "norm=sn", "batch=2x4",
             "iterations=1", "threads=1", "tracker=none", "batch_average.samples=8", f"out={tmp_path}"]  # fmt: skip
    assert main(["train", *image]) == 0
    run = RunFolder.of(load(image))
    weights = load_tensors(run.weights)
    save_tensors(tmp_path / "weights.safetensors", weights)
    for init in (run.path, tmp_path / "weights.safetensors"):
        experiment = build(load(words(tmp_path, f"model={model}", f"init={init}")))
        assert experiment.unused == ["fc.bias", "fc.weight"]
        inside = experiment.model.network if isinstance(experiment.model, FrameByFrame) else experiment.model
        conv = inside.layer1[0].conv1.weight
        expected = weights["layer1.0.conv1.weight"]
        assert torch.equal(conv, inflated(expected, 3) if model == "moves_i3d" else expected)
        assert torch.equal(inside.layer4[0].bn2.mean_logits, weights["layer4.0.bn2.mean_logits"])


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_two_ranks_are_two_replicas_of_frames(tmp_path, precision) -> None:
    """Rows are replica by replica, clip by clip, frame by frame; tests/test_tasks.py has it of I3D."""
    more = ("model=moves_tsm", "batch=2x2", "task.dropout=0.3", "optim=sgd", "iterations=10")
    settings = words(tmp_path, f"precision={precision}", *more)
    one = engine(load([*settings, f"out={tmp_path / 'one'}"]))
    two = on_ranks(2, _on_a_rank, tmp_path / "two", settings)
    agree(two, one, precision)


def _on_a_rank(out, settings):
    return engine(load([*settings, f"out={out}"]))


def test_everything_that_a_run_has(tmp_path, capsys) -> None:
    for model, more in (("moves_i3d", []), ("moves_tsm", ["weight=ws", "parts.head=none"])):
        own = words(tmp_path, f"model={model}", *more)
        assert main(["plan", *own]) == 0
        assert "12, receptive fields 3 to 95 pixels" in " ".join(capsys.readouterr().out.split())
        assert main(["train", *own]) == 0
        run = str(RunFolder.of(load(own)).path)
        assert main(["show", run]) == main(["eval", run]) == main(["estimate", run, "samples=8"]) == 0
        for figure in ("ratio_ranges", "layers", "learning_curves"):
            assert main(["figure", figure, run, f"out={tmp_path / figure}.png"]) == 0


@pytest.mark.parametrize("model", ["moves_i3d", "moves_tsm"])
def test_exported_it_gives_the_logits_of_clips(tmp_path, model) -> None:
    own = words(tmp_path, f"model={model}", "norm=bn", "iterations=1")
    assert main(["train", *own]) == 0
    folder = RunFolder.of(load(own))
    assert main(["export", str(folder.path), f"out={tmp_path / model}"]) == 0
    exported = torch.export.load(tmp_path / model / "model.pt2").module()
    network = build(load(own)).model.eval()
    network.load_state_dict(load_tensors(folder.weights))
    clips = torch.randn(3, 1, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(exported(clips), network(clips), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "hn"])
def test_norms_of_clips(tmp_path, norm) -> None:
    own = words(tmp_path, f"norm={norm}", "iterations=2")
    assert main(["train", *own]) == 0
    session = open_session(RunFolder.of(load(own)))
    assert set(evaluate(session)) == {"top1", "top5", "loss"}
    assert sum(isinstance(m, Normalizer) for m in session.experiment.model.modules()) == 12
