"""A VM's port on an Open vSwitch, by packet-out on the switch's own management socket.

A packet-out with the VM's port as `in_port` and the action `output:TABLE` goes through the flow tables like a
frame that came in there (OpenFlow 1.4, 7.3.7): the switch's controller, whoever it is, sees it as the VM's.
The socket is there beside any controller, and works with every datapath, where a redirection into the tap
would go past one that does not read it from the kernel.
"""

from collections.abc import Mapping, Sequence

from retinue.agent.renewal.renewing import InjectionError
from retinue.host.commands import Ended, run_to_end
from retinue.host.errors import HostError

VERSIONS = "OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15"
LIMIT = 5.0


class OvsPort:
    """`ofport` is the port's OpenFlow number. `command` leads to ovs-ofctl, on another node if need be."""

    def __init__(
        self,
        bridge: str,
        ofport: int,
        command: Sequence[str] = ("ovs-ofctl",),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._bridge, self._ofport = bridge, ofport
        self._command, self._env = command, env

    async def send(self, frame: bytes) -> None:
        message = f"in_port={self._ofport},packet={frame.hex()},actions=TABLE"
        argv = [*self._command, "-O", VERSIONS, "packet-out", self._bridge, message]
        code, _, said = await run(argv, self._env)
        if code != 0:
            raise InjectionError(
                f"Open vSwitch does not take a frame for port {self._ofport} of {self._bridge}: {said}"
            )


class RenumberedPort:
    """As OvsPort, for a port known by its name: it may have another number by the time it is asked again."""

    def __init__(self, bridge: str, ofport: int, name: str) -> None:
        self._bridge, self._ofport, self._name = bridge, ofport, name
        self._sent = False

    async def send(self, frame: bytes) -> None:
        if self._sent:
            self._ofport = await port_number(self._name)
        self._sent = True
        await OvsPort(self._bridge, self._ofport).send(frame)


async def port_number(
    name: str, command: Sequence[str] = ("ovs-vsctl",), env: Mapping[str, str] | None = None
) -> int:
    """OpenFlow number of an interface. Raises InjectionError when the switch has none of that name."""
    code, out, said = await run([*command, "--if-exists", "get", "Interface", name, "ofport"], env)
    if code != 0:
        raise InjectionError(f"Open vSwitch cannot be asked for port {name}: {said}")
    if not out.strip().isdigit():
        raise InjectionError(f"Open vSwitch has no port {name}")
    return int(out)


async def run(argv: Sequence[str], env: Mapping[str, str] | None = None) -> Ended:
    """Run a program to its end, whatever that is. Raises InjectionError when it cannot be run, or stays."""
    try:
        return await run_to_end(argv, LIMIT, env)
    except HostError as error:
        raise InjectionError(str(error)) from error


__all__ = ["OvsPort", "RenumberedPort", "port_number", "run"]
