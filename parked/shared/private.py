"""Which header fields may hold what is nobody else's, by their names alone.

The server remembers blocks and fields that it has seen, for speed, and a secret should not stay in memory
longer than the request that it came with; the load test's client follows redirections to other servers, and a
secret is for one alone (CWE-522). The rule: a name that has one of these words in it, wherever. It covers
Authorization and Proxy-Authorization, Cookie and Set-Cookie, X-Api-Key, X-Auth-Token, X-Amz-Security-Token,
X-CSRF-Token, X-Client-Cert and what services make up in the same words. A name of other words is not covered.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_WORDS: Final = re.compile(
    "auth|cookie|token|key|secret|passw|passphrase|pwd|credential|session|signature|assertion|jwt|otp|csrf|xsrf"
    "|cert",
    re.IGNORECASE,
)


@lru_cache(1024)  # clients say the same names again and again
def is_private(name: str) -> bool:
    """Whether the value of a field of this name is not to be remembered, or handed on."""
    return _WORDS.search(name) is not None
