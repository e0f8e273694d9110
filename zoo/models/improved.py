"""CIFAR residual networks with inverted bottlenecks and 7x7 depthwise convolutions."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from zoo.layers import DropPath, conv_bn, projection
from zoo.models.resnet import CifarResNet
from zoo.registry import register_model

LIU_2022 = "Liu et al. 2022, arXiv:2201.03545, section 2, on He et al. 2015, arXiv:1512.03385"

# (inputs, outputs, stride) -> what a block adds to its shortcut
BranchBuilder = Callable[[int, int, int], nn.Module]


class BranchBlock(nn.Module):
    """Drop paths of a branch while training, add the rest to the shortcut, activate.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        He et al. 2015, arXiv:1512.03385, figure 2, around any `branch` of that shape.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, branch: BranchBuilder) -> None:
        super().__init__()
        self.branch = branch(inputs, outputs, stride)
        self.drop_path = DropPath(0.0)
        self.shortcut = projection(inputs, outputs, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        return self.act(self.drop_path(self.branch(x)) + self.shortcut(x))


def inverted_branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Widen by 4 times the input, mix each map by 7x7, narrow.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        The inverted bottleneck of Sandler et al. 2018, arXiv:1801.04381, figure 3b, with the 7x7
        depthwise kernel of Liu et al. 2022, arXiv:2201.03545, section 2.5; batch norm and ReLU as
        in He et al. 2015, and the hidden width counts from the input.
    """
    hidden = 4 * inputs
    return nn.Sequential(
        nn.Sequential(*conv_bn(inputs, hidden, 1), nn.ReLU()),
        nn.Sequential(*conv_bn(hidden, hidden, 7, stride=stride, groups=hidden), nn.ReLU()),
        conv_bn(hidden, outputs, 1),
    )


def standard_branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """`inverted_branch` with a full 3x3 convolution in place of the depthwise one."""
    hidden = 4 * inputs
    return nn.Sequential(
        nn.Sequential(*conv_bn(inputs, hidden, 1), nn.ReLU()),
        nn.Sequential(*conv_bn(hidden, hidden, 3, stride=stride), nn.ReLU()),
        conv_bn(hidden, outputs, 1),
    )


def plain_branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """`inverted_branch` without its first convolution, so that the inputs are mixed as they are."""
    return nn.Sequential(
        nn.Sequential(*conv_bn(inputs, inputs, 7, stride=stride, groups=inputs), nn.ReLU()),
        conv_bn(inputs, outputs, 1),
    )


def branch_resnet(*, num_classes: int, branch: BranchBuilder, drop_path: float) -> CifarResNet:
    """The shape of resnet_20 with another branch; drop path rises to `drop_path`."""
    return CifarResNet(
        blocks=(3, 3, 3),
        num_classes=num_classes,
        block=partial(BranchBlock, branch=branch),
        drop_path=drop_path,
    )


@register_model(group="attention", paper=LIU_2022, params=174_868, macs=34_191_616, own_design=True)
def improved_resnet20_convnext(*, num_classes: int, drop_path: float = 0.05) -> CifarResNet:
    """resnet_20 with inverted 7x7 depthwise blocks; drop path rises to `drop_path`."""
    return branch_resnet(num_classes=num_classes, branch=inverted_branch, drop_path=drop_path)


@register_model(group="ablation", paper=LIU_2022, params=174_868, macs=34_191_616, own_design=True)
def improved_resnet20_convnext_no_droppath(*, num_classes: int) -> CifarResNet:
    """improved_resnet20_convnext without drop path."""
    return branch_resnet(num_classes=num_classes, branch=inverted_branch, drop_path=0.0)


@register_model(
    group="ablation", paper=LIU_2022, params=1_887_892, macs=301_652_224, own_design=True
)
def improved_resnet20_convnext_std_conv(
    *, num_classes: int, drop_path: float = 0.05
) -> CifarResNet:
    """improved_resnet20_convnext with full 3x3 convolutions in place of 7x7 depthwise ones."""
    return branch_resnet(num_classes=num_classes, branch=standard_branch, drop_path=drop_path)


@register_model(group="ablation", paper=LIU_2022, params=38_644, macs=6_721_792, own_design=True)
def improved_resnet20_convnext_no_inverted(
    *, num_classes: int, drop_path: float = 0.05
) -> CifarResNet:
    """improved_resnet20_convnext without the convolutions that widen."""
    return branch_resnet(num_classes=num_classes, branch=plain_branch, drop_path=drop_path)
