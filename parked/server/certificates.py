"""A TLS context for servers, from files.

Made once, before there are several processes: the keys of session tickets are the context's, and so a client
can resume its session with any worker that has inherited it.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

from gevent.ssl import SSLContext

#: What a client is asked for, by the names of the setting; numbers as `ssl` and gunicorn have them.
VERIFY: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
    "0": ssl.CERT_NONE,
    "1": ssl.CERT_OPTIONAL,
    "2": ssl.CERT_REQUIRED,
}
MINIMUM: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CertificateError(Exception):
    """Files or names that no TLS comes of, in a line."""


def server_context(
    certificate: str,
    key: str = "",
    password_file: str = "",
    authorities: str = "",
    verify: str = "none",
    minimum: str = "1.2",
    ciphers: str = "",
) -> Any:
    """A `gevent.ssl.SSLContext`.

    :param certificate: PEM file of the server's certificate and those that lead to its authority.
    :param key: PEM file of its private key; empty if that is in *certificate*.
    :param password_file: whose first line decrypts the key; empty if it is not encrypted.
    :param authorities: PEM file of the authorities of clients' certificates.
    :param verify: one of `VERIFY`.
    :param minimum: one of `MINIMUM`: the oldest version that is spoken.
    :param ciphers: of TLS 1.2, in OpenSSL's words; empty for OpenSSL's choice.
    :raises CertificateError: these do not work together.
    """
    context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MINIMUM[minimum]
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_key(context, certificate, key, password_file)
    context.verify_mode = VERIFY[verify]
    if authorities:
        try:
            context.load_verify_locations(authorities)
        except (OSError, ValueError) as error:
            raise CertificateError(f"cannot use {authorities}: {_reason(error)}") from error
    if ciphers:
        try:
            context.set_ciphers(ciphers)
        except ssl.SSLError:
            raise CertificateError(f"OpenSSL knows no cipher of {ciphers!r}") from None
    return context


def _load_key(context: SSLContext, certificate: str, key: str, password_file: str) -> None:
    def password() -> str:
        if not password_file:  # OpenSSL would ask at the terminal
            raise CertificateError(f"{key or certificate} is encrypted: it needs a password file")
        return Path(password_file).read_text("utf-8").partition("\n")[0]

    for name in filter(None, (certificate, key, password_file)):
        try:
            Path(name).open("rb").close()  # OpenSSL does not say which it was
        except OSError as error:
            raise CertificateError(f"cannot read {name}: {error.strerror}") from error
    try:
        context.load_cert_chain(certificate, key or None, password)
    except (OSError, ValueError) as error:
        both = f"{certificate} and {key}" if key else certificate
        is_unsaid = isinstance(error, ssl.SSLError) and not error.reason
        reason = _what_lacks(certificate, key, password_file) if is_unsaid else _reason(error)
        raise CertificateError(f"cannot use {both}: {reason}") from error


def _what_lacks(certificate: str, key: str, password_file: str) -> str:
    """OpenSSL says no more than that one of them is no PEM, or cannot be decrypted."""
    try:
        SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
    except ssl.SSLError:
        return f"no certificate in {certificate}"
    return f"no key in {key or certificate}{', or not by this password' if password_file else ''}"


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a file of PEM").lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)
