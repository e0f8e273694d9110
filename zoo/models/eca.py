"""CIFAR residual networks with efficient channel attention."""

from torch import nn

from zoo.layers import EfficientChannelAttention, adaptive_kernel
from zoo.models.resnet import BasicBlock, CifarResNet
from zoo.registry import register_model


def adaptive_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A basic block gated before the sum; the kernel follows the width."""
    gate = EfficientChannelAttention(adaptive_kernel(outputs))
    return BasicBlock(inputs, outputs, stride, gate=gate)


@register_model(paper="Wang et al. 2020, arXiv:1910.03151, section 3.2", params=278_351)
def ecanet20_adaptive(*, num_classes: int) -> CifarResNet:
    """resnet_20 with a channel gate in each block; kernel 3 at widths 16, 32 and 64."""
    return CifarResNet(depth=3, num_classes=num_classes, block=adaptive_block)
