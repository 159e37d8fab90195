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
