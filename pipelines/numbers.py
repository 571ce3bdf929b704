"""Figures as people write them."""

from __future__ import annotations


def significant(value: float, digits: int) -> str:
    """Return a finite figure with so many significant digits, however large it is without an exponent: "14000"."""
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text else text
