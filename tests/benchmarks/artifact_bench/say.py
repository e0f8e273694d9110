"""A word on what is done now."""

import sys


def say(text: str) -> None:
    """On stderr."""
    print(text, file=sys.stderr, flush=True)
