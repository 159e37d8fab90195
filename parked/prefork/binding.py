"""Where the server is to listen: addresses, each in clear or over TLS."""

from __future__ import annotations

from typing import NamedTuple

from parked.shared import addresses
from parked.shared.addresses import Address

_SCHEMES = {"http://": False, "https://": True}


class Binding(NamedTuple):
    """One address; whether it speaks TLS, None if that goes by there being a certificate."""

    address: Address
    secure: bool | None = None

    def is_secure(self, has_certificate: bool) -> bool:
        """TCP speaks TLS if there is a certificate; a unix socket, whose peer is a proxy here, does not."""
        return self.secure if self.secure is not None else has_certificate and not self.address.path


def parse(text: str) -> tuple[Binding, ...]:
    """Addresses with commas between them, each may begin with http:// or https://.

    :raises ValueError: in words that follow the text itself.
    """
    bindings: list[Binding] = []
    for part in text.split(","):
        part = part.strip()
        scheme = next((name for name in _SCHEMES if part.startswith(name)), "")
        binding = Binding(addresses.parse(part.removeprefix(scheme)), _SCHEMES.get(scheme))
        can_repeat = not binding.address.port and not binding.address.path  # any free port, again
        if not can_repeat and binding.address in [other.address for other in bindings]:
            raise ValueError(f"{binding.address} is there twice")
        bindings.append(binding)
    return tuple(bindings)
