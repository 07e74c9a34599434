"""Stylization: losses by hand in float64, the network, VGG-16 from a file, the style image, what a run leaves."""

import functools
import hashlib
import itertools
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch
from PIL import Image
from test_replicas import engine
from torch import nn
from torch.nn.functional import mse_loss

from normlab.cli import main
from normlab.config import load
from normlab.data.photographs import Photographs, painting, photographs
from normlab.data.pictures import Pictures
from normlab.engine.build import build, build_task
from normlab.engine.evaluate import evaluate
from normlab.engine.session import open_session
from normlab.errors import UserError
from normlab.models.stylizers import MEAN, Stylizer, stylizer
from normlab.models.tensor_files import read_tensors
from normlab.norm.convert import convert
from normlab.norm.layer import Normalizer
from normlab.reading import read_jsonl
from normlab.replicas import normalizers
from normlab.report.runs import plan
from normlab.report.tables import load_table
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder
from normlab.tasks.perceptual import KINDS, LossNetwork, gram, perceptual_losses, squared_error, total_variation

SMALL = ("data.size=32", "data.length=16", "data.val_length=6", "model.width=4", "model.blocks=2")


def words(out: Path, *more: str) -> list[str]:
    return ["task=stylization", "norm=sn", "batch=1x4", "iterations=2", "optim=adam", "threads=1",
            "batch_average.samples=8", "tracker=none", f"out={out}", *SMALL, *more]  # fmt: skip


def trained(out: Path, *more: str) -> RunFolder:
    assert main(["train", *words(out, *more)]) == 0
    return RunFolder.of(load(words(out, *more)))


# ---- losses ----------------------------------------------------------------------------------------------------------


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 7), (3, 6, 1, 1)])
def test_gram_is_einsum(shape):
    features = double(*shape)
    expected = torch.einsum("nchw,ndhw->ncd", features, features) / (shape[1] * shape[2] * shape[3])
    assert (gram(features) - expected).abs().max() < 1e-15


def test_gram_looks_at_no_place():
    """The same positions in another order, and an image of another size with the same pixels twice, are the same."""
    features = double(2, 3, 4, 4)
    shuffled = features.flatten(2)[:, :, torch.randperm(16)].view(2, 3, 4, 4)
    assert torch.allclose(gram(shuffled), gram(features)) and torch.allclose(
        gram(torch.cat([features, features], 3)), gram(features)
    )


def test_total_variation_by_loops():
    """And its gradient is what Johnson's code adds to that of the image: differences, once with each sign."""
    image = double(2, 3, 4, 5).requires_grad_()
    expected, by_hand = torch.zeros(2, dtype=torch.float64), torch.zeros_like(image)
    for n, c, y, x in itertools.product(range(2), range(3), range(3), range(4)):
        for dy, dx in ((0, 1), (1, 0)):
            difference = (image[n, c, y, x] - image[n, c, y + dy, x + dx]).item()
            expected[n] += difference**2 / 2
            by_hand[n, c, y, x] += difference
            by_hand[n, c, y + dy, x + dx] -= difference
    found = total_variation(image)
    found.sum().backward()
    assert torch.allclose(found, expected) and torch.allclose(image.grad, by_hand)


def test_losses_of_an_image_are_those_that_torch_has():
    network = LossNetwork("vgg16_caffe", ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]).double()
    terms = KINDS["vgg16_caffe"].terms
    output, content, style = (128 + 40 * double(2, 3, 16, 16 + k).abs() for k in range(3))
    output, content = output[..., :16], content[..., :16]
    grams = {layer: gram(found) for layer, found in network(style[:1]).items()}
    found = perceptual_losses(network, terms, output, content, grams)
    ours, theirs = network(output), network(content)
    assert terms.content == "relu3_3" and (terms.content_weight, terms.style_weight) == (1.0, 5.0)
    for n in range(2):
        assert found["content"][n].item() == pytest.approx(mse_loss(ours["relu3_3"][n], theirs["relu3_3"][n]).item())
        style_terms = [mse_loss(gram(ours[layer])[n], grams[layer][0]).item() for layer in ours]
        assert found["style"][n].item() == pytest.approx(5 * sum(style_terms)) and len(style_terms) == 4
        assert found["tv"][n].item() == pytest.approx(4e-6 * total_variation(output)[n].item())


def test_losses_of_an_image_with_itself_are_none():
    network = LossNetwork("scenes_vgg", ["relu1_2", "relu2_2"]).double()
    image = 255 * torch.rand(1, 3, 16, 16, dtype=torch.float64)
    terms = KINDS["scenes_vgg"].terms.changed(None, None, 0.0)
    grams = {layer: gram(found) for layer, found in network(image).items()}
    kept = terms.__class__(terms.content, 1, 1, 0, style=("relu1_2", "relu2_2"))
    assert all(value.abs().max() == 0 for value in perceptual_losses(network, kept, image, image, grams).values())


def test_half_precision_does_not_reach_the_losses():
    network = LossNetwork("vgg16_caffe", ["relu2_2", "relu3_3"])
    terms = KINDS["vgg16_caffe"].terms
    terms = terms.__class__(terms.content, 1, 1, 1, style=("relu2_2",))
    image, other = 255 * torch.rand(2, 1, 3, 16, 16).unbind()[0], 255 * torch.rand(1, 3, 16, 16)
    grams = {"relu2_2": gram(network(other)["relu2_2"])}
    expected = perceptual_losses(network, terms, image, other, grams)
    with torch.autocast("cpu", torch.bfloat16):
        found = perceptual_losses(network, terms, image.bfloat16().float(), other, grams)
        exact = perceptual_losses(network, terms, image, other, grams)
    assert all(torch.equal(exact[name], expected[name]) for name in expected)
    assert all(value.dtype == torch.float32 for value in found.values())


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "size"), [("johnson", (64, 48)), ("torch", (64, 48)), ("torch", (8, 12))])
def test_the_network_has_fifteen_norms_and_gives_an_image_of_the_size(code, size):
    model = stylizer((3, *size), 3, code=code, width=4, scale=150.0 if code == "johnson" else None)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 15
    output = model(255 * torch.rand(2, 3, *size))
    assert output.shape == (2, 3, *size)
    if code == "johnson":
        assert ((output - torch.tensor(MEAN).view(3, 1, 1)).abs() <= 150).all()


def test_the_network_of_the_pytorch_examples_has_their_parameters():
    model = stylizer((3, 256, 256), 3, code="torch", scale=None)
    assert sum(p.numel() for p in model.parameters()) == 1_679_235
    strided = stylizer((3, 256, 256), 3)  # Johnson's: enlarges by convolutions with as many weights
    assert sum(p.numel() for p in strided.parameters()) == 1_679_235


def test_what_blocks_take_is_what_the_start_adds():
    """Five blocks without padding lose 40 pixels at each side of an image, as Johnson's code pads."""
    model = stylizer((3, 64, 64), 3, width=2)
    assert isinstance(model, Stylizer) and model.start.padding == (40, 40, 40, 40)
    assert model.start(torch.zeros(1, 3, 64, 64)).shape[-1] == 144
    assert model.blocks(torch.zeros(1, 8, 36, 36)).shape[-1] == 16


@pytest.mark.parametrize(("more", "message"), [
    (["data.size=30"], "have 30 pixels a side; expected a multiple of 4"),
    (["data.size=16", "model.code=johnson"], "16 pixels are reflected at each side of an image, and these have 16"),
    (["data.size=4", "model.code=torch"], "have 4 pixels a side; expected a multiple of 4, and 8 or more"),
    (["task.style_size=1000000000"], "task.style_size=1000000000: expected"),
    (["data.size=80"], "a crop takes 160 pixels of a photograph"),
    (["task.network=vgg16"], "task.network=vgg16: it has no weights; task.loss_weights=FILE names them"),
    (["task.network=vgg19"], "task.network=vgg19"),
    (["task.style=/no/where.png"], "task.style=/no/where.png: there is no such file"),
    (["data=digits"], "data=digits"),
    (["model=scenes_resnet"], "model=scenes_resnet"),
    (["task.style_weight=-1"], "task.style_weight=-1: expected"),
])  # fmt: skip
def test_what_cannot_work_is_said_before_any_work(tmp_path, capsys, more, message):
    groups = [word for word in more if word.startswith(("data=", "model="))]
    given = [w for w in words(tmp_path) if not any(w.startswith(f"{g.partition('=')[0]}.") for g in groups)]
    assert main(["plan", *given, *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


# ---- VGG -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """torchvision's, of random weights, in a file that is named by its content, as torchvision's are."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    features = make_layers(cfgs["D"])  # vgg16().features; its classifier is nine tenths of it
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    folder = tmp_path_factory.mktemp("vgg")
    torch.save(state, folder / "raw.pth")
    path = folder / f"vgg16-{hashlib.sha256((folder / 'raw.pth').read_bytes()).hexdigest()[:8]}.pth"
    (folder / "raw.pth").rename(path)
    return features, path


def test_features_are_those_of_torchvision(vgg16):
    features, path = vgg16
    network = LossNetwork("vgg16", ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]).eval()
    network.load(path)
    pixels = 255 * torch.rand(1, 3, 24, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        found = network(pixels)
        for layer, last in (("relu1_2", 3), ("relu2_2", 8), ("relu3_3", 15), ("relu4_3", 22)):
            expected = features[: last + 1]((pixels / 255 - mean) / std)
            assert torch.allclose(found[layer], expected, atol=1e-5)


def test_caffes_pixels_come_in_the_other_order_and_are_not_scaled(vgg16):
    features, path = vgg16
    network = LossNetwork("vgg16_caffe", ["relu1_2"]).eval()
    network.load(path)
    pixels = 255 * torch.rand(1, 3, 16, 16)
    blue_first = pixels[:, [2, 1, 0]] - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(network(pixels)["relu1_2"], features[:4](blue_first), rtol=1e-4, atol=1e-3)


def test_named_weights_are_those_of_the_codes():
    johnson, examples = KINDS["vgg16_caffe"].terms, KINDS["vgg16"].terms
    assert (johnson.content, johnson.content_weight, johnson.style_weight) == ("relu3_3", 1, 5)
    assert johnson.tv_weight == pytest.approx(4 * 1e-6)  # of the sum over a batch of four
    assert (examples.content, examples.content_weight, examples.style_weight) == ("relu2_2", 1e5, 1e10)
    assert examples.tv_weight == 0 and johnson.style == examples.style == ("relu1_2", "relu2_2", "relu3_3", "relu4_3")


def test_a_file_of_weights_is_checked(tmp_path, capsys, vgg16):
    _, path = vgg16
    renamed = tmp_path / "vgg16-00000000.pth"
    renamed.symlink_to(path)
    less = {name: t for name, t in read_tensors(path).items() if name != "features.19.weight"}
    torch.save(less, tmp_path / "less.pth")
    (tmp_path / "torn.pth").write_bytes(path.read_bytes()[:1000])
    for dtype in (torch.complex64, torch.uint8, torch.float8_e4m3fn):  # whose values are no weights
        torch.save({name: t.to(dtype) for name, t in read_tensors(path).items()}, tmp_path / f"{dtype}.pth")
    own = words(tmp_path / "runs", "task.network=vgg16")
    for file, message in (
        (renamed, "its SHA-256 begins with"),
        (tmp_path / "less.pth", "there is no features.19.weight"),
        (tmp_path / "torn.pth", "or it is damaged"),
        *((p, "there is no features.0.weight of the shape") for p in tmp_path.glob("torch.*.pth")),
        (tmp_path / "none.pth", "there is no such file"),
    ):
        assert main(["plan", *own, f"task.loss_weights={file}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert main(["plan", *own, f"task.loss_weights={path}"]) == 0


def test_vgg_16_trains_a_run_and_is_no_part_of_it(tmp_path, vgg16):
    _, path = vgg16
    run = trained(tmp_path, "task.network=vgg16_caffe", f"task.loss_weights={path}", "iterations=1", "norm=in")
    assert not [name for name in load_tensors(run.weights) if name.startswith("features")]
    session = open_session(run)
    (helper,) = session.experiment.task.helpers()
    assert not helper.training and not any(p.requires_grad for p in helper.parameters())
    assert torch.equal(helper.features[0].weight, read_tensors(path)["features.0.weight"])


# ---- what a run begins from ------------------------------------------------------------------------------------------


def test_init_of_a_classifier_is_the_loss_network(tmp_path, caplog):
    given = ["model=scenes_vgg", "norm=none", "data=scenes", "data.channels=3", "data.size=16", "data.length=32",
             "data.val_length=16", "batch=1x8", "iterations=2", "tracker=none", f"out={tmp_path}"]  # fmt: skip
    assert main(["train", *given]) == 0
    classifier = RunFolder.of(load(given))
    own = load_tensors(classifier.weights)
    experiment = build(load(words(tmp_path, f"init={classifier.path}")))
    (network,) = experiment.task.helpers()
    assert all(torch.equal(t, own[name]) for name, t in network.state_dict().items())
    assert experiment.unused == ["classifier.bias", "classifier.weight"] and "random weights" not in caplog.text
    alone = build(load(words(tmp_path)))
    assert "task.network=scenes_vgg has random weights; init=RUN" in caplog.text
    for name, tensor in alone.model.state_dict().items():  # the network that is trained begins as it would
        assert torch.equal(tensor, experiment.model.state_dict()[name]), name
    # another run of stylization begins the network that is trained; both can be had
    first = trained(tmp_path, f"init={classifier.path}")
    both = build(load(words(tmp_path, f"init={classifier.path}", f"parts.backbone.init={first.path}", "seed=3")))
    assert torch.equal(both.model.output.weight, load_tensors(first.weights)["output.weight"])
    assert torch.equal(both.task.helpers()[0].features[0].weight, own["features.0.weight"])


def test_random_weights_of_the_loss_network_are_the_same_in_each_run(tmp_path):
    one, other = (build(load(words(tmp_path, f"seed={seed}"))) for seed in (0, 1))
    assert torch.equal(one.task.helpers()[0].features[0].weight, other.task.helpers()[0].features[0].weight)
    assert not torch.equal(one.model.output.weight, other.model.output.weight)


def test_a_style_image_makes_the_run_by_its_content(tmp_path, capsys):
    style, same, other, text = (tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png"))
    for path, colours in ((style, 40), (same, 40), (other, 90)):
        Image.fromarray(np.arange(30 * colours * 3, dtype=np.uint8).reshape(30, colours, 3)).save(path)
    text.write_text("no image")
    folders = [RunFolder.of(load(words(tmp_path / "runs", f"task.style={path}"))).path for path in (style, same, other)]
    assert folders[0] == folders[1] != folders[2]
    assert RunFolder.of(load(words(tmp_path / "runs"))).path not in folders
    assert main(["plan", *words(tmp_path / "runs", f"task.style={text}")]) == 2
    assert f"task.style={text}: it is no image" in capsys.readouterr().err
    task = build_task(load(words(tmp_path, f"task.style={other}", "task.style_size=45")))
    assert task.style_13HW.shape == (1, 3, 15, 45)
    task = build_task(load(words(tmp_path, f"task.style={other}", "task.style_size=null")))
    assert task.style_13HW.shape == (1, 3, 30, 90)


# ---- replicas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1000, 10), (8, 7)])
def test_a_style_image_too_small_for_the_loss_network_is_refused(tmp_path, capsys, size):
    Image.new("RGB", size).save(tmp_path / "style.png")
    more = [f"task.style={tmp_path / 'style.png'}", f"task.style_size={256 if size[0] > 256 else 'null'}"]
    assert main(["plan", *words(tmp_path / "runs", *more)]) == 2
    assert "pixels as it is used; expected 8 or more on each side" in capsys.readouterr().err


def test_four_images_of_in_are_four_times_one():
    """Outputs, losses and gradients: IN looks at one image alone. BN does not."""
    network = LossNetwork("scenes_vgg", ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]).double().requires_grad_(False)
    grams = {layer: gram(found) for layer, found in network(255 * double(1, 3, 16, 16).sigmoid()).items()}
    images = 255 * double(4, 3, 32, 32).sigmoid()
    different = {}
    for norm in ("in", "bn"):
        torch.manual_seed(0)
        model = stylizer((3, 32, 32), 3, width=2, blocks=2).double()
        convert(model, lambda channels, scope=norm: Normalizer(channels, mean=[scope], var=[scope]).double())

        def gradients(batch, model=model):
            model.zero_grad()
            found = perceptual_losses(network, KINDS["scenes_vgg"].terms, model(batch), batch, grams)
            torch.stack(list(found.values())).sum(0).mean().backward()
            return [p.grad.clone() for p in model.parameters()]

        together = gradients(images)
        each = [gradients(image[None]) for image in images]
        means = [torch.stack(grads).mean(0) for grads in zip(*each, strict=True)]
        scale = max(g.abs().max() for g in together)
        different[norm] = max((a - b).abs().max() for a, b in zip(together, means, strict=True)) / scale
    assert different["in"] < 1e-10 and different["bn"] > 1e-3


@pytest.mark.parametrize(("norm", "alike"), [("in", True), ("bn", False)])
def test_a_replica_of_four_is_four_of_one_where_statistics_are_of_one_image(tmp_path, norm, alike):
    """Through the engine, in fp64: the same weights after two updates."""
    states = [
        engine(load(words(tmp_path / batch, f"norm={norm}", f"batch={batch}", "precision=fp64")))
        for batch in ("1x4", "4x1")
    ]
    apart = max((states[0][n] - states[1][n]).abs().max().item() for n in states[0] if "running" not in n)
    assert (apart < 1e-9) == alike


# ---- data ------------------------------------------------------------------------------------------------------------


def test_photographs_that_are_held_out_are_seen_by_no_training_crop():
    """Each pixel of a crop is the mean of a square of a photograph, within the columns of its split."""
    whole = photographs()

    @functools.cache
    def means(number, first, last):
        picture = whole[number, :, first:last].astype(float)
        return np.lib.stride_tricks.sliding_window_view(picture, (4, 4), axis=(0, 1)).mean((3, 4)).round()

    assert whole.shape == (2, 427, 640, 3)
    for split, source, (first, last) in (
        ("train", "held_out", (0, 384)), ("val", "pilot", (384, 512)), ("val", "held_out", (512, 640))
    ):  # fmt: skip
        dataset = Photographs(split, 0, size=8, shrink=4, length=12, val_length=12, validation=source)
        for index in range(12):
            crop = dataset.take(0, index, index)[0].numpy().transpose(1, 2, 0).astype(int)
            mirrored = (crop, crop[:, ::-1]) if split == "train" else (crop,)
            assert any(
                np.array_equal(strips[y : y + 29 : 4, x : x + 29 : 4], one)
                for number, one in itertools.product((0, 1), mirrored)
                for strips in [means(number, first, last)]
                for y, x in np.argwhere((strips == one[0, 0]).all(-1))
            ), (split, source, index)


def test_crops_are_functions_of_seed_epoch_and_index():
    one, other = (Photographs("train", seed, size=16, length=10) for seed in (0, 1))
    keys = [(2, 5), (2, 0), (2, 9)]
    for (image, _), key in zip(one.take_all(keys), keys, strict=True):
        assert torch.equal(image, one.take(*key, key[1])[0]) and image.dtype == torch.uint8
    assert not torch.equal(one.take(2, 5, 5)[0], one.take(3, 5, 5)[0])
    assert not torch.equal(one.take(2, 5, 5)[0], other.take(2, 5, 5)[0])
    fixed = [Photographs("val", seed, size=16).take(None, 3, 3)[0] for seed in (0, 1)]
    assert torch.equal(*fixed)
    with pytest.raises(IndexError):
        one.take(0, 10, 10)


def test_the_painting_has_its_colours_at_any_size():
    for size in (16, 64, 256):
        picture = painting(size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    means = [painting(size).reshape(-1, 3).mean(0) for size in (128, 256)]
    assert np.abs(means[0] - means[1]).max() < 2


def test_images_of_a_folder(tmp_path, capsys):
    data_files.write_coco(tmp_path / "coco")
    (tmp_path / "plain" / "train").mkdir(parents=True)
    (tmp_path / "plain" / "val").mkdir()
    for k in range(5):
        for split in ("train", "val"):
            content = data_files.jpeg((40 + k, 30), color=(50 * k, 0, 0))
            (tmp_path / "plain" / split / f"{k}.jpg").write_bytes(content)
    train = Pictures("train", 0, root=str(tmp_path / "coco"), size=16)
    image, target = train.take(0, 1, 1)
    assert image.shape == (3, 16, 16) and target is None and torch.equal(image, train.take(4, 1, 1)[0])
    val = Pictures("val", 0, root=str(tmp_path / "plain"), val_size=32, val_length=2)
    assert [val.name(k) for k in range(len(val))] == ["0", "2"] and val.take(None, 1, 1)[0].shape == (3, 32, 32)
    assert val.take(None, 1, 1)[0][0].float().mean() == pytest.approx(100, abs=3)
    assert len(Pictures("val", 0, root=str(tmp_path / "plain"), val_length=None)) == 5
    for root, message in (("empty", "has no folder train2017"), ("plain/val", "has no folder train2017")):
        with pytest.raises(UserError, match=message):
            Pictures("train", 0, root=str(tmp_path / root))
    assert main(["data", "verify", "coco_images", f"root={tmp_path / 'coco'}"]) == 1
    assert "expected 118287 images, found" in capsys.readouterr().out


def test_a_run_on_a_folder_with_a_damaged_image(tmp_path, capsys):
    for split, number in (("train", 8), ("val", 3)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for k in range(number):
            (tmp_path / "data" / split / f"{k}.jpg").write_bytes(data_files.jpeg((40, 36), color=(20 * k, 9, 200)))
    (tmp_path / "data" / "train" / "2.jpg").write_bytes(b"torn")
    own = [w for w in words(tmp_path / "runs") if not w.startswith("data.")]
    own += ["data=coco_images", f"data.root={tmp_path / 'data'}", "data.size=32", "data.val_size=48"]
    assert main(["train", *own]) == 2
    assert "2.jpg: it is no image" in capsys.readouterr().err
    assert main(["train", *own, "data.on_error=skip"]) == 0
    run = RunFolder.of(load([*own, "data.on_error=skip"]))
    assert run.summary()["data_errors"]["count"] == 1
    assert main(["predict", str(run.path), f"out={tmp_path / 'out'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png"]
    assert Image.open(tmp_path / "out" / "1.png").size == (48, 48)


def test_images_whose_names_differ_in_their_kind_alone_are_written_apart(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / "val" / name)
    found = Pictures("val", 0, root=str(tmp_path), val_size=16)
    assert {found.name(index) for index in range(3)} == {"a.png", "a.jpg", "b"}


def test_a_plan_needs_no_images(tmp_path, capsys):
    given = [w for w in words(tmp_path) if not w.startswith("data.")]
    assert main(["plan", *given, "data=coco_images", f"data.root={tmp_path / 'none'}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "118287 for training, 50 for validation, each 3x256x256 (as published" in printed
    assert "norm layers 9" in printed  # of two blocks


# ---- what a run leaves -----------------------------------------------------------------------------------------------


def test_losses_are_recorded_along_the_way_and_add_up(tmp_path):
    run = trained(tmp_path, "iterations=4", "evaluate_every=2", "record.estimators=true")
    rows = [row for row in read_jsonl(run.metrics) if "val/total" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        for split in ("train", "val", "val_batch_average"):
            parts = sum(row[f"{split}/{name}"] for name in ("content", "style", "tv"))
            assert parts == pytest.approx(row[f"{split}/{'loss' if split == 'train' else 'total'}"], rel=1e-5)
    assert {*run.summary()["metrics"]["moving_average"]} == {"total", "content", "style", "tv"}


def test_bn_of_one_image_depends_on_the_estimator_and_in_does_not(tmp_path):
    """The trap of BN: its losses under moving averages are not those under batch averages; IN has one of each."""
    found = {norm: trained(tmp_path, f"norm={norm}").summary()["metrics"] for norm in ("bn", "in")}
    assert found["in"]["moving_average"] == found["in"]["batch_average"]
    assert found["bn"]["moving_average"]["style"] != found["bn"]["batch_average"]["style"]


def test_images_are_drawn_beside_content_and_style(tmp_path, capsys):
    runs = [trained(tmp_path, f"norm={norm}") for norm in ("in", "bn", "sn")]
    assert (runs[0].path / "stylized.png").stat().st_size > 1000
    assert not (runs[0].path / "predictions.png").exists()
    picture = tmp_path / "x.png"
    assert main(["figure", "stylized", *(str(run.path) for run in runs), f"out={picture}"]) == 0
    from normlab.figures.samples import stylized
    from normlab.runs.records import Run

    axes = stylized([Run.load(run) for run in runs]).axes
    assert [axis.get_title() for axis in axes[:5]] == ["content", "style", "IN", "BN", "SN"]
    samples = Run.load(runs[0]).predictions
    assert len(samples) == 6 and samples[0]["stylized"].dtype == np.uint8
    assert np.array_equal(axes[0].images[0].get_array(), samples[0]["image"].transpose(1, 2, 0) / 255)
    assert np.array_equal(axes[1].images[0].get_array(), painting(256) / 255)
    other = trained(tmp_path, "norm=in", "data.val_length=3")
    assert main(["figure", "stylized", str(runs[0].path), str(other.path), f"out={picture}"]) == 2
    assert "its samples are others" in capsys.readouterr().err
    assert main(["figure", "predictions", str(runs[0].path), f"out={picture}"]) == 2
    assert "its samples have no truth" in capsys.readouterr().err


def test_predicted_files_are_the_images_of_the_headlines_statistics(tmp_path):
    run = trained(tmp_path, "norm=sn")
    assert main(["predict", str(run.path)]) == 0
    files = sorted((run.path / "predictions" / "val").iterdir())
    assert [file.name for file in files] == [f"{k:05}.png" for k in range(6)]
    from normlab.runs.records import Run

    kept = Run.load(run).predictions[2]["stylized"].transpose(1, 2, 0)
    assert np.abs(np.array(Image.open(files[2])).astype(int) - kept).max() <= 1


def test_all_norm_layers_have_ratios_and_receptive_fields(tmp_path):
    run = trained(tmp_path, "model.blocks=2")
    layers = read_jsonl(run.ratios)[-1]["layers"]
    assert len(layers) == 9 and [row["layer"] for row in layers][:2] == ["encoder.1", "encoder.4"]
    session = open_session(run)
    assert len(normalizers(session.experiment.model)) == 9


def test_squared_errors_are_means_of_an_image():
    a, b = double(3, 2, 4), double(3, 2, 4) + 1
    assert torch.allclose(squared_error(a, b), ((a - b) ** 2).mean((1, 2)))


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["photographs", "papers"])
def test_the_table_of_stylization(tmp_path, monkeypatch, scale):
    """Three runs of a seed; on photographs all begin from one loss network, by the papers' protocol from a file."""
    (tmp_path / "coco").mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    found = plan(load_table("sn_style"), scale, [3, 4], [f"out={tmp_path / 'runs'}"], tmp_path)
    configs = [found.config_of(cell) for cell in found.cells]
    assert {config.choices["norm"] for config in configs} == {"bn", "in", "sn"} and len({*found.ids.values()}) == (
        7 if scale == "photographs" else 6
    )
    assert all(config.choices["task"] == "stylization" and config.batch == "1x4" for config in configs)
    assert all(config.optim["lr"] == 1e-3 and config.optim["weight_decay"] == 0 for config in configs)
    starts = {found.origin_of(cell) for cell in found.cells}
    if scale == "papers":
        assert starts == {None} and {config.init for config in configs} == {"none"} and not found.pretraining
        assert {config.iterations for config in configs} == {40_000}
        terms = KINDS["vgg16_caffe"].terms
    else:
        (start,) = starts
        first = found.configs[start]
        assert first.choices["model"] == "scenes_vgg" and first.seed == 0 and first.data["channels"] == 3
        assert {config.init for config in configs} == {f"{start}@1"}
        terms = KINDS["scenes_vgg"].terms
    given = {name: configs[0].task[name] for name in ("content_weight", "style_weight", "tv_weight")}
    assert given == {name: getattr(terms, name) for name in given}  # what the network comes with, and in the identity


def test_where_a_file_lies_is_no_change_of_a_protocol(tmp_path, monkeypatch):
    (tmp_path / "coco").mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    extra = [f"out={tmp_path / 'runs'}", f"task.style={__file__}", f"task.loss_weights={__file__}"]
    assert plan(load_table("sn_style"), "papers", [0], extra, tmp_path).changed == []
    smaller = [extra[0], "task.style_size=64"]
    assert plan(load_table("sn_style"), "papers", [0], smaller, tmp_path).changed == ["task.style_size=64"]


@pytest.mark.long
def test_a_style_is_learned(tmp_path):
    """The pilot's protocol and crops, which no table is measured on; the bound was fixed before."""
    words = [f"out={tmp_path}", "tracker=none", "threads=1", "figures=summary"]
    classifier = ["scale=scenes_vgg", "data.validation=pilot", "seed=100", *words]
    assert main(["train", *classifier]) == 0
    own = ["scale=photographs_style", "task=stylization", "norm=in", "data.validation=pilot", "seed=100", *words,
           f"init={RunFolder.of(load(classifier)).path}"]  # fmt: skip
    assert main(["train", *own]) == 0
    run = RunFolder.of(load(own))
    session = open_session(run)
    start = evaluate(session)  # of the network as it begins
    assert run.summary()["metrics"]["moving_average"]["style"] <= 0.2 * start["style"]
