"""CIFAR residual networks with efficient channel attention."""

from torch import nn

from zoo.layers import EfficientChannelAttention, adaptive_kernel
from zoo.models.resnet import BasicBlock, BlockBuilder, CifarResNet
from zoo.registry import register_model

WANG_2020 = "Wang et al. 2020, arXiv:1910.03151, section 3.2"


def adaptive_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A basic block gated before the sum; the kernel follows the width."""
    gate = EfficientChannelAttention(adaptive_kernel(outputs))
    return BasicBlock(inputs, outputs, stride, gate=gate)


def fixed_block(kernel: int, *, place: str = "gate") -> BlockBuilder:
    """Builder of basic blocks with one kernel at all widths; `place` names a gate of the block."""

    def build(inputs: int, outputs: int, stride: int) -> nn.Module:
        return BasicBlock(inputs, outputs, stride, **{place: EfficientChannelAttention(kernel)})

    return build


@register_model(group="attention", paper=WANG_2020, params=278_351, macs=40_819_952)
def eca_resnet_20(*, num_classes: int) -> CifarResNet:
    """resnet_20 with a channel gate of kernel 3 before the sum of each block."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=fixed_block(3))


@register_model(group="attention", paper=WANG_2020, params=472_831, macs=69_133_296)
def eca_resnet_32(*, num_classes: int) -> CifarResNet:
    """resnet_32 with a channel gate of kernel 5 before the sum of each block."""
    return CifarResNet(blocks=(5, 5, 5), num_classes=num_classes, block=fixed_block(5))


@register_model(group="attention", paper=WANG_2020, params=278_351, macs=40_819_952)
def ecanet20_fixed_k3(*, num_classes: int) -> CifarResNet:
    """The network of eca_resnet_20, as an arm of the study of kernels."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=fixed_block(3))


@register_model(group="attention", paper=WANG_2020, params=278_369, macs=40_820_624)
def ecanet20_fixed_k5(*, num_classes: int) -> CifarResNet:
    """eca_resnet_20 with kernel 5."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=fixed_block(5))


@register_model(group="attention", paper=WANG_2020, params=278_387, macs=40_821_296)
def ecanet20_fixed_k7(*, num_classes: int) -> CifarResNet:
    """eca_resnet_20 with kernel 7."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=fixed_block(7))


@register_model(group="attention", paper=WANG_2020, params=278_405, macs=40_821_968)
def ecanet20_fixed_k9(*, num_classes: int) -> CifarResNet:
    """eca_resnet_20 with kernel 9."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=fixed_block(9))


@register_model(group="attention", paper=WANG_2020, params=278_351, macs=40_819_952)
def ecanet20_adaptive(*, num_classes: int) -> CifarResNet:
    """resnet_20 with a channel gate in each block; kernel 3 at widths 16, 32 and 64."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=adaptive_block)


@register_model(group="ablation", paper=WANG_2020, params=278_351, macs=40_819_952)
def eca_resnet_20_pos1(*, num_classes: int) -> CifarResNet:
    """eca_resnet_20 with its gates before the first activation of each block."""
    block = fixed_block(3, place="inner_gate")
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=block)


@register_model(group="ablation", paper=WANG_2020, params=278_351, macs=40_819_952)
def eca_resnet_20_pos3(*, num_classes: int) -> CifarResNet:
    """eca_resnet_20 with its gates between the sum and the last activation of each block."""
    block = fixed_block(3, place="outer_gate")
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=block)
