"""`python -m parked.loadtest.command.locust`: as `python -m locust`, and begins sooner.

To import Locust is to have gevent patch Python's modules (`locust/__init__.py`).
"""

from __future__ import annotations

import runpy

from parked.shared.patching import packages_read_once

if __name__ == "__main__":
    with packages_read_once():
        import locust  # noqa: F401
    runpy.run_module("locust", run_name="__main__", alter_sys=True)
