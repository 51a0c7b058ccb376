"""The torch backbone: torchvision's and timm's names and numbers, at every output stride."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from mixsiam_hub.backends.backbone import Backbone
from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.config import ARCHITECTURES


def awake(backbone: Backbone) -> Backbone:
    """In eval mode, the residual branches switched on and every running statistic its own."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0, generator=generator)
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
    return backbone.eval()


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_timm_at_every_stride(architecture: str, output_stride: int) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra dev")
    ours = awake(Backbone(architecture, output_stride))
    theirs = timm.create_model(architecture, num_classes=0, output_stride=output_stride).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 65, 49, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(ours.features(x), theirs.forward_features(x))


def test_names_are_torchvisions_without_the_classifier() -> None:
    from torchvision.models import resnet18

    expected = {name: t.shape for name, t in resnet18().state_dict().items() if not name.startswith("fc.")}
    assert {name: t.shape for name, t in Backbone("resnet18").state_dict().items()} == expected
    assert len(expected) == 120


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_pooled_vector_is_the_mean_of_the_map(output_stride: int) -> None:
    backbone = awake(Backbone("resnet18", output_stride))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        cells = backbone.features(x)
        assert cells.shape == (2, 512, 64 // output_stride, 64 // output_stride)
        assert torch.allclose(cells.mean(dim=(2, 3)), backbone(x), atol=1e-5)


@pytest.mark.parametrize(("architecture", "output_stride"), [("resnet101", 32), ("resnet18", 4)])
def test_what_is_not_supported_is_refused(architecture: str, output_stride: int) -> None:
    with pytest.raises(ModelError, match="allowed are"):
        Backbone(architecture, output_stride)
