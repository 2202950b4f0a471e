"""Under which user the embedded PostgreSQL runs: PostgreSQL refuses to run as root.

A normal user runs it as itself. Root runs it as an existing unprivileged user: the owner of an existing cluster, else ``nobody``. No
user is added and no mode of a folder above ours is changed. Where that user cannot reach the program or the data (a clone under a
0700 home folder), it gets one capability, CAP_DAC_READ_SEARCH (capabilities(7): pass through and read any folder), through
util-linux ``setpriv``; writing still needs ownership. ``no_setuid_fixup`` makes access(2), with which PostgreSQL looks for its own
program, honour that capability; an exec drops all the others.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CAPABILITY = "+dac_read_search"
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
"""What the server's programs see: no PG* variable, no locale of the caller."""


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class ServerUser:
    """uid and gid of the server; ``prefix`` is put before each command (setpriv), and is empty when not needed."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    @property
    def switched(self) -> bool:
        """True when the server runs as another user than this process."""
        return self.uid != os.geteuid()

    def run(
        self, command: Sequence[str], *, stdout: int | None = None, new_session: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``command`` (full path first) to its end as this user from the root folder.

        ``stdout`` is a file descriptor for output and errors; None collects them in the returned ``stdout``. Raises OSError
        when the program cannot be started.
        """
        plain = self.switched and not self.prefix
        return subprocess.run(  # noqa: S603  the commands are ours, no shell reads them
            [*self.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=new_session,
            check=False,
            user=self.uid if plain else None,
            group=self.gid if plain else None,
            extra_groups=[] if plain else None,
        )

    def owns(self, path: Path) -> None:
        """Gives ``path`` to this user (nothing to do when it is ourselves)."""
        if self.switched:
            os.chown(path, self.uid, self.gid)

    def _reaches(self, program: Path, folder: Path) -> bool:
        try:
            return (
                self.run([str(program), "-V"]).returncode == 0
                and self.run(["/bin/sh", "-c", 'ls "$1"/ >/dev/null', "sh", str(folder)]).returncode == 0
            )
        except OSError:
            return False


def _with_capability(user: ServerUser) -> ServerUser | None:
    setpriv = shutil.which("setpriv", path=ENVIRONMENT["PATH"])
    if setpriv is None:
        return None
    prefix = (
        setpriv,
        f"--reuid={user.uid}",
        f"--regid={user.gid}",
        "--clear-groups",
        "--securebits=+no_setuid_fixup",
        f"--inh-caps={_CAPABILITY}",
        f"--ambient-caps={_CAPABILITY}",
    )
    return ServerUser(user.uid, user.gid, prefix)


def choose(home: Path, program: Path) -> ServerUser:
    """The user for a server whose folder is ``home`` (it exists) and whose binary is ``program``; both absolute.

    Takes ``home`` over for that user when root made it. Raises EmbeddedError when no user will do.
    """
    owner = home.stat()
    me = os.geteuid()
    if me != 0:
        if owner.st_uid != me:
            raise EmbeddedError(
                f"{home} belongs to another user (uid {owner.st_uid}): start as that user, or use another folder"
            )
        return ServerUser(me, os.getegid())
    if owner.st_uid != 0:
        user = ServerUser(owner.st_uid, owner.st_gid)
    else:
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise EmbeddedError(
                "PostgreSQL refuses to run as root and there is no user nobody: start as a normal user, or set DATABASE_URL"
            ) from None
        user = ServerUser(nobody.pw_uid, nobody.pw_gid)
        user.owns(home)
    privileged = _with_capability(user)
    for candidate in (user, privileged):
        if candidate is not None and candidate._reaches(program, home):
            return candidate
    raise EmbeddedError(
        f"PostgreSQL refuses to run as root, and the user it would run as (uid {user.uid}) cannot reach {home} or {program}"
        + (": setpriv (util-linux) is missing" if privileged is None else "")
        + "; start as a normal user, use folders that others may pass through, or set DATABASE_URL"
    )
