"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.data import Dataset

if TYPE_CHECKING or find_spec("rich") is not None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )
else:
    from zoo.plain_display import Column as BarColumn
    from zoo.plain_display import Column as DownloadColumn
    from zoo.plain_display import Column as ProgressColumn
    from zoo.plain_display import Column as TextColumn
    from zoo.plain_display import Column as TimeElapsedColumn
    from zoo.plain_display import Console, Progress, TaskID

__all__ = ["LiveDisplay", "TextColumn", "TimeElapsedColumn", "TransferDisplay", "load_shown"]

BAR_WIDTH = 24


class LiveDisplay:
    """A bar from the first report to the end of the `with` block, on a terminal only.

    There it stays as it was last, unless `is_left` says otherwise.
    """

    def __init__(self, *columns: ProgressColumn, is_left: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR_WIDTH),
            *columns,
            console=self.console,
            transient=not is_left,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()


class TransferDisplay(LiveDisplay):
    """Shows what `zoo.data.load_dataset` reports: a label, bytes done, bytes in all."""

    def __init__(self) -> None:
        super().__init__(DownloadColumn())
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, label: str, done: int, total: int | None) -> None:
        """Show one report."""
        if label not in self.tasks:
            self.bar.start()
            self.tasks[label] = self.bar.add_task(label, total=total)
            if not self.console.is_terminal:
                size = "" if total is None else f" ({total / 1e6:.0f} MB)"
                self.console.print(f"{label}{size}", soft_wrap=True)
        self.bar.update(self.tasks[label], completed=done, total=total)


def load_shown(name: str, data_dir: "Path | None") -> "Dataset":
    """Load a data set; where that takes a transfer, its progress is shown."""
    from zoo.data import load_dataset

    with TransferDisplay() as display:
        return load_dataset(name, data_dir=data_dir, on_progress=display)
