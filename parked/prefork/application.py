"""The application by its name: MODULE:CALLABLE, imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gevent import monkey

from parked.prefork.settings import EXIT_APP
from parked.prefork.signals import StopRequested
from parked.shared.patching import packages_read_once


class StartError(Exception):
    """Why the server cannot start: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def load(name: str) -> Callable[..., Any]:
    """Import MODULE:CALLABLE, or call MODULE:FACTORY(); the current directory is on Python's path for it.

    What it imports (sockets, locks, database drivers) is made to cooperate before, so that a request that
    waits lets others run.

    :raises StartError: with the module and the error.
    """
    try:
        with packages_read_once():
            monkey.patch_all()
    except ImportError as error:  # Python's own modules, which the user that we became may not read
        raise StartError(f"cannot go on as this user: {error}", EXIT_APP) from error
    module_name, _, attributes = name.removesuffix("()").partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
        if name.endswith("()"):
            found = found()
    except StopRequested:
        raise
    except SystemExit as error:
        raise StartError(f"cannot import {name}: it exits ({error.code})", EXIT_APP) from error
    except BaseException as error:  # a GreenletExit or an interrupt of its own is no better
        is_lost = isinstance(error, ModuleNotFoundError)
        where = f"; looked for in {Path.cwd()} (see --chdir) and in {sys.prefix}" if is_lost else ""
        raise StartError(f"cannot import {name}: {type(error).__name__}: {error}{where}", EXIT_APP) from error
    if not callable(found):
        raise StartError(f"cannot import {name}: it is not callable", EXIT_APP)
    application: Callable[..., Any] = found
    return application
