from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from parked.server import deadlines, parking


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts are looked at fifty times a second, so that tests need not wait for the next look."""
    monkeypatch.setattr(parking, "TICK_S", 0.02)
    monkeypatch.setattr(deadlines, "GRAIN_S", 0.02)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder: Path = tmp_path_factory.mktemp("tls")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"],
        check=True,
        capture_output=True,
    )
    return cert, key
