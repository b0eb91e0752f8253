"""Whether this server's QEMU can run a VM before all of its memory is there, for libvirt's user.

libvirt asks QEMU only when it opens a migration's target, and what comes then is a migration that has failed.
So QEMU is asked before, by one that is started for it, as libvirt would start it: as its user, and without
capabilities.
"""

import asyncio
import json
import pwd
from collections.abc import Sequence

from retinue.hypervisor.errors import HypervisorError

FLAG = 1 << 15
"""VIR_MIGRATE_POSTCOPY."""
QEMU = (
    *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-incoming", "defer", "-qmp", "stdio"),
)
QUESTIONS = (
    {"execute": "qmp_capabilities"},
    {
        "execute": "migrate-set-capabilities",
        "arguments": {"capabilities": [{"capability": "postcopy-ram", "state": True}]},
    },
    {"execute": "quit"},
)
ANSWER_LIMIT = 15.0
MOST_SAID = 200


def probe(user: str) -> tuple[str, ...]:
    """The command that asks. `user` is libvirt's for its QEMUs, "" for our own. Raises HypervisorError."""
    as_user: tuple[str, ...] = ()
    if user:
        try:
            as_user = ("--reuid", user, "--regid", str(pwd.getpwnam(user).pw_gid), "--init-groups")
        except KeyError as error:
            raise HypervisorError(f"there is no user {user!r} on this server") from error
    return ("setpriv", *as_user, "--inh-caps=-all", "--bounding-set=-all", *QEMU)


async def check(argv: Sequence[str]) -> None:
    """Raises HypervisorError where QEMU cannot."""
    why = await _why_not(argv)
    if why:
        raise HypervisorError(
            "this server cannot run a VM before all of its memory has come (post-copy): libvirt's QEMU needs "
            f"the system call userfaultfd, with `sysctl vm.unprivileged_userfaultfd=1`: {why}"
        )


async def _why_not(argv: Sequence[str]) -> str:
    pipe = asyncio.subprocess.PIPE
    try:
        asked = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as error:
        return f"{argv[0]} cannot be run: {error.strerror}"
    try:
        async with asyncio.timeout(ANSWER_LIMIT):
            said, complaint = await asked.communicate("\n".join(map(json.dumps, QUESTIONS)).encode())
    except TimeoutError:
        return f"QEMU has not said so within {ANSWER_LIMIT:.0f} s"
    finally:
        if asked.returncode is None:
            asked.kill()
    answers = [line for line in said.splitlines() if b'"return"' in line]
    if len(answers) >= len(QUESTIONS) - 1 and b'"error"' not in said:
        return ""
    errors = [line for line in said.splitlines() if b'"error"' in line]
    return (errors or [complaint])[0][:MOST_SAID].decode(errors="replace").strip() or "QEMU does not answer"
