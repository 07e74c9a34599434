"""Networks as the papers' authors released them, written plainly, to make checkpoints in their layouts.

Names and shapes are those of the released files; formulas are those of their code. Nothing here is normlab's.
"""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

State = OrderedDict[str, Tensor]


class SwitchNorm(nn.Module):
    """(1, C, 1, 1) gamma and beta, (1, C, 1) buffers, logits of [IN, LN, BN], or of [IN, LN]; in evaluation."""

    def __init__(self, channels: int, logits: int = 3, sparse: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, 1, 1).abs() + 0.5)
        self.bias = nn.Parameter(0.2 * torch.randn(1, channels, 1, 1))
        self.mean_weight, self.var_weight = nn.Parameter(torch.randn(logits)), nn.Parameter(torch.randn(logits))
        if logits == 3:
            self.register_buffer("running_mean", 0.2 * torch.randn(1, channels, 1))
            self.register_buffer("running_var", torch.rand(1, channels, 1) + 0.5)
        self.sparse = sparse
        if sparse:
            for ratio in (self.mean_weight, self.var_weight):
                ratio.data = torch.eye(logits)[torch.randint(logits, ())]
            for name in ("mean_fixed", "var_fixed"):
                self.register_buffer(name, torch.ones(1, dtype=torch.long))
            self.register_buffer("radius", torch.full((1,), 0.8))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = (var_in + mean_in**2).mean(1, keepdim=True) - mean_ln**2
        means, variances = [mean_in, mean_ln], [var_in, var_ln]
        if len(self.mean_weight) == 3:
            means.append(self.running_mean)
            variances.append(self.running_var)
        a, b = (w if self.sparse else w.softmax(0) for w in (self.mean_weight, self.var_weight))
        mean = sum(ratio * m for ratio, m in zip(a, means, strict=True))
        var = sum(ratio * v for ratio, v in zip(b, variances, strict=True))
        return ((flat - mean) / (var + 1e-5).sqrt()).view(x.shape) * self.weight + self.bias


class StandardizedConv2d(nn.Conv2d):
    """Unbiased standard deviation, epsilon outside."""

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = centred / (centred.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        return nn.functional.conv2d(x, weight, None, self.stride, self.padding)


class Block(nn.Module):
    """Two 3x3 convolutions, or with `wide` a bottleneck; norms behind them, or ahead if `v2`."""

    def __init__(self, width: int, channels: int, stride: int, wide: bool, v2: bool, conv, norm) -> None:
        super().__init__()
        widths = [width, channels, channels, 4 * channels] if wide else [width, channels, channels]
        kernels = [1, 3, 1] if wide else [3, 3]
        strides = [1, stride, 1] if wide else [stride, 1]
        self.v2, self.depth, self.downsample = v2, len(kernels), None
        for k, (kernel, step) in enumerate(zip(kernels, strides, strict=True), 1):
            self.add_module(f"conv{k}", conv(widths[k - 1], widths[k], kernel, step, kernel // 2, bias=False))
            self.add_module(f"sn{k}", norm(widths[k - 1] if v2 else widths[k]))
        if stride > 1 or width != widths[-1]:
            project = conv(width, widths[-1], 1, stride, bias=False)
            self.downsample = project if v2 else nn.Sequential(project, norm(widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        y, shortcut = x, x
        for k in range(1, self.depth + 1):
            conv, norm = self.get_submodule(f"conv{k}"), self.get_submodule(f"sn{k}")
            if self.v2:
                y = norm(y).relu()
                if k == 1 and self.downsample is not None:
                    shortcut = self.downsample(y)
                y = conv(y)
            else:
                y = norm(conv(y))
                y = y.relu() if k < self.depth else y
        if self.v2:
            return shortcut + y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """`sparse`: the stem of the sparse SN models, which pools without padding."""

    def __init__(
        self, blocks: list[int], *, wide: bool, v2: bool = False, sparse: bool = False, conv=nn.Conv2d, norm=SwitchNorm
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if sparse else nn.MaxPool2d(3, 2, 1)
        self.conv1, self.sn1 = conv(3, 64, 7, 2, 3, bias=False), norm(64)
        width, self.v2 = 64, v2
        for stage, number in enumerate(blocks):
            layers = []
            for block in range(number):
                stride = 2 if stage and not block else 1
                layers.append(Block(width, 64 * 2**stage, stride, wide, v2, conv, norm))
                width = 64 * 2**stage * (4 if wide else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        if v2:
            self.sn_out = norm(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.sn1(self.conv1(x)).relu())
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        x = self.sn_out(x).relu() if self.v2 else x
        return self.fc(x.mean((2, 3)))


def data_parallel(network: nn.Module) -> State:
    return OrderedDict((f"module.{name}", t) for name, t in network.state_dict().items())


def detector(network: nn.Module, body: str = "conv_body.") -> State:
    """The backbone as Detectron calls it, and a tensor of the rest of the detector."""
    state = OrderedDict()
    for name, tensor in network.state_dict().items():
        name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        name = f"res1.{name}" if name.startswith(("conv1", "sn1")) else name
        if not name.startswith("fc."):
            state[f"Conv_Body.{body}{name}"] = tensor
    return state | {"RPN.FPN_RPN_conv.weight": torch.randn(4, 4, 3, 3), "Conv_Body.conv_top.bias": torch.zeros(8)}


def with_bn_names(state: State) -> State:
    """GN in the place of BN, under its names."""
    return OrderedDict((re.sub(r"\.sn(\d)", r".bn\1", name), tensor) for name, tensor in state.items())


# ---- a whole detector, as SwitchNorm_Detection has it ----------------------------------------------------------------


def layer(width: int, channels: int, kernel: int, norm) -> nn.Module:
    """A convolution and its norm, or without one a convolution with a bias."""
    if norm is None:
        return nn.Conv2d(width, channels, kernel, padding=kernel // 2)
    return nn.Sequential(nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False), norm(channels))


class Lateral(nn.Module):
    def __init__(self, width: int, channels: int, norm) -> None:
        super().__init__()
        self.conv_lateral = layer(width, channels, 1, norm)


class Pyramid(nn.Module):
    """Modules count from the coarsest level on."""

    def __init__(self, widths: list[int], channels: int, norm) -> None:
        super().__init__()
        self.conv_top = layer(widths[-1], channels, 1, norm)
        self.topdown_lateral_modules = nn.ModuleList(Lateral(width, channels, norm) for width in widths[-2::-1])
        self.posthoc_modules = nn.ModuleList(layer(channels, channels, 3, norm) for _ in widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """From the finest to the coarsest."""
        inner = [self.conv_top(maps[-1])]
        for module, below in zip(self.topdown_lateral_modules, maps[-2::-1], strict=True):
            inner.append(module.conv_lateral(below) + nn.functional.interpolate(inner[-1], scale_factor=2))
        return [module(x) for module, x in zip(self.posthoc_modules, inner, strict=True)][::-1]


class Proposals(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.FPN_RPN_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.FPN_RPN_cls_score = nn.Conv2d(channels, 3, 1)
        self.FPN_RPN_bbox_pred = nn.Conv2d(channels, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.FPN_RPN_conv(x).relu()
        return self.FPN_RPN_cls_score(y), self.FPN_RPN_bbox_pred(y)


def convolutions(channels: int, norm) -> nn.Sequential:
    """Four, each with its norm, if there is one, and a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [*([layer(channels, channels, 3, None)] if norm is None else layer(channels, channels, 3, norm))]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class BoxHead(nn.Module):
    def __init__(self, channels: int, hidden: int, norm) -> None:
        super().__init__()
        self.convs, self.fc = convolutions(channels, norm), nn.Linear(49 * channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.convs(x).flatten(1)).relu()


class BoxOuts(nn.Module):
    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(hidden, outputs), nn.Linear(hidden, 4 * outputs)


class MaskHead(nn.Module):
    def __init__(self, channels: int, norm) -> None:
        super().__init__()
        self.conv_fcn, self.upconv = convolutions(channels, norm), nn.ConvTranspose2d(channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.upconv(self.conv_fcn(x)).relu()


class MaskOuts(nn.Module):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(channels, outputs, 1)


def prefixed(prefix: str, module: nn.Module) -> State:
    return OrderedDict((f"{prefix}.{name}", tensor) for name, tensor in module.state_dict().items())
