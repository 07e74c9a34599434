import pytest
import torch
from torch import nn

from normlab.dynamics.ratios import RF_RANGES, range_of
from normlab.dynamics.receptive_field import NormSite, trace


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)


def fields(model: nn.Module, shape: tuple[int, ...]) -> list[int]:
    return [site.receptive_field for site in trace(model, shape, is_norm)]


def torchvision_model(name: str, **kwargs) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **kwargs)


def test_resnet50_as_in_seed_000():
    sites = trace(torchvision_model("resnet50"), (3, 224, 224), is_norm)
    found = [site.receptive_field for site in sites]
    assert len(sites) == 53 and (found[0], found[-1], max(found)) == (7, 427, 427)
    assert [s.name for s in sites if s.shortcut] == [f"layer{i}.0.downsample.1" for i in (1, 2, 3, 4)]
    assert sum(s.kernel_size == (3, 3) for s in sites) == 16
    assert [s.name for s in sites[3:6]] == ["layer1.0.bn3", "layer1.0.downsample.1", "layer1.1.bn1"]  # as executed


def test_resnet18_by_hand():
    # field + (kernel - 1) * jump: the stem ends at 11 pixels (7x7 stride 2, then pooling 3x3 stride 2), jump 4.
    layer1 = [19, 27, 35, 43]
    layer2 = [51, 67, 43, 83, 99]  # stride 2 in the first convolution; the shortcut's 1x1 sees what layer1 saw
    layer3 = [115, 147, 99, 179, 211]
    layer4 = [243, 307, 211, 371, 435]
    sites = trace(torchvision_model("resnet18"), (3, 64, 64), is_norm)
    assert [s.receptive_field for s in sites] == [7, *layer1, *layer2, *layer3, *layer4]
    assert [i for i, s in enumerate(sites) if s.shortcut] == [7, 12, 17]


def test_a_stack_with_stride_dilation_and_pooling_by_hand():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 5),  # 5, jump 1
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, dilation=3),  # 5 + 2 * 3 = 11, jump 2
        nn.BatchNorm2d(4),
        nn.AvgPool2d(2),  # 11 + 1 * 2 = 13, jump 4
        nn.Conv2d(4, 4, (1, 3), stride=(1, 2), groups=2),  # 13 high, 13 + 2 * 4 = 21 wide, jumps 4 and 8
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, (3, 1)),  # 13 + 2 * 4 = 21 high and wide
        nn.BatchNorm2d(4),
    )
    assert trace(model, (1, 64, 64), is_norm) == [
        NormSite("1", (5, 5), False, 5),
        NormSite("4", (3, 3), False, 11),
        NormSite("7", (1, 3), False, 21),
        NormSite("9", (3, 1), False, 21),
    ]


def test_upsampling_brings_neighbours_closer():
    def decoder(upsample: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 4, 4), upsample, nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))

    assert fields(decoder(nn.Upsample(scale_factor=4)), (1, 32, 32)) == [4 + 2]
    assert fields(decoder(nn.ConvTranspose2d(2, 2, 2, stride=2)), (1, 32, 32)) == [4 + 1 * 2 + 2 * 2]


@pytest.mark.parametrize(("dims", "axes"), [(1, (32,)), (3, (16, 32, 32))])
def test_other_dimensions(dims, axes):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    model = nn.Sequential(conv(2, 4, 3), norm(4), pool(3, 2), conv(4, 4, 3), norm(4))
    (first, second) = trace(model, (2, *axes), is_norm)
    assert (first.kernel_size, first.receptive_field) == ((3,) * dims, 3)
    assert second.receptive_field == 3 + 2 + 2 * 2


def test_a_linear_layer_on_a_flattened_image_sees_all_of_it():
    model = nn.Sequential(nn.Flatten(), nn.Linear(96, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.BatchNorm1d(5))
    assert trace(model, (1, 8, 12), is_norm) == [NormSite("2", None, False, 12), NormSite("4", None, False, 12)]


def test_a_vector_has_no_extent():
    assert fields(nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)), (7,)) == [1]


class Residual(nn.Module):
    """y = bn(conv3(conv3(x))) + shortcut(x), with names that say nothing."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.a = shortcut
        self.b = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
        self.c = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.a(x) + self.c(self.b(x))


def test_shortcuts_are_told_by_structure():
    def projection() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Dropout())

    def shortcuts(model: nn.Module) -> list[str]:
        stem = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        return [s.name for s in trace(nn.Sequential(stem, model), (1, 8, 8), is_norm) if s.shortcut]

    assert shortcuts(Residual(projection())) == ["1.a.1"]
    assert shortcuts(Residual(nn.Identity())) == []  # the stem's normalizer is added too, but begins both branches
    assert shortcuts(Residual(nn.Conv2d(2, 2, 1))) == []


class Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


class OwnNorm(nn.Module):
    def forward(self, x):
        return Standardize.apply(x)


def test_normalizers_do_not_enlarge_whatever_they_run():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), OwnNorm(), nn.Conv2d(2, 2, 3), OwnNorm())
    sites = trace(model, (1, 8, 8), lambda module: isinstance(module, OwnNorm))
    assert [s.receptive_field for s in sites] == [3, 5]


def test_what_needs_values_runs_for_real():
    class Peeking(nn.Module):
        def forward(self, x):
            return x if x.sum().item() >= 0 else -x

    assert fields(nn.Sequential(nn.Conv2d(1, 2, 3), Peeking(), nn.BatchNorm2d(2)), (1, 8, 8)) == [3]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, (1, 8, 8), is_norm)
    assert model.training and not model[1]._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shared_layer_counts_where_it_first_runs():
    norm = nn.BatchNorm2d(2)
    model = nn.Sequential(nn.Conv2d(2, 2, 3), norm, nn.Conv2d(2, 2, 3), norm)
    assert fields(model, (2, 8, 8)) == [3]


@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [("densenet121", 121, 64), ("inception_v3", 94, 299), ("mobilenet_v2", 52, 64), ("shufflenet_v2_x1_5", 56, 64)],
)
def test_torchvision_models(name, layers, size):
    kwargs = {"init_weights": False} if name == "inception_v3" else {}  # its initialization takes seconds
    sites = trace(torchvision_model(name, **kwargs), (3, size, size), is_norm)
    assert len(sites) == layers  # of Inception's 96, two belong to the auxiliary head, which only training runs
    assert not any(site.shortcut for site in sites)


def test_timm_model_with_gates_and_fused_activations():
    import timm

    sites = trace(timm.create_model("seresnet50"), (3, 64, 64), is_norm)
    assert len(sites) == 53 and sum(s.shortcut for s in sites) == 4 and sites[-1].receptive_field == 427
    assert len(trace(timm.create_model("mobilenetv2_035"), (3, 64, 64), is_norm)) == 52


def test_ranges():
    edges = {7: "<49", 48: "<49", 49: "49-99", 99: "49-99", 100: "99-199", 199: "99-199", 299: "199-299", 300: ">299"}
    assert {rf: range_of(rf) for rf in edges} == edges
    assert {range_of(rf) for rf in range(1, 500)} == set(RF_RANGES) - {"all"}
