"""Sizes and their forms for a person, once: bytes are told in powers of 1,024, as the kernel counts them."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def size(size_bytes: float | None) -> str:
    """1.5 GiB, 87 MiB; None is unknown."""
    if size_bytes is None:
        return "unknown"
    return f"{size_bytes / GIB:,.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:,.0f} MiB"


def count(value: float | None) -> str:
    """400,000; None is unknown."""
    return "unknown" if value is None else f"{value:,.0f}"


def digits(value: float) -> str:
    """Three digits, or all before the point: 0.293, 46.1, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def some(number: float | None, things: str) -> str:
    """0 reconnects, 1 reconnect; unknown is none."""
    return f"{number or 0:,} {things.removesuffix('s') if number == 1 else things}"
