"""SN as the papers print it, in torch operations that autograd differentiates: what the kernels are compared with."""

import torch
from torch import Tensor, nn


class PaperSN(nn.Module):
    """Switchable Normalization in training, (N, C, H, W) -> the same.

    Statistics of LN and BN come from those of IN, as in SN, Eq. 5; the ratios are softmaxes, Eq. 4.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, num_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_channels, 1, 1))
        self.mean_logits, self.var_logits = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.eps = eps

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mean_in = x_NCHW.mean((2, 3), keepdim=True)
        var_in = x_NCHW.var((2, 3), correction=0, keepdim=True)
        square_in = var_in + mean_in**2
        mean_ln, mean_bn = mean_in.mean(1, keepdim=True), mean_in.mean(0, keepdim=True)
        var_ln = square_in.mean(1, keepdim=True) - mean_ln**2
        var_bn = square_in.mean(0, keepdim=True) - mean_bn**2
        mean_ratio, var_ratio = self.mean_logits.softmax(0), self.var_logits.softmax(0)
        mean = mean_ratio[0] * mean_in + mean_ratio[1] * mean_ln + mean_ratio[2] * mean_bn
        var = var_ratio[0] * var_in + var_ratio[1] * var_ln + var_ratio[2] * var_bn
        return (x_NCHW - mean) / (var + self.eps).sqrt() * self.weight + self.bias
