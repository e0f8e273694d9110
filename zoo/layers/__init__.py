"""Blocks that the families are built from, one file for each kind."""

from zoo.layers.attention import OffsetBias as OffsetBias
from zoo.layers.attention import SelfAttention as SelfAttention
from zoo.layers.attention import TransformerBlock as TransformerBlock
from zoo.layers.basic import DropPath as DropPath
from zoo.layers.basic import LayerNorm2d as LayerNorm2d
from zoo.layers.basic import LayerScale as LayerScale
from zoo.layers.basic import Mlp as Mlp
from zoo.layers.basic import conv_bn as conv_bn
from zoo.layers.basic import drop_path_rates as drop_path_rates
from zoo.layers.basic import pooled_projection as pooled_projection
from zoo.layers.basic import projection as projection
from zoo.layers.channel import EfficientChannelAttention as EfficientChannelAttention
from zoo.layers.channel import SqueezeExcite as SqueezeExcite
from zoo.layers.channel import adaptive_kernel as adaptive_kernel
from zoo.layers.coordinate import CoordAttention as CoordAttention
from zoo.layers.coordinate import mean_l1_pool as mean_l1_pool
from zoo.layers.coordinate import mean_l2_pool as mean_l2_pool
from zoo.layers.coordinate import mean_max_pool as mean_max_pool
from zoo.layers.coordinate import mean_pool as mean_pool
from zoo.layers.ghost import GhostModule as GhostModule
from zoo.layers.spatial import GatedConv as GatedConv
from zoo.layers.spatial import LargeSelectiveKernel as LargeSelectiveKernel
from zoo.layers.spatial import MultiScaleAttention as MultiScaleAttention
from zoo.layers.split import SplitAttention as SplitAttention
