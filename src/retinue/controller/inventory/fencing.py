"""The operator's word that a server is dead, in place of all that only the server could have said.

    fenced      its leaf drops whatever comes from its port, and where that leaf stands on it, all others what
                comes from there: nothing there can speak for anybody, now or when it is back. Its migrations
                end (MigrationOrchestrator.end_those_of). Its VMs may be registered at another server, or be
                started there, with what they hold. None can be added or migrated to it.
                A gateway to another domain is not fenced: what runs behind it runs on.
    unfenced    only when its own edge, and such a leaf, are connected and hold no more than they should:
                what VMs that are elsewhere by now left behind there, ports included, is gone before any leaf
                lets anything through again.

A fence outlives the controller.
"""

from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_server
from retinue.controller.marks import ServerFenced, ServerUnfenced
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.errors import ErrorCode


class Fencing:
    """Takes the operator's word that servers are dead, and takes it back."""

    def __init__(self, context: Context, orchestrator: MigrationOrchestrator) -> None:
        self._context = context
        self._orchestrator = orchestrator

    async def fence(self, server: str) -> None:
        """Shut it out, and end its migrations. What is fenced already stays so. Raises RequestError."""
        self._known(server)
        peer = self._context.net.peer_at(server)
        if peer is not None:
            raise RequestError(
                f"server {server} is the gateway to domain {peer.id}: VMs behind a gateway are not dead "
                "with it, and would run twice; they are reached when it is back",
                ErrorCode.CONFLICT,
            )
        touched = self._context.apply(ServerFenced(server))
        self._orchestrator.end_those_of(server)
        self._context.installer.look_again()
        await self._context.install(touched, [underlay_of(self._context.net).near(server)])

    async def unfence(self, server: str) -> None:
        """Raises RequestError while its edge may hold what would speak for others."""
        self._known(server)
        edge = self._context.net.servers[server].edge
        if server in self._context.net.fenced and edge:
            for switch in (edge, *sorted(underlay_of(self._context.net).lost_with(server))):
                self._holds_what_it_should(server, switch)
            if left := self._left_at(server, edge):
                raise RequestError(
                    f"{', '.join(left)} still has a port on switch {edge}, and is registered elsewhere: "
                    f"the agent of {server} ends it there when it is back, or a person does where libvirt "
                    f"runs it (`virsh destroy`); ask again then"
                )
        await self._context.install(self._context.apply(ServerUnfenced(server)))

    def _holds_what_it_should(self, server: str, switch: str) -> None:
        """Raises RequestError."""
        programmer = self._context.installer.switches[switch]
        if not programmer.is_read:
            raise RequestError(
                f"switch {switch} of server {server} is not connected: it may hold entries of VMs that are "
                f"elsewhere by now; unfence when `retinue switch list` shows it connected"
            )
        if programmer.pending:
            raise RequestError(
                f"switch {switch} of server {server} has yet to confirm {len(programmer.pending)} entries; "
                f"ask again when `retinue switch list` shows none pending"
            )

    def _left_at(self, server: str, edge: str) -> list[str]:
        """VMs that were here, and are registered elsewhere since."""
        net = self._context.net
        return sorted(
            vm.id
            for vm in net.vms.values()
            if server not in vm.locations
            and any(edge in net.vm_ports.get(nic.plugged_as, {}) for nic in vm.nics)
        )

    def _known(self, server: str) -> None:
        if server not in self._context.net.servers:
            raise no_server(server)
