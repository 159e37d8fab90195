from __future__ import annotations

import shutil
import ssl
from io import StringIO
from pathlib import Path

import pytest

from parked.server.certificate_files import CertificateFiles
from tests.certificates import Pair, make
from tests.server.test_tls import TLSClient
from tests.support import serving


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Pair, Pair]:
    return make(tmp_path, "old"), make(tmp_path, "new")


def shown(server: object) -> bytes | None:
    """The certificate that a new client sees."""
    with TLSClient(server) as client:  # type: ignore[arg-type]
        assert client.ask().status == 200
        certificate: bytes | None = client.sock.getpeercert(binary_form=True)
        return certificate


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


def test_changed_files_count_for_new_connections_and_half_a_change_does_not(
    pairs: tuple[Pair, Pair], tmp_path: Path
) -> None:
    """As in pywsgi, which reads them for each connection; but there half a change is no TLS at all."""
    old, new = pairs
    cert, key = (Path(shutil.copy(path, tmp_path / f"used.{path.suffix}")) for path in old)
    errors = StringIO()
    with serving(certfile=str(cert), keyfile=str(key), error_log=errors) as server:
        assert shown(server) == der(old)
        shutil.copy(new.certificate, cert)
        assert shown(server) == der(old)
        assert errors.getvalue().startswith("certificates: cannot use the new files: ")
        shutil.copy(new.key, key)
        assert shown(server) == der(new)
        key.unlink()
        assert shown(server) == der(new)


def test_files_of_no_use_are_refused_at_once(pairs: tuple[Pair, Pair], tmp_path: Path) -> None:
    old, new = pairs
    with pytest.raises(ssl.SSLError):
        CertificateFiles(print, certfile=str(old.certificate), keyfile=str(new.key))
    with pytest.raises(FileNotFoundError):
        CertificateFiles(print, certfile=str(tmp_path / "none"))


def test_what_a_context_can_be_told_is_passed_on(pairs: tuple[Pair, Pair]) -> None:
    certificate, key = map(str, pairs[0])
    cipher = "ECDHE-ECDSA-AES128-GCM-SHA256"
    files = CertificateFiles(
        print,
        certfile=certificate,
        keyfile=key,
        cert_reqs=ssl.CERT_REQUIRED,
        ca_certs=certificate,
        ciphers=cipher,
    )
    assert files.verify_mode == files._context.verify_mode == ssl.CERT_REQUIRED
    assert files._context.cert_store_stats()["x509"] == 1
    assert cipher in {found["name"] for found in files._context.get_ciphers()}
