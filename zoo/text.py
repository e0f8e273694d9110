"""Columns of plain text, and text that fits into them."""

from collections.abc import Container, Sequence


def aligned(rows: Sequence[Sequence[str]], *, right: Container[int]) -> list[list[str]]:
    """Pad each column to its widest cell; those whose positions are in `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]


def columns(rows: Sequence[Sequence[str]], *, right: Container[int]) -> list[str]:
    """One line for each row, its cells aligned and two spaces apart."""
    return ["  ".join(row).rstrip() for row in aligned(rows, right=right)]


def counted(number: int, noun: str) -> str:
    """1 and "image" -> "1 image"; 2 -> "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Somebody else's text as part of a line: "?" for what ends one or steers a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
