"""Cross-stage partial networks: part of the maps goes around each stage."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from zoo.layers import DropPath, conv_bn
from zoo.models.resnet import BasicBlock
from zoo.registry import register_model

WANG_2020 = "Wang et al. 2020, arXiv:1911.11929, section 3.1"


class PartialStage(nn.Module):
    """A branch of basic blocks beside a bare 1x1, joined by a third.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        Wang et al. 2020, arXiv:1911.11929, section 3.1, on basic blocks. The paper splits the
        channels; here two 1x1 projections see all of them, each to half of the outputs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, blocks: int) -> None:
        super().__init__()
        half = outputs // 2
        self.bypass = _pointwise(inputs, half, stride)
        self.branch = nn.Sequential(
            _pointwise(inputs, half, stride),
            *(BasicBlock(half, half, 1) for _ in range(blocks)),
            _pointwise(half, half, 1),
        )
        self.join = _pointwise(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Join the branch and what went around it."""
        return self.join(torch.cat((self.branch(x), self.bypass(x)), dim=1))


class CspResNet(nn.Module):
    """A stem that quarters the images, partial stages, mean over the map, one linear layer.

    Stage i has `blocks[i]` blocks and `widths[i]` outputs; each stage but the first halves the map.

    Shapes:
        (B, 3, H, W) -> (B, K).
    Source:
        Wang et al. 2020, arXiv:1911.11929, section 3.1; stem of He et al. 2015, arXiv:1512.03385,
        table 1.

    Note:
        At 32x32 the last map is one pixel, so a batch of one image cannot train.
    """

    def __init__(self, *, blocks: Sequence[int], widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *conv_bn(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
        )
        self.stages = nn.Sequential(*_stages(64, widths, blocks))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.stages(self.stem(x))
        return self.head(x.mean((2, 3)))  # (B, K)


def _pointwise(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride), nn.ReLU())


def _stages(inputs: int, widths: Sequence[int], blocks: Sequence[int]) -> Iterator[PartialStage]:
    for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
        yield PartialStage(inputs, width, 2 if stage > 0 else 1, blocks=depth)
        inputs = width


@register_model(group="hybrid", paper=WANG_2020, params=20_685_988, macs=1_092_390_912)
def cspresnet50(*, num_classes: int, drop_path: float = 0.0) -> nn.Module:
    """CSPResNet-50 as in timm, with a 3x3 stem of stride 1 and no pooling."""
    import timm

    # A last norm of each block that starts at zero would stop all gradients behind it at step 0.
    model = timm.create_model(
        "cspresnet50",
        num_classes=num_classes,
        zero_init_last=False,
        drop_path_rate=DropPath(drop_path).rate,  # timm takes any number, ours refuses
    )
    model.set_submodule("stem.conv1.conv", nn.Conv2d(3, 64, 3, padding=1, bias=False))
    model.set_submodule("stem.pool", nn.Identity())
    return model


@register_model(group="hybrid", paper=WANG_2020, params=25_208_356, macs=85_348_352)
def cspresnet50_asrun(*, num_classes: int) -> CspResNet:
    """The network that the first study trained under this name: basic blocks, ImageNet's stem."""
    return CspResNet(blocks=(3, 4, 6, 3), widths=(128, 256, 512, 1024), num_classes=num_classes)
