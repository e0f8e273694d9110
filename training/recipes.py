"""The named recipes."""

from types import MappingProxyType

from training.recipe import Recipe
from zoo.errors import ZooError, nearest

# zoo-train resnet_20 --recipe study --compile
# The first study's settings, batch 1,024 on any number of processes. No run of ours at 300 epochs
# has been recorded yet.
STUDY = Recipe(name="study", epochs=300, batch_size=1024, peak_lr=0.1, weight_decay=5e-4)

# zoo-train resnet_20 --recipe quick --compile
# One cycle, up and down, with the light augmentation that a small network can use in few epochs.
# 60.95% top-1 with one seed, in 16 minutes on two threads of an AMD EPYC (bench_results/runs/).
QUICK = Recipe(
    name="quick",
    epochs=15,
    batch_size=128,
    peak_lr=0.3,
    nesterov=True,
    schedule="linear",
    warmup_epochs=3.0,
    trivial_augment=False,
    erase_p=0.0,
)

# zoo-train resnet_20 --recipe smoke --dataset cifar100-mini
# Seconds, for tests; fp32 everywhere, so that its losses are the same on every CPU.
SMOKE = Recipe(name="smoke", epochs=2, batch_size=200, peak_lr=0.05, precision="fp32")

RECIPES = MappingProxyType({recipe.name: recipe for recipe in (STUDY, QUICK, SMOKE)})


def named_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ZooError: there is none; the message holds the nearest.
    """
    if name not in RECIPES:
        raise ZooError(f"no recipe named {name!r}: {nearest(name, RECIPES)}")
    return RECIPES[name]
