"""Who the server runs as."""

from __future__ import annotations

import grp
import os
import pwd
from typing import NamedTuple


class IdentityError(Exception):
    """A user, a group or a file for them that cannot be had, in words."""


class Identity(NamedTuple):
    """A user and a group; None where they are to stay as they are. *account* is missing for a bare number."""

    uid: int | None
    gid: int | None
    account: pwd.struct_passwd | None

    def become(self) -> None:
        """Give up root for them; HOME, USER and LOGNAME follow.

        :raises IdentityError: not allowed.
        """
        uid, gid, account = self
        try:
            # Groups first: afterwards we may no longer.
            if gid is not None and (gid != os.getegid() or os.geteuid() == 0):
                if os.geteuid() == 0:
                    os.setgroups(os.getgrouplist(account.pw_name, gid) if account else [gid])
                os.setgid(gid)
            if uid is not None and uid != os.geteuid():
                os.setuid(uid)
                os.environ["HOME"] = account.pw_dir if account else "/"
                for variable in ("USER", "LOGNAME"):
                    os.environ[variable] = account.pw_name if account else str(uid)
        except OSError as error:
            raise IdentityError(f"cannot become user {uid}, group {gid}: {error.strerror}") from error


def find(user: str, group: str) -> Identity:
    """Look up names or numbers; empty leaves it as it is.

    A number needs no entry in the user database, as in a container; without one its group is the same number.

    :raises IdentityError: a name that is unknown.
    """
    account = None
    uid = gid = None
    try:
        if user.isdecimal():
            uid = gid = _number(user)
            try:
                account = pwd.getpwuid(uid)
            except KeyError:
                pass
        elif user:
            account = pwd.getpwnam(user)
        if account is not None:
            uid, gid = account.pw_uid, account.pw_gid
        if group:
            gid = _number(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise IdentityError(f"unknown user or group: {error.args[0]}") from error
    return Identity(uid, gid, account)


def _number(text: str) -> int:
    """Of a user or a group; the kernel has 32 bits for it, and all of them set mean nobody (chown(2))."""
    number = int(text[:20])
    if number >= 2**32 - 1:
        raise KeyError(text)
    return number
