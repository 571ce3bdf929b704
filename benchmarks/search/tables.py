"""Rows of text as a table."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; each column as wide as its widest cell."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
