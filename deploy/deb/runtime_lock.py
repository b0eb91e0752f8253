"""Those lines of requirements.lock that retinue needs where it runs, without what tests need besides.

    python deploy/deb/runtime_lock.py < requirements.lock > runtime.lock

What needs what is read from the packages as they are installed here, as `make install` has done.
"""

import re
import sys
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(name: str, seen: set[str]) -> set[str]:
    """The names of a package and of all that it needs here."""
    if name in seen:
        return seen
    seen.add(name)
    for line in distribution(name).requires or ():
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            needed(canonicalize_name(wanted.name), seen)
    return seen


def main() -> None:
    names = needed("retinue", set()) - {"retinue"}
    found = set()
    for entry in re.split(r"^(?=[A-Za-z0-9])", sys.stdin.read(), flags=re.MULTILINE):
        name = canonicalize_name(entry.partition("==")[0].strip())
        if name in names:
            found.add(name)
            sys.stdout.write(entry)
    if missing := names - found:
        sys.exit(f"requirements.lock lacks {', '.join(sorted(missing))}")


main()
