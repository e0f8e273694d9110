"""Loss and accuracy of a run, drawn."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from zoo.files import write_atomic

BLUE, ORANGE = "#0072B2", "#D55E00"  # told apart by colour-blind readers


def draw_curves(metrics: Sequence[Mapping[str, float | None]], path: Path) -> None:
    """Write a PNG of the training loss and of both accuracies over the epochs."""
    epochs = [line["epoch"] for line in metrics]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, top1 = figure.subplots(1, 2)
    loss.plot(epochs, [line["train_loss"] for line in metrics], color=BLUE, marker=".")
    loss.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    top1.plot(epochs, [line["train_top1"] for line in metrics], color=BLUE, marker=".")
    top1.text(1, 0.02, "training, augmented", color=BLUE, ha="right", transform=top1.transAxes)
    held_out = [line["val_top1"] for line in metrics]
    if None not in held_out:
        top1.plot(epochs, held_out, color=ORANGE, marker=".")
        top1.text(1, 0.09, "validation", color=ORANGE, ha="right", transform=top1.transAxes)
    top1.set(xlabel="epoch", ylabel="top-1", ylim=(0, None))
    top1.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, top1):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())
