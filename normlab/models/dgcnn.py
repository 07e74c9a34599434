"""Dynamic Graph CNN (Wang et al. 2019), which classifies clouds of points: convolutions over edges to neighbours.

Shapes: B clouds, P points, k neighbours of each, C and O channels. Normalized by torch's batch norm, as every model
here (`convert` swaps it). Layers on clouds see (B, O, P, k) and (B, O, P); those behind the pooling see (B, O), where a
sample and channel has one value: BN, LN and GN normalize it, IN has no axis there.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor, nn
from torch.nn.functional import conv1d

from normlab.errors import UserError

Channels = Annotated[int, Ge(1), Le(2**12)]


@torch.no_grad()
def neighbours(x_BCP: Tensor, k: int) -> Tensor:
    """(B, P, k): numbers of the k nearest points of each, itself among them. Raises UserError on smaller clouds."""
    _check_enough(x_BCP.shape[2], k)
    x_BPC = x_BCP.transpose(1, 2)
    # Distances by differences: by products of matrices they would depend on the batch, and on which neighbour is which.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x_BPC, x_BPC, compute_mode=exact).topk(k, largest=False, sorted=False).indices


def _check_enough(points: int, k: int) -> None:
    if points < k:
        raise UserError(f"model.k={k}: the clouds have {points} points; expected as many neighbours or fewer")


class EdgeConv2d(nn.Conv2d):
    """A 1x1 convolution over the edges (x_i, x_j - x_i) from each point i to its neighbours j: (B, O, P, k).

    With the weight in two halves, own and other, it is (own - other) x_i + other x_j: products for each point, not for
    each edge. To all that looks at weights it is a convolution of 2C channels.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(2 * in_channels, out_channels, 1, bias=bias)

    def forward(self, x_BCP: Tensor, nearest_BPk: Tensor) -> Tensor:  # type: ignore[override]
        own, other = self.weight[..., 0].chunk(2, 1)
        here_BOP, there_BOP = conv1d(x_BCP, own - other, self.bias), conv1d(x_BCP, other)
        B, O, _ = there_BOP.shape  # noqa: E741
        everywhere = nearest_BPk.reshape(B, 1, -1).expand(B, O, -1)
        return here_BOP[..., None] + there_BOP.gather(2, everywhere).view(B, O, *nearest_BPk.shape[1:])


class EdgeBlock(nn.Module):
    """Edges, norm, activation, and the largest over the neighbours: (B, C, P) -> (B, O, P)."""

    def __init__(self, in_channels: int, out_channels: int, act: Callable[[], nn.Module], bias: bool) -> None:
        super().__init__()
        self.conv = EdgeConv2d(in_channels, out_channels, bias)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = act()

    def forward(self, x_BCP: Tensor, nearest_BPk: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x_BCP, nearest_BPk))).amax(3)


class Transform(nn.Module):
    """A 3x3 matrix for each cloud, by which its points are multiplied: the T-Net; 5 norm layers. It begins as 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = EdgeConv2d(3, width), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width)
        self.conv3, self.norm3 = nn.Conv1d(2 * width, 16 * width, 1), nn.BatchNorm1d(16 * width)
        self.fc1, self.norm4 = nn.Linear(16 * width, 8 * width), nn.BatchNorm1d(8 * width)
        self.fc2, self.norm5 = nn.Linear(8 * width, 4 * width), nn.BatchNorm1d(4 * width)
        self.matrix = nn.Linear(4 * width, 9)
        self.act = nn.ReLU()

    def forward(self, x_B3P: Tensor, nearest_BPk: Tensor) -> Tensor:
        edges = self.act(self.norm1(self.conv1(x_B3P, nearest_BPk)))
        points = self.act(self.norm2(self.conv2(edges))).amax(3)
        cloud = self.act(self.norm3(self.conv3(points))).amax(2)
        cloud = self.act(self.norm5(self.fc2(self.act(self.norm4(self.fc1(cloud))))))
        return (
            self.matrix(cloud).view(-1, 3, 3).transpose(1, 2) @ x_B3P
        )  # a row of points times the matrix, as published


class DGCNN(nn.Module):
    """Points (B, P, 3) -> logits (B, K): edge blocks, each on the graph of what the one before gave.

    Args:
        num_classes: K.
        k: neighbours.
        widths: channels of the edge blocks.
        embedding: channels that all of them together are brought to ahead of the pooling.
        hidden: of the two fully connected layers.
        dropout: behind these.
        act: makes an activation.
        bias: of convolutions and the first fully connected layer.
        pools: over the points.
        transform: turns the points first.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        k: int,
        widths: Sequence[int],
        embedding: int,
        hidden: tuple[int, int],
        dropout: float,
        act: Callable[[], nn.Module],
        bias: bool,
        pools: Sequence[Callable[[Tensor, int], Tensor]],
        transform: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.k, self.pools, self.transform = k, pools, transform
        ends = zip((3, *widths), widths, strict=False)
        self.edges = nn.ModuleList(EdgeBlock(before, after, act, bias) for before, after in ends)
        embed = nn.Conv1d(sum(widths), embedding, 1, bias=bias)
        self.embed = nn.Sequential(embed, nn.BatchNorm1d(embedding), act())
        (first, second), pooled = hidden, len(pools) * embedding
        self.head = nn.Sequential(
            *(nn.Linear(pooled, first, bias=bias), nn.BatchNorm1d(first), act(), nn.Dropout(dropout)),
            *(nn.Linear(first, second), nn.BatchNorm1d(second), act(), nn.Dropout(dropout)),
            nn.Linear(second, num_classes),
        )

    def forward(self, x_BP3: Tensor) -> Tensor:
        x_BCP = x_BP3.transpose(1, 2)
        if self.transform is not None:
            x_BCP = self.transform(x_BCP, neighbours(x_BCP, self.k))
        levels = []
        for block in self.edges:
            x_BCP = block(x_BCP, neighbours(x_BCP, self.k))
            levels.append(x_BCP)
        x_BEP = self.embed(torch.cat(levels, 1))
        return self.head(torch.cat([pool(x_BEP, 2) for pool in self.pools], 1))


def dgcnn(
    shape: tuple[int, int],
    num_classes: int,
    *,
    k: Annotated[int, Ge(1), Le(2**10)] = 20,
    width: Annotated[int, Ge(1), Le(2**12)] = 64,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5,
) -> nn.Module:
    """The network of the TensorFlow code, which Weight Standardization uses (WS, Sec. 3.5): 12 norm layers.

    Biases stay ahead of norms, and weights start as Glorot's, as there.

    Args:
        shape: (P, 3), of a cloud.
        num_classes: K.
        k: neighbours.
        width: channels of the first edge block, of which all others are multiples.
        dropout: behind the fully connected layers.

    Raises:
        UserError: a cloud has fewer points than k.
    """
    _check_enough(shape[0], k)
    model = DGCNN(
        num_classes,
        k=k,
        widths=(width, width, width, 2 * width),
        embedding=16 * width,
        hidden=(8 * width, 4 * width),
        dropout=dropout,
        act=nn.ReLU,
        bias=True,
        pools=(torch.amax,),
        transform=Transform(width),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    matrix = model.get_submodule("transform.matrix")
    nn.init.zeros_(matrix.weight)  # type: ignore[arg-type]
    with torch.no_grad():
        matrix.bias.copy_(torch.eye(3).flatten())  # type: ignore[operator,union-attr]
    return model


def dgcnn_torch(
    shape: tuple[int, int],
    num_classes: int,
    *,
    k: Annotated[int, Ge(1), Le(2**10)] = 20,
    width: Annotated[int, Ge(1), Le(2**12)] = 64,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5,
) -> nn.Module:
    """The network of the same authors' PyTorch code: no T-Net, other widths, leaky ReLU, two poolings; 7 norm layers.

    There each norm is registered under two names, its own and that in its block; here it has one. Arguments and
    errors as dgcnn's.
    """
    _check_enough(shape[0], k)
    return DGCNN(
        num_classes,
        k=k,
        widths=(width, width, 2 * width, 4 * width),
        embedding=16 * width,
        hidden=(8 * width, 4 * width),
        dropout=dropout,
        act=lambda: nn.LeakyReLU(0.2),
        bias=False,
        pools=(torch.amax, torch.mean),
    )
