"""An id for each request, by which the lines that several services write of it are found: X-Request-ID.

No RFC has the field; nginx ($request_id), HAProxy (unique-id-format), Envoy and Heroku have made it usual.
The application finds the id where the field would be, so what frameworks have for it works as it is.

    of a trusted peer      stays, if it is a word of printable ASCII, without a comma, and not too long
    of any other, or none  a new one: a client could pass for another's request in the logs of all services
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

from parked.server.forwarded import Forwarded
from parked.server.trust import TrustedPeers

#: Where applications find it.
KEY: Final = "HTTP_X_REQUEST_ID"
#: Of a new one, shown as twice as many hexadecimal digits; as many as in nginx, or in a UUID.
ID_BYTES: Final = 16

# Without a comma: two fields of the name are joined by one.
_WORD: Final = re.compile(r"[!-+\--~]{1,128}")


class RequestIds:
    """Gives ids, and then asks *forwarded* who is behind a proxy.

    :param allowed: peers whose ids are kept, for `TrustedPeers`.
    :param forwarded: None believes nobody's fields.
    """

    def __init__(self, allowed: str, forwarded: Forwarded | None) -> None:
        self._peers = TrustedPeers(allowed)
        self._forwarded = forwarded

    def apply(self, environ: dict[str, Any], peer: Any) -> Any:
        """Put an id into *environ*; returns the client's address, as `Forwarded.apply`."""
        given = environ.get(KEY)
        if given is None or not self._peers.trusts(peer) or not _WORD.fullmatch(given):
            environ[KEY] = os.urandom(ID_BYTES).hex()
        return self._forwarded.apply(environ, peer) if self._forwarded is not None else peer
