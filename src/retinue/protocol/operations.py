"""Each route of the REST interface with what is sent and answered there: of this its description is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from retinue.core.limits import LONGEST_EVENT_ID
from retinue.core.placement import EntityKind, Metric
from retinue.core.placement.bookings import Booking
from retinue.protocol import entities, fabric, images, mobility, nics, vm_reports, vms, vnets
from retinue.protocol.answers import common, migrations, networks, servers
from retinue.protocol.answers import images as shown_images
from retinue.protocol.answers import vms as shown_vms
from retinue.protocol.answers.vms import ShownRenewal
from retinue.protocol.hypervisor_events import HypervisorEvent
from retinue.protocol.migrations import MigrationBody, ReportAnswer, ReportBody
from retinue.protocol.pairs import PairBody
from retinue.protocol.rejections import CountersBody
from retinue.protocol.renewals import LONGEST_WAIT, RenewalReportBody, RenewBody
from retinue.protocol.routes import Route
from retinue.protocol.servers import GatewayGroupBody, GatewayGroupValues, ServerBody, ServerMacBody
from retinue.protocol.snooping_rows import RowsBody
from retinue.protocol.traces import TraceBody


class Form(StrEnum):
    """In which form a route answers."""

    JSON = "application/json"
    TEXT = "text/plain"
    EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Query:
    """A part of a route's query, which may be left out."""

    name: str
    type: Any
    says: str


@dataclass(frozen=True, slots=True)
class Operation:
    does: str
    """In a few words."""
    answer: Any = None
    """What is answered, a type that msgspec knows; None: text, or any JSON object."""
    body: Any = None
    """What is sent; None: nothing."""
    body_may_be_empty: bool = False
    status: int = 200
    """Of the answer when it is done."""
    query: tuple[Query, ...] = ()
    form: Form = Form.JSON


_VM = Query("vm", str, "Of this VM only.")
_EVENT_ID = Annotated[str, msgspec.Meta(pattern=rf"^[0-9]{{1,{LONGEST_EVENT_ID}}}$")]
_SECONDS = Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WAIT)]
_PER_CENT = Annotated[str, msgspec.Meta(pattern=r"^([0-9]|[1-9][0-9]|100)$")]

OPERATIONS: Mapping[Route, Operation] = {
    Route.GET_STATUS: Operation("The controller in numbers", servers.ShownStatus),
    Route.GET_CLUSTER: Operation("Which controller this is, of several", servers.ShownCluster),
    Route.GET_METRICS: Operation("The same for Prometheus", form=Form.TEXT),
    Route.GET_DESCRIPTION: Operation("This description"),
    Route.FOLLOW_EVENTS: Operation(
        "What happens, as it happens",
        query=(
            Query("since", _EVENT_ID, "First the events after the one with this id."),
            Query("types", str, "Only events of these types, with commas between them."),
            Query("server", str, "The agent of this server follows."),
        ),
        form=Form.EVENTS,
    ),
    # ---- VMs ----
    Route.LIST_VMS: Operation("All VMs", shown_vms.AllVMs),
    Route.REGISTER_VMS: Operation(
        "Register VMs: all, or on a mistake none",
        shown_vms.RegisteredVMs,
        vms.VMBody | list[vms.VMBody],
        status=201,
    ),
    Route.GET_VM: Operation("One VM", shown_vms.ShownVM),
    Route.SET_VM: Operation("Change a VM", shown_vms.ShownVM, vms.VMChangeBody),
    Route.REMOVE_VM: Operation("Delete a VM with its bindings and entries", common.Removed),
    Route.REPORT_VM: Operation("The hypervisor's report of a VM", common.Done, vms.VMReportBody),
    Route.START_VM: Operation("Have a VM run", shown_vms.ShownVM),
    Route.STOP_VM: Operation(
        "Have a VM switched off", shown_vms.ShownVM, vms.StopBody, body_may_be_empty=True
    ),
    Route.REBOOT_VM: Operation(
        "Have a guest shut down and start anew", shown_vms.ShownVM, vms.RebootBody, body_may_be_empty=True
    ),
    Route.RESET_VM: Operation("Start a guest anew at once", shown_vms.ShownVM),
    Route.ADD_NIC: Operation("Put a NIC into a VM", shown_vms.ShownVM, nics.NICBody, status=201),
    Route.SET_NIC: Operation("Change a NIC of a VM", shown_vms.ShownVM, nics.NICSetBody),
    Route.REMOVE_NIC: Operation("Take a NIC out of a VM", shown_vms.ShownVM, nics.NICRemoveBody),
    Route.CONFIRM_VM: Operation(
        "What was reported of a VM is true", shown_vms.ShownVM, vm_reports.ConfirmBody
    ),
    Route.QUERY_PROFILE: Operation("A VM's profile, for its agent", shown_vms.ProfileAnswer),
    Route.CHOOSE_SERVER: Operation(
        "Which server would be best for a VM",
        migrations.ChosenServer,
        mobility.ChooseBody,
        body_may_be_empty=True,
    ),
    Route.ASK_TO_MIGRATE: Operation(
        "An agent asks that a VM go", migrations.ShownMigration, mobility.MobilityBody, status=201
    ),
    # ---- names ----
    Route.LIST_ENTITIES: Operation(
        "All that has a name",
        migrations.AllEntities,
        query=(Query("kind", EntityKind, "Of this kind only."),),
    ),
    Route.REGISTER_ENTITIES: Operation(
        "Say something of named things",
        migrations.AllEntities,
        entities.EntityBody | list[entities.EntityBody],
        status=201,
    ),
    Route.GET_ENTITY: Operation("What has this name", migrations.ShownEntity),
    Route.REMOVE_ENTITY: Operation("Take back what was said", common.Removed),
    # ---- bindings ----
    Route.LIST_BINDINGS: Operation("The snooping table", shown_vms.AllBindings, query=(_VM,)),
    Route.LIST_FC_LOGINS: Operation("Ports of FCoE that are logged in", shown_vms.AllFcLogins, query=(_VM,)),
    Route.LIST_SPOOF_ATTEMPTS: Operation(
        "The log of spoofing attempts", shown_vms.AllSpoofAttempts, query=(_VM,)
    ),
    # ---- migrations ----
    Route.LIST_MIGRATIONS: Operation("All migrations that are kept", migrations.AllMigrations),
    Route.START_MIGRATION: Operation("Migrate a VM", migrations.ShownMigration, MigrationBody, status=201),
    Route.GET_MIGRATION: Operation("One migration", migrations.ShownMigration),
    Route.CANCEL_MIGRATION: Operation("Undo a migration", migrations.ShownMigration),
    Route.REPORT_MIGRATION: Operation("The hypervisor's report of a migration", ReportAnswer, ReportBody),
    Route.EXPLAIN_PLACEMENT: Operation("How a migration's target was chosen", migrations.ExplainedPlacement),
    Route.ANSWER_MATCH: Operation("An agent's answer to a match", common.Done, mobility.AnswerBody),
    Route.PLAN_DOMAIN: Operation(
        "Which migrations would spread the VMs",
        migrations.ShownPlan,
        query=(
            Query("metric", Metric, "What is to be spread: memory, unless said."),
            Query("threshold", _PER_CENT, "Per cent that servers may differ by."),
        ),
    ),
    # ---- renewals ----
    Route.RENEW_LEASE: Operation(
        "Renew a lease on a VM's behalf",
        ShownRenewal,
        RenewBody,
        body_may_be_empty=True,
        status=201,
    ),
    Route.LIST_RENEWALS: Operation("The renewals that are kept", shown_vms.AllRenewals),
    Route.GET_RENEWAL: Operation(
        "One renewal",
        ShownRenewal,
        query=(Query("wait", _SECONDS, "Seconds to wait for its end."),),
    ),
    Route.REPORT_RENEWAL: Operation("An agent's report of a renewal", ShownRenewal, RenewalReportBody),
    # ---- networks ----
    Route.LIST_GATEWAY_GROUPS: Operation("Gateway groups", networks.AllGatewayGroups),
    Route.ADD_GATEWAY_GROUPS: Operation(
        "Add gateway groups",
        networks.GatewayGroups,
        GatewayGroupBody | list[GatewayGroupBody],
        status=201,
    ),
    Route.SET_GATEWAY_GROUP: Operation(
        "Whether servers in no group are in this one", networks.ShownGatewayGroup, GatewayGroupValues
    ),
    Route.REMOVE_GATEWAY_GROUP: Operation("Remove a gateway group", common.Removed),
    Route.LIST_VRFS: Operation("VRFs", networks.AllVrfs),
    Route.ADD_VRFS: Operation("Add VRFs", networks.AllVrfs, vnets.VrfBody | list[vnets.VrfBody], status=201),
    Route.REMOVE_VRF: Operation("Remove a VRF", common.Removed),
    Route.LIST_VNETS: Operation("Vnets", networks.AllVnets),
    Route.ADD_VNETS: Operation(
        "Add vnets", networks.AllVnets, vnets.VnetBody | list[vnets.VnetBody], status=201
    ),
    Route.SET_VNET: Operation("Change a vnet", networks.ShownVnet, vnets.VnetValues),
    Route.REMOVE_VNET: Operation("Remove a vnet", common.Removed),
    Route.LIST_SUBNETS: Operation("Subnets", networks.AllSubnets),
    Route.ADD_SUBNETS: Operation(
        "Add subnets", networks.AllSubnets, vnets.SubnetBody | list[vnets.SubnetBody], status=201
    ),
    Route.SET_SUBNET: Operation("Change a subnet", networks.ShownSubnet, vnets.SubnetValues),
    Route.REMOVE_SUBNET: Operation("Remove a subnet", common.Removed),
    Route.LIST_PAIRS: Operation("Pairs of MAC and address", networks.AllPairs),
    Route.ADD_PAIRS: Operation("Add pairs", networks.AllPairs, PairBody | list[PairBody], status=201),
    Route.REMOVE_PAIR: Operation("Take a pair back, by its MAC", common.Removed),
    # ---- servers ----
    Route.LIST_SERVERS: Operation("Servers, and where they are", servers.AllServers),
    Route.REGISTER_SERVERS: Operation(
        "Register servers", servers.RegisteredServers, ServerBody | list[ServerBody], status=201
    ),
    Route.REMOVE_SERVER: Operation("Remove a server on which nothing runs", common.Removed),
    Route.DRAIN_SERVER: Operation("No VM is wanted there any more", servers.DrainedServer),
    Route.UNDRAIN_SERVER: Operation("It takes VMs again", servers.DrainedServer),
    Route.FENCE_SERVER: Operation("The operator's word that it is dead", servers.FencedServer),
    Route.UNFENCE_SERVER: Operation("That word taken back", servers.FencedServer),
    Route.FORGET_AGENT: Operation("Its agent was taken away for good", servers.ServersAgent),
    Route.REPORT_HYPERVISOR_EVENT: Operation(
        "What a hypervisor does by itself", servers.ReportedMigration, HypervisorEvent
    ),
    Route.REPORT_MADE_VM: Operation(
        "A VM that was made at the server", vm_reports.ReportedAddresses, vm_reports.ReportedVMBody
    ),
    Route.REPORT_SERVER_MAC: Operation(
        "The server's own MAC, by who its agent is", servers.KnownMac, ServerMacBody
    ),
    Route.REPORT_PROFILE: Operation("What a server has left", common.Done, mobility.ServerReport),
    Route.LIST_BOOKINGS: Operation("Room that is booked", migrations.AllBookings),
    Route.BOOK_SERVER: Operation(
        "Book room for a VM that is to come", Booking, mobility.BookBody, status=201
    ),
    Route.RELEASE_BOOKING: Operation("The VM does not come", Booking, mobility.ReleaseBody),
    Route.REPORT_COUNTERS: Operation("What an agent has rejected", common.Done, CountersBody),
    Route.LIST_DOMAINS: Operation("Other domains, VMs that are away, and guests", servers.AllDomains),
    Route.LIST_ANCHORS: Operation("By which gateways VMs of other domains are reached", servers.AllAnchors),
    Route.GET_ANCHOR: Operation("What passes the gateway for one VM", servers.ShownAnchor),
    Route.SET_ANCHOR: Operation(
        "How long home stands in for a VM that is away", servers.ShownAnchor, mobility.AnchorValues
    ),
    # ---- images ----
    Route.LIST_IMAGES: Operation("Images, and the servers' stores", shown_images.AllImages),
    Route.PUBLISH_IMAGE: Operation(
        "Publish an image", shown_images.ShownImage, images.PublishBody, status=201
    ),
    Route.GET_IMAGE: Operation(
        "One image",
        shown_images.ShownImage,
        query=(Query("server", str, "Its holders as this server may ask them, with those that are near."),),
    ),
    Route.REMOVE_IMAGE: Operation("Take an image's name back", common.Removed),
    Route.FETCH_IMAGE: Operation(
        "Order that servers fetch an image",
        shown_images.OrderedFetch,
        images.FetchImageBody,
        body_may_be_empty=True,
        status=202,
    ),
    Route.UNPIN_IMAGE: Operation(
        "It is not needed for this any more", shown_images.OrderedImage, images.UnpinBody, status=202
    ),
    Route.COLLECT_CHUNKS: Operation(
        "Order that chunks of no image be removed", shown_images.OrderedServer, status=202
    ),
    Route.SCRUB_CHUNKS: Operation("Order that all chunks be read", shown_images.OrderedServer, status=202),
    Route.REPORT_IMAGES: Operation("What a server holds", common.Done, images.ImagesBody),
    # ---- switches ----
    Route.LIST_SWITCHES: Operation("Switches", servers.AllSwitches),
    Route.ADD_SWITCHES: Operation(
        "Add switches", servers.AllSwitches, fabric.SwitchBody | list[fabric.SwitchBody], status=201
    ),
    Route.SET_SWITCH: Operation("Change a switch", servers.ShownSwitch, fabric.SwitchValues),
    Route.REMOVE_SWITCH: Operation("Remove a switch", common.Removed),
    Route.GET_MAC_TABLE: Operation("The MAC table of an edge switch", servers.MacTable),
    Route.LIST_LINKS: Operation("Links between switches, and whether they lose frames", servers.AllLinks),
    Route.ADD_LINKS: Operation(
        "Add links between switches", servers.AllLinks, fabric.LinkBody | list[fabric.LinkBody], status=201
    ),
    Route.REMOVE_LINK: Operation("Remove a link, by its lower end", common.Removed),
    Route.REPORT_ROWS: Operation("Rows that a switch has made by itself", servers.JudgedRows, RowsBody),
    Route.AUDIT_SWITCH: Operation("Read a switch, and put right what differs", servers.ShownAudit),
    Route.LIST_FLOWS: Operation(
        "The entries that switches should hold",
        servers.AllFlows,
        query=(Query("switch", str, "Of this switch only."), Query("vm", str, "That are there for this VM.")),
    ),
    Route.TRACE_FRAME: Operation("What becomes of a frame", servers.ShownTrace, TraceBody),
}
