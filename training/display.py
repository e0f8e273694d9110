"""Progress for people: a live bar on a terminal, plain lines elsewhere; all on stderr."""

import time
from typing import TYPE_CHECKING

from zoo.display import LiveDisplay, TextColumn

if TYPE_CHECKING:
    from training.loop import Progress

LINE_SECONDS = 60.0  # between two plain lines within an epoch


class TrainingDisplay(LiveDisplay):
    """Shows what `training.train` reports."""

    def __init__(self) -> None:
        super().__init__(TextColumn("{task.fields[text]}"), is_left=False)  # its lines say all
        self.task = self.bar.add_task("", text="", visible=False)
        self.printed = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        """Show one report."""
        if progress.epoch == 0:
            self._line(
                f"predicted: {duration(progress.seconds_left)} for the steps and evaluations of "
                f"this run on this machine, about {progress.images_per_s:.0f} img/s"
            )
        elif progress.metrics is not None:
            self._line(epoch_line(progress))
        elif self.console.is_terminal:
            self.bar.start()
            self.bar.update(
                self.task,
                visible=True,
                description=f"epoch {progress.epoch}/{progress.epochs}",
                completed=progress.step,
                total=progress.steps,
                text=step_text(progress),
            )
        elif time.monotonic() - self.printed >= LINE_SECONDS:
            where = (
                f"epoch {progress.epoch}/{progress.epochs} step {progress.step}/{progress.steps}"
            )
            self._line(f"{where}  {step_text(progress)}")

    def note(self, text: str) -> None:
        """Show what happened beside the steps."""
        self._line(text)

    def _line(self, text: str) -> None:
        self.printed = time.monotonic()
        self.console.print(text, soft_wrap=True)


def step_text(progress: "Progress") -> str:
    """Speed, loss, accuracy and time left within an epoch."""
    loss = "" if progress.loss is None else f"  loss {progress.loss:.3f}"
    top1 = "" if progress.top1 is None else f"  train {progress.top1:.2%}"
    left = duration(progress.seconds_left)
    return f"{progress.images_per_s:.0f} img/s{loss}{top1}  {left} left"


def epoch_line(progress: "Progress") -> str:
    """The outcome of an epoch in one line."""
    metrics = progress.metrics
    assert metrics is not None
    held_out = "" if metrics.val_top1 is None else f"  val {metrics.val_top1:.2%}"
    return (
        f"epoch {progress.epoch}/{progress.epochs}  {metrics.images_per_s:.0f} img/s  "
        f"loss {metrics.train_loss:.3f}  train {metrics.train_top1:.2%}{held_out}  "
        f"{duration(progress.seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """1:02:03 or 2:03, rounded to the second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
