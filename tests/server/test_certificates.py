from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from parked.server.certificates import CertificateError, server_context
from tests.certificates import Pair, make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return make(folder, "server")


def test_versions_ciphers_and_what_is_asked_of_clients_are_as_set(pair: Pair) -> None:
    certificate, key = map(str, pair)
    plain = server_context(certificate, key)
    assert plain.minimum_version == ssl.TLSVersion.TLSv1_2
    assert plain.verify_mode == ssl.CERT_NONE
    strict = server_context(
        certificate, key, "", certificate, "required", "1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"
    )
    assert strict.verify_mode == ssl.CERT_REQUIRED
    older = [cipher["name"] for cipher in strict.get_ciphers() if not cipher["name"].startswith("TLS_")]
    assert older == ["ECDHE-ECDSA-AES128-GCM-SHA256"]
    assert server_context(certificate, key, minimum="1.3").minimum_version == ssl.TLSVersion.TLSv1_3


def test_a_key_may_be_in_the_certificates_file_or_encrypted(pair: Pair, folder: Path) -> None:
    both = folder / "both.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    server_context(str(both))
    encrypted, password = folder / "encrypted.key", folder / "password"
    command = ["openssl", "ec", "-in", str(pair.key), "-aes128", "-passout", "pass:secret", "-out"]
    subprocess.run([*command, str(encrypted)], check=True, capture_output=True)
    password.write_text("secret\nanother line\n")
    server_context(str(pair.certificate), str(encrypted), str(password))
    with pytest.raises(CertificateError, match=r"encrypted\.key is encrypted: it needs a password file"):
        server_context(str(pair.certificate), str(encrypted))
    password.write_text("wrong\n")
    with pytest.raises(CertificateError, match=r"no key in .*encrypted\.key, or not by this password$"):
        server_context(str(pair.certificate), str(encrypted), str(password))


def test_what_does_not_work_is_one_line_with_the_file(pair: Pair, folder: Path) -> None:
    certificate, key = map(str, pair)
    other = make(folder, "other")
    nonsense = folder / "nonsense"
    nonsense.write_text("nonsense")
    for arguments, reason in [
        ((str(folder / "none"),), "cannot read .*/none: No such file"),
        ((certificate, str(folder)), "cannot read .*: Is a directory"),
        ((certificate, str(other.key)), "key values mismatch"),
        ((str(nonsense), key), "cannot use .*nonsense and .*: no certificate in .*nonsense$"),
        ((key,), "no certificate in .*server.key$"),
        ((certificate,), "cannot use .*server.pem: no key in .*server.pem$"),
        ((certificate, str(nonsense)), "no key in .*nonsense$"),
        ((certificate, key, str(folder / "none")), "cannot read .*/none"),
        ((certificate, key, "", str(nonsense), "required"), "cannot use .*nonsense"),
        ((certificate, key, "", str(folder / "none"), "required"), "cannot use .*/none: No such file"),
        ((certificate, key, "", "", "none", "1.2", "NO-SUCH"), "knows no cipher of 'NO-SUCH'"),
    ]:
        with pytest.raises(CertificateError, match=reason) as caught:
            server_context(*arguments)
        assert "\n" not in str(caught.value)
