"""The parts that scripts for a machine are made of: POSIX shell, made to be read before it is run."""

from collections.abc import Iterable, Iterator

FOLDER = "/etc/retinue"
"""Where a machine's files go."""
OVS_SECONDS = 60
"""For one command: where ovs-vswitchd does not run ovs-vsctl would wait for it for ever."""
VSCTL = f"ovs-vsctl --timeout={OVS_SECONDS}"
APPCTL = f"ovs-appctl --timeout={OVS_SECONDS}"


def script(what: str, *steps: str) -> str:
    head = (
        f"#!/bin/sh\n# {what}\n# Run it as root, from anywhere. Each step may be done once more.\n"
        'set -eu\nhere=$(cd "$(dirname "$0")" && pwd)\n'
        'stop() { echo "retinue: $1; nothing has been changed by this step" >&2; exit 1; }\n'
        'test "$(id -u)" = 0 || stop "this needs root"\n'
        "trap 'test $? = 0 || echo \"retinue: $0 has not come to its end, see above: mend that and run it "
        "once more, what is done is left so\" >&2' EXIT\n"
    )
    return head + "".join(f'\necho "{number}/{len(steps)} {step}' for number, step in enumerate(steps, 1))


def step(title: str, *lines: str) -> str:
    return f'{title}"\n' + "".join(f"{line}\n" for line in lines)


def install(files: Iterable[str], owner: str = "root") -> Iterator[str]:
    yield f"install -d -m 0755 {FOLDER}"
    yield f'owner={owner}; id -u "$owner" > /dev/null 2>&1 || owner=root'
    for file in files:
        mode = "0400" if file.endswith(".key") else "0444"
        yield f'install -m {mode} -o "$owner" "$here/{file}" {FOLDER}/{file}'


def remove(files: Iterable[str]) -> str:
    return "rm -f " + " ".join(f"{FOLDER}/{file}" for file in files)


def if_systemd(*commands: str, otherwise: str = "start it yourself") -> Iterator[str]:
    """`otherwise`: what is said where there is none."""
    yield "if test -d /run/systemd/system; then"
    yield from (f"    {command}" for command in commands)
    if otherwise:
        yield from ("else", f'    echo "    no systemd here: {otherwise}"')
    yield "fi"


def disable(unit: str) -> str:
    """Where the package is gone already there is no such unit."""
    return f"if systemctl cat {unit} > /dev/null 2>&1; then systemctl disable --now {unit}; fi"
