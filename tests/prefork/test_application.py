"""The application is loaded into a process in which what it imports cooperates."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.commands import run
from tests.support import CHECKOUT, PATIENCE_S

LOAD = """
import importlib.metadata, sys
looks = []
find = importlib.metadata.MetadataPathFinder.find_distributions
importlib.metadata.MetadataPathFinder.find_distributions = lambda *args: looks.append(args) or find(*args)
before = importlib.metadata.entry_points
from parked.prefork import application
assert application.load("wsgiref.simple_server:demo_app")
import plugin, socket
assert importlib.metadata.entry_points is before
print(len(looks), plugin.heard, socket.socket.__module__)
"""


def test_all_packages_are_read_once_for_what_they_have_for_gevent(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text("heard = []\ndef hear(event):\n    heard.append(event.module_name)\n")
    package = tmp_path / "plugin-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[gevent.plugins.monkey.did_patch_module]\none = plugin:hear\n")
    path = os.pathsep.join((str(CHECKOUT), str(tmp_path)))
    done = run([sys.executable, "-c", LOAD], env=os.environ | {"PYTHONPATH": path}, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    looks, *heard, module = done.stdout.split()
    assert (int(looks), module) == (1, "gevent._socket3")
    assert "'socket'," in heard
