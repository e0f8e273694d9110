"""The settings of the two studies and of the CoAtNet plan, network by network."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from training.recipe import Recipe

# The first study: 300 epochs, batch 1,024 on any number of processes, every parameter decayed. SGD
# for residual networks. What the study reports for its 21 networks is in `zoo-list`. It names two
# alternatives, --set schedule=step and --set label_smoothing=0.1, and tried --set weight_decay=0.1
# to 0.2 with --set dropout=0.3 to 0.5.
STUDY = Recipe(name="study", epochs=300, batch_size=1024, peak_lr=0.1, weight_decay=5e-4)
STUDY_MOBILE = replace(STUDY, weight_decay=4e-5)
STUDY_ADAMW = replace(STUDY, optimizer="adamw", peak_lr=1e-3, weight_decay=0.05, warmup_epochs=10.0)
STUDY_CONVNEXT = replace(STUDY_ADAMW, peak_lr=4e-3, warmup_epochs=20.0)
STUDY_SMALL_MIXER = replace(STUDY_ADAMW, weight_decay=0.01)

# By the file that defines a network, ours or timm's; any other takes STUDY. The study itself gives
# ghostnet, convnext, coatnet, coatnet_cifar, cspnet, resnest, hornet, mixer and segnext. Those that
# it does not have follow their kind: mobile networks as ghostnet, networks with layer norm or large
# depthwise kernels as segnext.
STUDY_BY_FAMILY: Mapping[str, Recipe] = MappingProxyType(
    {
        **dict.fromkeys(("ghostnet", "mobilenetv3", "efficientnet"), STUDY_MOBILE),
        **dict.fromkeys(("coatnet", "coatnet_cifar", "cspnet", "resnest", "hornet"), STUDY_ADAMW),
        **dict.fromkeys(("mixer", "mlp_mixer", "segnext", "lsknet", "edgenext"), STUDY_ADAMW),
        **dict.fromkeys(("vit", "vision_transformer", "deit"), STUDY_ADAMW),
        "convnext": STUDY_CONVNEXT,
    }
)
STUDY_BY_NAME: Mapping[str, Recipe] = MappingProxyType(
    dict.fromkeys(("mlp_mixer_tiny", "mlp_mixer_tiny_asrun", "mlp_mixer_nano"), STUDY_SMALL_MIXER)
)

# The plan for CoAtNet-CIFAROpt. Where it leaves a range we took the rate of the first study, the
# longest training and, for its 27M parameters, the strongest regularisation but the least drop
# path; alphas as in Touvron et al. 2020, arXiv:2012.12877, table 9. No run recorded yet.
COATNET_OPT = replace(
    STUDY_ADAMW,
    name="coatnet_opt",
    batch_size=256,
    label_smoothing=0.1,
    drop_path=0.1,
    augment="auto",
    erase_p=0.0,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)

# The second study with all of its steps, on the networks of its ablations. Backwards, the steps
# before: --set label_smoothing=0; --set jitter=0 --set flip_p=0 --set vertical_flip_p=0 --set
# alternates_plain=false; resnet_18_ca for resnet_18_ca_elu; --set schedule=constant. Not stated, so
# ours: SGD with momentum and decay, batch 128 and smoothing by 0.1. No run recorded yet.
SECOND_STUDY = Recipe(
    name="second_study",
    epochs=15,
    batch_size=128,
    peak_lr=0.1,
    schedule="halving",
    label_smoothing=0.1,
    crop_padding=0,
    vertical_flip_p=0.5,
    augment="none",
    jitter=0.2,
    erase_p=0.0,
    alternates_plain=True,
    normalisation="imagenet",
)

# zoo-train res2net_ca_v1b --recipe second_study --compile
# Its main table. No run recorded yet.
SECOND_STUDY_TABLE = replace(SECOND_STUDY, epochs=50)

# zoo-train vit_tiny --recipe second_study --compile; the same of edgenext_small and edgenext_base
# Epochs, batch and rate are stated; no halving every five epochs lasts that long, so the fall is
# ours. For the 50 epochs of the main table: --epochs 50. No run recorded yet.
SECOND_STUDY_VIT = replace(SECOND_STUDY, epochs=200, peak_lr=0.01, schedule="cosine")
SECOND_STUDY_EDGENEXT = replace(SECOND_STUDY_VIT, epochs=300, batch_size=256)
SECOND_STUDY_EDGENEXT_BASE = replace(SECOND_STUDY_EDGENEXT, batch_size=32, peak_lr=1e-3)


def study_for(name: str, family: str) -> Recipe:
    """The first study's setting of a network."""
    return STUDY_BY_NAME.get(name, STUDY_BY_FAMILY.get(family, STUDY))


def second_study_for(name: str, family: str) -> Recipe:
    """The second study's setting of a network; those that it does not have are as its main table.

    The ablations are the variants of resnet_18_ca.
    """
    if name == "edgenext_base":
        return SECOND_STUDY_EDGENEXT_BASE
    if family == "edgenext":
        return SECOND_STUDY_EDGENEXT
    if family in ("vit", "vision_transformer", "deit"):
        return SECOND_STUDY_VIT
    return SECOND_STUDY if name.startswith("resnet_18_ca") else SECOND_STUDY_TABLE
