"""Convolutions as matrix products: torch's own results, in bf16 and under autocast alone."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from torch import nn

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.training.convolution import MatmulConv2d, use_matmul


def run(conv: nn.Module, x: torch.Tensor, *, bf16: bool) -> list[torch.Tensor]:
    """The output, and the gradients of input and weight of the sum of its squares."""
    x = x.clone().requires_grad_()
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = conv(x)
    (out.float() ** 2).sum().backward()
    return [out.detach(), x.grad, conv.weight.grad.clone()]


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_results_are_as_near_to_fp32_as_those_of_torch(stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(128, 24, 3, stride, dilation, dilation, bias=False).to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    use_matmul(fast)
    assert type(fast) is MatmulConv2d
    x = torch.randn(2, 128, 7, 9)
    exact, bf16, found = run(plain, x, bf16=False), run(plain, x, bf16=True), run(fast, x, bf16=True)
    for want, theirs, ours in zip(exact, bf16, found, strict=True):
        assert ours.shape == want.shape
        assert ours.dtype == theirs.dtype
        limit = 1.5 * (theirs - want).norm() + 1e-3 * want.norm()
        assert (ours - want).norm() < limit


def test_outside_autocast_and_in_eval_mode_nothing_changes() -> None:
    plain = nn.Conv2d(128, 8, 3, padding=1, bias=False)
    fast = copy.deepcopy(plain)
    use_matmul(fast)
    x = torch.randn(2, 128, 5, 5)
    assert torch.equal(plain(x), fast(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(x), fast.eval()(x))


def test_names_and_weights_of_a_backbone_stay() -> None:
    backbone = Backbone("resnet18", 16)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    use_matmul(backbone)
    after = backbone.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    fast = [name for name, module in backbone.named_modules() if type(module) is MatmulConv2d]
    assert fast[0] == "layer2.0.conv2"  # Its first convolution has 64 channels.
    assert len(fast) == 11


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(64, 128, 3, padding=1, bias=False),
        nn.Conv2d(128, 128, 1, bias=False),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=0, bias=False),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    use_matmul(conv)
    assert type(conv) is nn.Conv2d
