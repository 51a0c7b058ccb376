"""3 x 3 convolutions in bf16 as matrix products: faster than torch's own on CPUs that have AMX or AVX-512's bf16.

torch's weight gradient of a convolution takes most of a training step there, and its forward pass is slow where the
maps are small; `benchmarks/training.py` measures a step with both ways. Results are rounded to bf16 like torch's own,
from sums in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

MIN_CHANNELS = 128
"""Of the input: with fewer, copying the neighbourhoods takes longer than the product saves."""
_KERNEL = 3


class MatmulConv2d(nn.Conv2d):
    """An nn.Conv2d, 3 x 3 without bias, that computes in bf16 by matrix products while it is trained."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to (N, K, H', W'), bf16, in channels_last memory; outside autocast as nn.Conv2d does."""
        if not (self.training and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        out: torch.Tensor = _Convolution.apply(x, self.weight, self.stride[0], self.dilation[0])
        return out


def use_matmul(network: nn.Module) -> None:
    """Makes every convolution that gains by it a MatmulConv2d; parameters, their names and their order stay.

    Args:
        network: Changed in place.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _gains(module):
            module.__class__ = MatmulConv2d


def _gains(conv: nn.Conv2d) -> bool:
    is_plain = conv.bias is None and conv.groups == 1 and conv.kernel_size == (_KERNEL, _KERNEL)
    keeps_size = conv.padding == conv.dilation and len({*conv.dilation}) == len({*conv.stride}) == 1
    return is_plain and keeps_size and conv.in_channels >= MIN_CHANNELS


class _Convolution(torch.autograd.Function):
    """out[n, k, i, j] = sum over c, u, v of weight[k, c, u, v] x[n, c, s i + d (u - 1), s j + d (v - 1)].

    With stride s and dilation d, and zeros around x.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int, dilation: int) -> torch.Tensor:
        x, rounded = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, rounded)
        ctx.stride, ctx.dilation, ctx.dtype = stride, dilation, weight.dtype
        return _product(_patches(x, stride, dilation), rounded)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        x, weight = ctx.saved_tensors
        stride, dilation = ctx.stride, ctx.dilation
        grad = grads[0].bfloat16().contiguous(memory_format=torch.channels_last)  # (N, K, H', W')
        rows = grad.permute(0, 2, 3, 1).flatten(0, 2)  # (N H' W', K)
        patches = _patches(x, stride, dilation).flatten(0, 2)  # (N H' W', 9 C)
        of_weight = (rows.t() @ patches).view(len(weight), _KERNEL, _KERNEL, -1)  # (K, 3, 3, C)
        of_x = None
        if ctx.needs_input_grad[0] and stride == 1:
            flipped = weight.flip(2, 3).transpose(0, 1)  # (C, K, 3, 3)
            of_x = _product(_patches(grad, 1, dilation), flipped)
        elif ctx.needs_input_grad[0]:
            of_x = conv2d_input(x.shape, weight, grad, stride, dilation, dilation)  # type: ignore[no-untyped-call]
        return of_x, of_weight.permute(0, 3, 1, 2).to(ctx.dtype), None, None


def _patches(x: torch.Tensor, stride: int, dilation: int) -> torch.Tensor:
    """Copies what each output sees of x, zeros around it: (N, C, H, W) -> (N, H', W', 9 C)."""
    rows, columns = ((length - 1) // stride * stride + 1 for length in x.shape[2:])
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, *4 * [dilation]))
    shifts = range(0, _KERNEL * dilation, dilation)
    shifted = [padded[:, i : i + rows : stride, j : j + columns : stride] for i in shifts for j in shifts]
    return torch.cat(shifted, dim=-1)


def _product(patches: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 9 C) times (K, C, 3, 3) -> (N, K, H, W), in channels_last memory."""
    return (patches @ weight.permute(2, 3, 1, 0).flatten(0, 2)).permute(0, 3, 1, 2)
