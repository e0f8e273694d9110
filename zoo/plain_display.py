"""What our displays need of rich where it is not installed: plain lines, and no bar."""

import sys

TaskID = int


class Console:
    """Prints lines to stderr, as if it were no terminal."""

    is_terminal = False

    def __init__(self, **_: object) -> None:
        pass

    def print(self, text: str, *, soft_wrap: bool = True) -> None:
        """Print one line."""
        print(text, file=sys.stderr, flush=True)


class Column:
    """A column of a bar that nobody sees."""

    def __init__(self, *_: object, **__: object) -> None:
        pass


class Progress:
    """A bar that nobody sees."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def start(self) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""

    def add_task(self, *_: object, **__: object) -> int:
        """Name a task that nobody sees."""
        return 0

    def update(self, *_: object, **__: object) -> None:
        """Show nothing."""
