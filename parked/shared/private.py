"""What may be nobody else's: header fields, by their names alone, and words of a command line.

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

#: Words of a command line and parts of URLs: what may be shown, the name that decides, and what it is of.
_PASSWORD: Final = re.compile(r"(://[^/?#@\s:]*:)[^/?#\s]*(?=@)")
_FIELD: Final = re.compile(r"((?:--header=)?([!#$%&'*+.^_`|~0-9A-Za-z-]+):\s*)\S.*", re.DOTALL)
_PARAMETER: Final = re.compile(r"([?&]([^=&#\s]+)=)[^&#\s]*")

#: Characters of a name. A client may send one of 64 KB, and another the next time.
_LONGEST_REMEMBERED: Final = 64

_WORDS: Final = re.compile(
    "auth|cookie|token|key|secret|passw|passphrase|pwd|credential|session|signature|assertion|jwt|otp|csrf|xsrf"
    "|cert",
    re.IGNORECASE,
)


def is_private(name: str) -> bool:
    """Whether the value of a field of this name is not to be remembered, or handed on."""
    return _remembered(name) if len(name) <= _LONGEST_REMEMBERED else _has_word(name)


def _has_word(name: str) -> bool:
    return _WORDS.search(name) is not None


_remembered: Final = lru_cache(1024)(_has_word)  # clients say the same names again and again


def masked(word: str) -> str:
    """A word of a command line as others may see it: no password of a URL, no private field or parameter."""
    word = _PASSWORD.sub(r"\1***", word)
    field = _FIELD.fullmatch(word)
    if field and is_private(field[2]):
        return f"{field[1]}***"
    return _PARAMETER.sub(lambda found: f"{found[1]}***" if is_private(found[2]) else found[0], word)
