"""Estimates in the table of docs/findings.md."""

from __future__ import annotations

Row = tuple[str, str, str, str]
"""What was measured, what came out, of how many, what is reported of other models."""


def percent(estimate: dict, sign: bool = False) -> str:
    """A share with its interval."""
    return _with_interval(estimate, 100, "+.0f" if sign else ".1f", " %")


def number(estimate: dict, digits: int = 1) -> str:
    """A number with its interval."""
    return _with_interval(estimate, 1, f".{digits}f", "")


def _with_interval(estimate: dict, scale: int, form: str, unit: str) -> str:
    value = f"**{scale * estimate['value']:{form}}{unit}**"
    if estimate["low"] is None:
        return value
    return f"{value} ({scale * estimate['low']:{form}} to {scale * estimate['high']:{form}})"
