"""ENAS's micro search space (Pham et al. 2018): one network that holds the weights of all architectures.

Each node, branch, kernel and input of a cell has convolutions of its own, which all architectures that use them share
(normlab.models.controller says what an architecture is). Normalized by torch's batch norm, as every model here.

Shapes: N images, C and O channels.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from normlab.errors import UserError
from normlab.models.controller import OPERATIONS, Controller, Drawn
from normlab.norm.average import MovingAverage

Cell = Sequence[Sequence[int]]  # of each node: input, operation, input, operation
_KERNELS = (3, 5)  # of the first operations
_AVERAGE, _MAXIMUM = OPERATIONS.index("average_pool"), OPERATIONS.index("max_pool")


def _pointwise(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out)]


class Separable(nn.Sequential):
    """Twice: ReLU, a convolution of each channel, one over the channels, and a norm."""

    def __init__(self, channels: int, kernel: int) -> None:
        def once() -> list[nn.Module]:
            depthwise = nn.Conv2d(channels, channels, kernel, padding="same", groups=channels, bias=False)
            return [nn.ReLU(), depthwise, *_pointwise(channels, channels)]

        super().__init__(*once(), *once())


class Halved(nn.Module):
    """Half the resolution: every other pixel, and its neighbours down and right, each brought to half the channels."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.here = nn.Conv2d(channels, out // 2, 1, bias=False)
        self.aside = nn.Conv2d(channels, out // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        aside = pad(x_NCHW, (0, 1, 0, 1))[:, :, 1::2, 1::2]
        return self.norm(torch.cat([self.here(x_NCHW[:, :, ::2, ::2]), self.aside(aside)], 1))


class Branch(nn.Module):
    """One of a node's two: any operation on any of the tensors that are there."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.separable = nn.ModuleList(
            nn.ModuleList(Separable(channels, kernel) for _ in range(inputs)) for kernel in _KERNELS
        )

    def forward(self, tensors: Sequence[Tensor], chosen: int, operation: int) -> Tensor:
        x = tensors[chosen]
        if operation < len(_KERNELS):
            return self.separable[operation][chosen](x)  # type: ignore[index]
        if operation == _AVERAGE:
            return avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return max_pool2d(x, 3, 1, 1) if operation == _MAXIMUM else x


class SearchedCell(nn.Module):
    """Two tensors -> one of `out` channels, at the resolution of the second.

    Args:
        channels: of the two.
        halved: whether the first has twice the resolution of the second.
        out: O.
        nodes: B.
    """

    def __init__(self, channels: tuple[int, int], halved: bool, out: int, nodes: int) -> None:
        super().__init__()
        first, second = channels
        self.first = nn.Sequential(nn.ReLU(), Halved(first, out)) if halved else self._fit(first, out)
        self.second = self._fit(second, out)
        self.nodes = nn.ModuleList(nn.ModuleList(Branch(k + 2, out) for _ in range(2)) for k in range(nodes))
        # Of each tensor that no node has taken; their sum is one convolution of all of them together.
        self.joined = nn.ModuleList(nn.Conv2d(out, out, 1, bias=False) for _ in range(nodes + 2))
        self.norm = nn.BatchNorm2d(out)

    @staticmethod
    def _fit(channels: int, out: int) -> nn.Module:
        return nn.Identity() if channels == out else nn.Sequential(nn.ReLU(), *_pointwise(channels, out))

    def forward(self, before: Tensor, last: Tensor, cell: Cell) -> Tensor:
        tensors = [self.first(before), self.second(last)]
        for branches, (a, on_a, b, on_b) in zip(self.nodes, cell, strict=True):
            left, right = cast(nn.ModuleList, branches)
            tensors.append(left(tensors, a, on_a) + right(tensors, b, on_b))
        taken = {node[place] for node in cell for place in (0, 2)}
        return self.norm(sum(self.joined[k](t.relu()) for k, t in enumerate(tensors) if k not in taken))


class AuxiliaryHead(nn.Module):
    """Logits from the middle of the network (N, C, H, W) -> (N, K), for a second loss. Raises UserError below 5x5."""

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        super().__init__()
        if side < 5:
            raise UserError(
                f"model.auxiliary=true: the head pools 5x5 pixels, and maps have {side}x{side} there; "
                "use model.auxiliary=false, or larger images"
            )
        pooled = (side - 5) // 3 + 1
        self.features = nn.Sequential(
            *(nn.ReLU(), nn.AvgPool2d(5, 3), *_pointwise(channels, 128), nn.ReLU()),
            *(nn.Conv2d(128, 768, pooled, padding="same", bias=False), nn.BatchNorm2d(768), nn.ReLU()),
        )
        self.classifier = nn.Linear(768, num_classes, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.classifier(self.features(x_NCHW).mean((2, 3)))


class Child(nn.Module):
    """Images (N, C, H, W) and an architecture -> logits (N, K), and those of the auxiliary head or None.

    Of `layers` + 2 cells, two reduce: they see half the resolution of the one before, with twice the channels.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        layers: int,
        filters: int,
        nodes: int,
        dropout: float,
        auxiliary: bool,
    ) -> None:
        super().__init__()
        third = layers // 3
        self.reducing = {third, 2 * third + 1}
        self._watched = 2 * third + 2 if auxiliary else None  # the cell behind the second that reduces
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], 3 * filters, 3, padding=1, bias=False), nn.BatchNorm2d(3 * filters)
        )
        self.halvings, self.cells = nn.ModuleDict(), nn.ModuleList()
        before, last, halved, side = 3 * filters, 3 * filters, False, max(shape[1:])
        for k in range(layers + 2):
            if k in self.reducing:
                filters *= 2
                self.halvings[str(k)] = Halved(last, filters)
                before, last, halved, side = last, filters, True, -(-side // 2)
            self.cells.append(SearchedCell((before, last), halved, filters, nodes))
            before, last, halved = last, filters, False
            if k == self._watched:
                self.auxiliary = AuxiliaryHead(filters, side, num_classes)
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(filters, num_classes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor, architecture: Sequence[Cell]) -> tuple[Tensor, Tensor | None]:
        normal, reduction = architecture
        x, auxiliary = self.stem(images), None
        before, last = x, x
        for k, cell in enumerate(self.cells):
            if k in self.reducing:
                before, last = last, self.halvings[str(k)](last)
            before, last = last, cell(before, last, reduction if k in self.reducing else normal)
            if k == self._watched and self.training:
                auxiliary = self.auxiliary(last)
        return self.classifier(self.dropout(last.relu().mean((2, 3)))), auxiliary


class SearchNetwork(nn.Module):
    """A child and the controller that draws its architectures.

    Attributes:
        rewards: their moving average, the baseline of REINFORCE.
    """

    def __init__(self, child: Child, controller: Controller) -> None:
        super().__init__()
        self.child, self.controller = child, controller
        self.rewards = MovingAverage(1)

    def forward(self, images: Tensor | None, uniform_AD: Tensor) -> Drawn | tuple[Tensor, Tensor | None]:
        """What the child gives for images under an architecture that is drawn; without images, what is drawn."""
        drawn = self.controller(uniform_AD)
        return drawn if images is None else self.child(images, drawn.architectures[0].tolist())


def enas_micro(
    shape: tuple[int, int, int],
    num_classes: int,
    norm: Callable[[int], nn.Module] | None = None,
    *,
    layers: Annotated[int, Ge(1), Le(2**10)] = 6,
    filters: Annotated[int, Ge(2), Le(2**12)] = 20,
    nodes: Annotated[int, Ge(1), Le(2**6)] = 5,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    auxiliary: bool = True,
    hidden: Annotated[int, Ge(2), Le(2**12)] = 64,
    tanh: Annotated[float, Gt(0)] = 1.1,
    operation_tanh: Annotated[float, Gt(0)] = 0.44,
) -> nn.Module:
    """A SearchNetwork, with the settings of ENAS's code for CIFAR-10.

    Args:
        shape: (C, H, W) of an image.
        num_classes: K.
        norm: makes the norm layers inside the controller's LSTM; None: it has none.
        layers: normal cells; two that reduce come to them.
        filters: channels of the cells ahead of the first that reduces; an even number.
        nodes: B, of each cell.
        dropout: ahead of the child's last layer.
        auxiliary: a second head in the middle of the child.
        hidden: units of the LSTM.
        tanh: bounds the logits of choices of inputs.
        operation_tanh: bounds those of choices of operations; 1.1 / 2.5.

    Raises:
        UserError: filters are odd, images are too small for the second head, or the norm has no place in an LSTM.
    """
    if filters % 2:
        raise UserError(f"model.filters={filters}: expected an even number, whose halves two convolutions give")
    child = Child(shape, num_classes, layers=layers, filters=filters, nodes=nodes, dropout=dropout, auxiliary=auxiliary)
    return SearchNetwork(child, Controller(nodes, norm, hidden=hidden, tanh=tanh, operation_tanh=operation_tanh))
