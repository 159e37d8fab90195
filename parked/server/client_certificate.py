"""A client's certificate as an environ has it, in the names of Apache's mod_ssl."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

#: RFC 4514, 3: short names of the attributes, by those that Python gives them.
_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
#: RFC 4514, 2.4: what is escaped wherever it stands, and at an end.
_SPECIAL: Final = re.compile(r'([,+"\\<>;=])|^([# ])|( )$')

Name = Iterable[Iterable[tuple[str, str]]]


def variables(certificate: Mapping[str, Any] | None) -> dict[str, str]:
    """SSL_CLIENT_VERIFY, and of a certificate its subject, issuer, serial number and end.

    :param certificate: as `ssl.SSLSocket.getpeercert` gives it; None or empty if there was none.
    """
    if not certificate:
        return {"SSL_CLIENT_VERIFY": "NONE"}
    return {
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_S_DN": distinguished_name(certificate["subject"]),
        "SSL_CLIENT_I_DN": distinguished_name(certificate["issuer"]),
        "SSL_CLIENT_M_SERIAL": certificate["serialNumber"],
        "SSL_CLIENT_V_END": certificate["notAfter"],
    }


def distinguished_name(name: Name) -> str:
    """RFC 4514: the most specific part first."""
    parts = ["+".join(f"{_SHORT.get(key, key)}={_escaped(value)}" for key, value in part) for part in name]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    return _SPECIAL.sub(lambda match: "\\" + match[0], value).replace("\0", "\\00")
