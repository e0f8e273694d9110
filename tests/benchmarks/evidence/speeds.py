"""How long trainings will take: a first guess by the chip's memory, then what was measured."""

import statistics
from collections.abc import Iterable

from profiling.evidence import OK, Step

# Images a second of one H200 in bf16, compiled, batch 1,024, from the bytes that a training image
# moves (see train_bench/roofline.py) at a fifth of its copy bandwidth and its MACs at 40 TMAC/s; of
# resnet_20 and improved_resnet20_convnext, measured. No network is taken to be faster than 300,000.
GUESSES = {
    "ghost_resnet_20": 150_000,
    "resnet_20": 200_000,
    "eca_resnet_20": 200_000,
    "ecanet20_adaptive": 200_000,
    "ecanet20_fixed_k3": 200_000,
    "segnext_mscan_tiny": 150_000,
    "ghostnet_100": 130_000,
    "eca_resnet_32": 130_000,
    "resnet_32": 130_000,
    "ghost_resnet_32": 95_000,
    "improved_resnet20_convnext": 70_000,
    "resnet_56": 74_000,
    "mlp_mixer_tiny": 79_000,
    "coatnet_cifar_opt": 58_000,
    "convnext_tiny": 57_000,
    "coatnet_cifar_opt_large_stem": 56_000,
    "coatnet_0": 31_000,
    "hornet_tiny": 29_000,
    "cspresnet50": 20_000,
    "resnest50d": 8_200,
    "mlp_mixer_b16": 2_400,
}
SLOWEST_GUESS = 2_000  # of a network that is not listed
ONCE_S = 60.0  # start, compilation, test images
CPU_IMAGES_PER_S = 150  # of any network, uncompiled: only for a rehearsal


class Speeds:
    """Predicts trainings; what was measured in this folder goes before any guess."""

    def __init__(self, steps: Iterable[Step], *, device: str) -> None:
        self.device = device
        self.measured: dict[str, float] = {}
        once = []
        for step in steps:
            model, speed = step.facts.get("model"), step.facts.get("images_per_s")
            if isinstance(model, str) and isinstance(speed, int | float) and speed > 0:
                self.measured[model] = float(speed)
            if step.status == OK and "once_s" in step.facts:
                once.append(float(step.facts["once_s"]))
        known = [speed / GUESSES[name] for name, speed in self.measured.items() if name in GUESSES]
        self.chip = statistics.median(known) if known else 1.0
        self.once_s = statistics.median(once) if once else (ONCE_S if device == "cuda" else 15.0)

    def images_per_s(self, model: str) -> float:
        """Training images a second."""
        if model in self.measured:
            return self.measured[model]
        if self.device == "cpu":
            return CPU_IMAGES_PER_S
        return self.chip * GUESSES.get(model, SLOWEST_GUESS)

    def training_s(self, model: str, images: int) -> float:
        """Seconds of a command that trains on so many images in all."""
        return self.once_s + images / self.images_per_s(model)
