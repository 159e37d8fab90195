"""Certificates that tests make for themselves, by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """PEM files."""

    certificate: Path
    key: Path


def make(folder: Path, name: str, subject: str = "/CN=localhost", signer: Pair | None = None) -> Pair:
    """A certificate and its key: of its own authority, or signed by another."""
    made = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(made.key), "-out", str(made.certificate), "-days", "2", "-subj", subject]
    if signer is not None:
        command += ["-CA", str(signer.certificate), "-CAkey", str(signer.key)]
    subprocess.run(command, check=True, capture_output=True)
    return made
