"""The recipe `strong`: the larger a network, the more it is held back from learning by heart."""

from dataclasses import replace

from training.recipe import Recipe
from training.studies import STUDY

# Twice the epochs of the first study, an average of the weights, label smoothing, no decay on norms
# and biases. Values from publications, none of them tried here; no run recorded yet.
# - The best strength of RandAugment grows with the width of a network: Cubuk et al. 2019,
#   arXiv:1909.13719, section 4. Below a million parameters a network cannot learn its images by
#   heart, so they are not mixed.
# - From 5M: procedure A1 of Wightman et al. 2021, arXiv:2110.00476, table 2, for ResNet-50.
# - From 15M: Touvron et al. 2020, arXiv:2012.12877, table 9, and Liu et al. 2022,
#   arXiv:2201.03545, table 5, with a drop path for 50,000 images instead of a million.
# Between these points we chose. Networks whose builders take no drop path, such as those as run by
# the first study, go without.
UP_TO_500K = replace(
    STUDY,
    name="strong",
    epochs=600,
    batch_size=256,
    nesterov=True,
    decay_norms_and_biases=False,
    label_smoothing=0.1,
    ema_decay=0.999,
    drop_path=0.0,
    augment="rand",
    rand_ops=1,
    rand_magnitude=4,
    erase_p=0.0,
)
UP_TO_1M = replace(UP_TO_500K, rand_magnitude=7)
UP_TO_5M = replace(
    UP_TO_1M,
    rand_ops=2,
    drop_path=0.05,
    erase_p=0.1,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    mix_p=0.5,
)
UP_TO_15M = replace(UP_TO_5M, mix_p=1.0)
LARGER = replace(UP_TO_15M, drop_path=0.2, rand_magnitude=9, erase_p=0.25, mixup_alpha=0.8)
TIERS = (
    (500_000, UP_TO_500K),
    (1_000_000, UP_TO_1M),
    (5_000_000, UP_TO_5M),
    (15_000_000, UP_TO_15M),
)
CLIP_NORM = 1.0  # for networks trained with AdamW: Dai et al. 2021, arXiv:2106.04803, appendix A.2


def strong_for(params: int, *, study: Recipe = STUDY) -> Recipe:
    """The recipe of a network with `params` parameters that the first study trains as `study`.

    The optimiser, its rate and its decay are those of the study; with AdamW its batch too, and all
    gradients together are clipped.
    """
    regularised = next((recipe for limit, recipe in TIERS if params < limit), LARGER)
    if study.optimizer == "sgd":
        return replace(regularised, weight_decay=study.weight_decay)
    return replace(
        regularised,
        batch_size=study.batch_size,
        optimizer=study.optimizer,
        peak_lr=study.peak_lr,
        nesterov=False,
        warmup_epochs=study.warmup_epochs,
        weight_decay=study.weight_decay,
        clip_norm=CLIP_NORM,
    )
