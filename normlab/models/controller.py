"""ENAS's controller (Pham et al. 2018): an LSTM that draws the cells of a convolutional network, choice by choice.

An architecture is two cells, normal and reduction. A cell has B nodes, and each node is the sum of two branches: which
of the k + 2 earlier tensors each takes, and which of the operations it applies. As numbers it is (2, B, 4): input,
operation, input, operation of each node.

Shapes: A architectures, B nodes of a cell, H hidden units, K options of a choice, D = 8 B choices of an architecture.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normlab.norm.lstm import NormLSTMCell, State

CELLS = ("normal", "reduction")
OPERATIONS = ("separable_3x3", "separable_5x5", "average_pool", "max_pool", "identity")
_CONVOLUTIONS = 2  # the first of them, which begin with the better chances
_WIDTH = 0.1  # weights begin uniform within it, on both sides
_LOGIT, _BIAS = 10.0, 0.25  # the better chances: a logit that is learned, and one of the normal cell that is not


class Drawn(NamedTuple):
    """What a controller drew: architectures (A, 2, B, 4) as whole numbers, and of each, (A,), the logarithm of its
    probability and the entropy of its choices, in nats, which is a constant to gradients."""

    architectures: Tensor
    log_probability: Tensor
    entropy: Tensor


def number_of_choices(nodes: int) -> int:
    """D, of an architecture whose cells have so many nodes."""
    return 4 * len(CELLS) * nodes


def uniform_architectures(uniform_AD: Tensor, nodes: int) -> Tensor:
    """Architectures (A, 2, B, 4) that no controller has chosen: each option has the same chance.

    Args:
        uniform_AD: numbers in [0, 1), one a choice.
        nodes: B.
    """
    options = torch.tensor([[k + 2, len(OPERATIONS)] * 2 for k in range(nodes)]).expand(len(CELLS), -1, -1)
    return (uniform_AD.view(-1, *options.shape) * options).long()


class Controller(nn.Module):
    """Draws architectures from uniform numbers, so that the same numbers give the same on any device.

    Samples are architectures: what one draws does not depend on the others of its batch. The reduction cell goes on
    from the state that the normal cell ended in.

    Args:
        nodes: B.
        norm: makes the norm layers of the LSTM's cell; None: it has none.
        hidden: H.
        tanh: logits are this times the tanh of what the network gives.
        operation_tanh: the same for choices of operations.

    Raises:
        UserError: the norm has a scope that an LSTM has not.
    """

    favour: Tensor

    def __init__(
        self,
        nodes: int,
        norm: Callable[[int], nn.Module] | None = None,
        *,
        hidden: int = 64,
        tanh: float = 1.1,
        operation_tanh: float = 0.44,
    ) -> None:
        super().__init__()
        self.nodes, self.tanh, self.operation_tanh = nodes, tanh, operation_tanh
        self.lstm = NormLSTMCell(hidden, hidden, bias=False, norm=norm)
        self.begin = nn.Parameter(torch.empty(1, hidden))
        self.embedding = nn.Parameter(torch.empty(len(OPERATIONS), hidden))
        self.operation = nn.Linear(hidden, len(OPERATIONS))
        self.anchor, self.query = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        weights = (self.lstm.weight_ih, self.lstm.weight_hh, self.begin, self.embedding)
        for weight in (*weights, *(layer.weight for layer in (self.operation, self.anchor, self.query, self.score))):
            nn.init.uniform_(weight, -_WIDTH, _WIDTH)
        favoured = torch.arange(len(OPERATIONS)) < _CONVOLUTIONS
        with torch.no_grad():
            self.operation.bias.copy_(favoured * _LOGIT)
        self.register_buffer("favour", torch.where(favoured, _BIAS, -_BIAS), persistent=False)

    def forward(self, uniform_AD: Tensor) -> Drawn:
        choices = _Choices(uniform_AD)
        A, H = len(uniform_AD), self.lstm.hidden_size
        state: State = (self.begin.new_zeros(A, H), self.begin.new_zeros(A, H))
        for favour in (self.favour, 0.0):
            state = self._draw_cell(choices, state, favour)
        drawn = torch.stack(choices.made, 1).view(A, len(CELLS), self.nodes, 4)
        log_probability_A, entropy_A = (torch.stack(of, 1).sum(1) for of in (choices.log_probability, choices.entropy))
        return Drawn(drawn[..., [0, 2, 1, 3]], log_probability_A, entropy_A.detach())

    def _draw_cell(self, choices: "_Choices", state: State, favour: Tensor | float) -> State:
        """Both inputs of each node, then both operations."""
        begin = self.begin.expand(len(state[0]), -1)
        anchors, keys = [], []  # what stands for each tensor, and what a query is compared with
        for _ in range(2):  # the cell's inputs
            state = self.lstm(begin, state)
            anchors.append(torch.zeros_like(state[0]))
            keys.append(self.anchor(state[0]))
        for _ in range(self.nodes):
            x_AH = begin
            for _ in range(2):
                state = self.lstm(x_AH, state)
                scores_AK = self.score((torch.stack(keys, 1) + self.query(state[0])[:, None]).tanh())[..., 0]
                chosen_A = choices.make(self.tanh * scores_AK.tanh())
                x_AH = torch.stack(anchors, 1)[torch.arange(len(chosen_A)), chosen_A]
            for _ in range(2):
                state = self.lstm(x_AH, state)
                chosen_A = choices.make(self.operation_tanh * self.operation(state[0]).tanh() + favour)
                x_AH = self.embedding[chosen_A]
            state = self.lstm(x_AH, state)
            anchors.append(state[0])
            keys.append(self.anchor(state[0]))
        return state


class _Choices:
    """Those that a controller has made, one after another, by a uniform number each."""

    def __init__(self, uniform_AD: Tensor) -> None:
        self._uniform = iter(uniform_AD.unbind(1))
        self.made: list[Tensor] = []
        self.log_probability: list[Tensor] = []
        self.entropy: list[Tensor] = []

    def make(self, logits_AK: Tensor) -> Tensor:
        """(A,): the option whose share of [0, 1) holds the uniform number."""
        logs_AK = logits_AK.log_softmax(1)
        cumulative_AK = logs_AK.detach().exp().cumsum(1)
        drawn_A1 = next(self._uniform)[:, None].to(cumulative_AK)
        chosen_A = (drawn_A1 >= cumulative_AK[:, :-1]).sum(1)
        self.made.append(chosen_A)
        self.log_probability.append(logs_AK.gather(1, chosen_A[:, None])[:, 0])
        self.entropy.append(-(logs_AK.exp() * logs_AK).sum(1))
        return chosen_A
