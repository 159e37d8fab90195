"""Where the server is to listen: addresses, each in clear or over TLS."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

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

    def may_be(self, name: Any) -> bool:
        """Whether the socket of this name may be here; port 0 is any, and a host by its name is."""
        host, port, path = self.address
        if path or not isinstance(name, tuple):
            return bool(path == name)
        try:
            is_here = ip_address(host) == ip_address(name[0])
        except ValueError:
            is_here = True
        return is_here and port in (0, name[1])


def which_are_secure(bindings: Sequence[Binding], names: Sequence[Any], has_certificate: bool) -> list[bool]:
    """Of sockets, by their names. A reload may have put the addresses into another order.

    Where no address is theirs (they are a service manager's, or of a former configuration), they go by their
    kind.
    """
    found = []
    for number, name in enumerate(names):
        here = [one for one in (*bindings[number : number + 1], *bindings) if one.may_be(name)]
        found.append(here[0].is_secure(has_certificate) if here else has_certificate and type(name) is tuple)
    return found


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
