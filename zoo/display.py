"""Progress of a download: a live bar on a terminal, plain lines elsewhere; on stderr."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn


class TransferDisplay:
    """Shows what `zoo.data.load_dataset` reports: a label, bytes done, bytes in all."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "TransferDisplay":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def __call__(self, label: str, done: int, total: int | None) -> None:
        """Show one report."""
        if label not in self.tasks:
            self.bar.start()
            self.tasks[label] = self.bar.add_task(label, total=total)
            if not self.console.is_terminal:
                size = "" if total is None else f" ({total / 1e6:.0f} MB)"
                self.console.print(f"{label}{size}", soft_wrap=True)
        self.bar.update(self.tasks[label], completed=done, total=total)
