"""An LSTM cell with norms inside: SN in a controller (SN, Sec. 4.4; SN-TPAMI, Sec. 4.7), LN as its authors have it.

    gates_N4H = norm(W_ih x) + norm(W_hh h) + b          four gates: input i, forget f, cell g, output o
    c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h' = sigmoid(o) * tanh(norm(c'))

(Ba, Kiros and Hinton 2016, Eq. 20-22.) Without a norm this is torch's nn.LSTMCell, with parameters of the same names.

Shapes: N samples, I inputs, H hidden units. A norm sees (N, 4H) and (N, H): channels and no positions, so that the
scopes ln and gn are all that it can have.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.norm.layer import Normalizer

State = tuple[Tensor, Tensor]  # h and c, (N, H) each
_REASONS = {
    "in": "there are no positions, so that it would hold one value",
    "bn": "its statistics differ from step to step, and would tie the samples of a batch to each other",
}
_REASONS["en"] = _REASONS["bn"]


class NormLSTMCell(nn.Module):
    """x (N, I), (h, c) (N, H) each -> the next (h, c).

    Args:
        input_size: I.
        hidden_size: H.
        bias: b, one for the inputs and one for the hidden state, as in torch's cell. What norms learn is apart from it.
        norm: makes a layer of so many channels; None: no norms.

    Raises:
        UserError: the norm has a scope that an LSTM has not: in, bn or en.
    """

    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, *, norm: Callable[[int], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, nn.Parameter(torch.empty(4 * hidden_size)) if bias else None)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))
        self.norm_ih, self.norm_hh = _layer(norm, 4 * hidden_size), _layer(norm, 4 * hidden_size)
        self.norm_c = _layer(norm, hidden_size)

    def forward(self, x_NI: Tensor, state: State | None = None) -> State:
        h_NH, c_NH = state or (x_NI.new_zeros(len(x_NI), self.hidden_size),) * 2
        gates = self.norm_ih(x_NI @ self.weight_ih.t()) + self.norm_hh(h_NH @ self.weight_hh.t())
        if self.bias_ih is not None and self.bias_hh is not None:
            gates = gates + self.bias_ih + self.bias_hh
        i, f, g, o = gates.chunk(4, 1)
        c_NH = f.sigmoid() * c_NH + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_c(c_NH).tanh(), c_NH

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + (", bias=False" if self.bias_ih is None else "")


def _layer(norm: Callable[[int], nn.Module] | None, num_channels: int) -> nn.Module:
    layer = nn.Identity() if norm is None else norm(num_channels)
    for scope in (*layer.mean_scopes, *layer.var_scopes) if isinstance(layer, Normalizer) else ():
        kind = scope.rstrip("0123456789")
        if kind in _REASONS:
            raise UserError(f"scope '{scope}' cannot serve in an LSTM: {_REASONS[kind]}; allowed: ln, gn")
    return layer
