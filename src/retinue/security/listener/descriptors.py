"""File descriptors: as many as the system allows, and for each listener a share that no other listener
takes."""

import resource

MOST = 65_536
"""More are not asked for: what walks through all of them, as a program that is started may, would take its
time."""
KEPT = 128
"""Of all descriptors: for files, the database, programs, and connections that we begin ourselves."""


def raise_limit() -> int:
    """Allow this process as many as the system lets it have, up to MOST; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return MOST if soft == resource.RLIM_INFINITY else soft


def share(part: float) -> int:
    """How many connections a listener may have whose part of all is `part`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    all = MOST if soft == resource.RLIM_INFINITY else soft
    return max(8, int((all - min(KEPT, all // 4)) * part))
