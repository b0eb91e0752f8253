"""The operator's word that a server is dead, in place of all that only the server could have said.

    fenced      its leaf drops whatever comes from its port: nothing there can speak for anybody, now or when
                it is back. Its migrations end (MigrationOrchestrator.end_those_of). Its VMs may be registered
                at another server, or be started there, with what they hold. None can be added or migrated
                to it.
    unfenced    only when its own edge is connected and holds nothing more than it should: what VMs that are
                elsewhere by now left behind on it, ports included, is gone before its leaf lets anything
                through again.

A fence outlives the controller.
"""

from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_server
from retinue.controller.marks import ServerFenced, ServerUnfenced
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.core.pipeline.underlay import underlay_of


class Fencing:
    """Takes the operator's word that servers are dead, and takes it back."""

    def __init__(self, context: Context, orchestrator: MigrationOrchestrator) -> None:
        self._context = context
        self._orchestrator = orchestrator

    async def fence(self, server: str) -> None:
        """Shut it out, and end its migrations. What is fenced already stays so. Raises RequestError."""
        self._known(server)
        touched = self._context.apply(ServerFenced(server))
        self._orchestrator.end_those_of(server)
        self._context.installer.look_again()
        await self._context.install(touched, [underlay_of(self._context.net).near(server)])

    async def unfence(self, server: str) -> None:
        """Raises RequestError while its edge may hold what would speak for others."""
        self._known(server)
        edge = self._context.net.servers[server].edge
        if server in self._context.net.fenced and edge:
            programmer = self._context.installer.switches[edge]
            if not programmer.is_read:
                raise RequestError(
                    f"switch {edge} of server {server} is not connected: it may hold entries of VMs that are "
                    f"elsewhere by now; unfence when `retinue switch list` shows it connected"
                )
            if programmer.pending:
                raise RequestError(
                    f"switch {edge} of server {server} has yet to confirm {len(programmer.pending)} entries; "
                    f"ask again when `retinue switch list` shows none pending"
                )
            if left := self._left_at(server, edge):
                raise RequestError(
                    f"{', '.join(left)} still has a port on switch {edge}, and is registered elsewhere: "
                    f"the agent of {server} ends it there when it is back, or a person does where libvirt "
                    f"runs it (`virsh destroy`); ask again then"
                )
        await self._context.install(self._context.apply(ServerUnfenced(server)))

    def _left_at(self, server: str, edge: str) -> list[str]:
        """VMs that were here, and are registered elsewhere since."""
        net = self._context.net
        return sorted(
            vm.id for vm in net.vms.values() if server not in vm.locations and net.has_a_port(vm, edge)
        )

    def _known(self, server: str) -> None:
        if server not in self._context.net.servers:
            raise no_server(server)
