"""Where this code lies: in a checkout, also one installed with `pip install -e`, or in site-packages."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: What holds the package `parked`.
PROJECT: Final = Path(__file__).resolve().parents[2]
IS_CHECKOUT: Final = (PROJECT / "pyproject.toml").is_file()


def demo() -> str:
    """The built-in application, as `parked-server --app` takes it; pyproject.toml says where it goes."""
    return "app.wsgi:application" if IS_CHECKOUT else "parked.demo.wsgi:application"
