"""The controller's REST interface as a table: each route with its path, and who may ask for it.

The server makes its routes of this table, decides by it who may do what, and the clients take their paths
from it; docs/api.md says what is sent and answered.
"""

from enum import Enum, StrEnum
from urllib.parse import quote, urlencode


class Right(StrEnum):
    """Who may use a route. A manager may use every route."""

    READ = "read"
    """Everybody who is known: managers, readers, agents."""
    MANAGE = "manage"
    """Managers alone."""
    REPORT_VM = "report of a VM"
    """The agent of the server where the VM runs: of a migration's source until the VM has resumed at the
    target."""
    RENEW = "renewal of a VM's lease"
    """That agent, and the one of the server where the VM's traffic is delivered."""
    REPORT_MIGRATION = "report of a migration"
    """Agents of the migration's two servers, each for what happens at its end
    (controller/migrations/words.py)."""
    REPORT_RENEWAL = "report of a renewal"
    """The agent that the renewal was ordered of."""
    ASK_TO_MIGRATE = "request to migrate a VM"
    """The agent of the server where the VM runs, as with REPORT_VM: for its own VMs and no others."""
    ANSWER_MATCH = "answer to a match message"
    """The agents that were asked."""
    REPORT_SERVER = "report of a server"
    """The server's own agent."""


class Route(Enum):
    GET_STATUS = "GET", "/v1/status", Right.READ
    GET_CLUSTER = "GET", "/v1/cluster", Right.READ
    GET_METRICS = "GET", "/metrics", Right.READ
    GET_DESCRIPTION = "GET", "/v1/openapi.json", Right.READ
    FOLLOW_EVENTS = "GET", "/v1/events", Right.READ

    LIST_VMS = "GET", "/v1/vms", Right.READ
    REGISTER_VMS = "POST", "/v1/vms", Right.MANAGE
    GET_VM = "GET", "/v1/vms/{id}", Right.READ
    SET_VM = "PATCH", "/v1/vms/{id}", Right.MANAGE
    REMOVE_VM = "DELETE", "/v1/vms/{id}", Right.MANAGE
    REPORT_VM = "POST", "/v1/vms/{id}/events", Right.REPORT_VM
    START_VM = "POST", "/v1/vms/{id}/start", Right.MANAGE
    STOP_VM = "POST", "/v1/vms/{id}/stop", Right.MANAGE
    REBOOT_VM = "POST", "/v1/vms/{id}/reboot", Right.MANAGE
    RESET_VM = "POST", "/v1/vms/{id}/reset", Right.MANAGE
    ADD_NIC = "POST", "/v1/vms/{id}/nics", Right.MANAGE
    SET_NIC = "POST", "/v1/vms/{id}/nics/set", Right.MANAGE
    REMOVE_NIC = "POST", "/v1/vms/{id}/nics/remove", Right.MANAGE
    CONFIRM_VM = "POST", "/v1/vms/{id}/confirm", Right.MANAGE
    QUERY_PROFILE = "POST", "/v1/vms/{id}/profile-queries", Right.ASK_TO_MIGRATE
    CHOOSE_SERVER = "POST", "/v1/vms/{id}/matches", Right.MANAGE
    ASK_TO_MIGRATE = "POST", "/v1/vms/{id}/migration-requests", Right.ASK_TO_MIGRATE

    LIST_ENTITIES = "GET", "/v1/entities", Right.READ
    REGISTER_ENTITIES = "POST", "/v1/entities", Right.MANAGE
    GET_ENTITY = "GET", "/v1/entities/{id}", Right.READ
    REMOVE_ENTITY = "DELETE", "/v1/entities/{id}", Right.MANAGE

    LIST_BINDINGS = "GET", "/v1/bindings", Right.READ
    LIST_FC_LOGINS = "GET", "/v1/fc-logins", Right.READ
    LIST_SPOOF_ATTEMPTS = "GET", "/v1/spoof-attempts", Right.READ

    LIST_MIGRATIONS = "GET", "/v1/migrations", Right.READ
    START_MIGRATION = "POST", "/v1/migrations", Right.MANAGE
    GET_MIGRATION = "GET", "/v1/migrations/{id}", Right.READ
    CANCEL_MIGRATION = "POST", "/v1/migrations/{id}/cancel", Right.MANAGE
    REPORT_MIGRATION = "POST", "/v1/migrations/{id}/events", Right.REPORT_MIGRATION
    EXPLAIN_PLACEMENT = "GET", "/v1/migrations/{id}/placement", Right.READ
    ANSWER_MATCH = "POST", "/v1/matches/{id}/answers", Right.ANSWER_MATCH
    PLAN_DOMAIN = "GET", "/v1/domain/plan", Right.READ

    RENEW_LEASE = "POST", "/v1/vms/{id}/renewals", Right.RENEW
    LIST_RENEWALS = "GET", "/v1/renewals", Right.READ
    GET_RENEWAL = "GET", "/v1/renewals/{id}", Right.READ
    REPORT_RENEWAL = "POST", "/v1/renewals/{id}/events", Right.REPORT_RENEWAL

    LIST_GATEWAY_GROUPS = "GET", "/v1/gateway-groups", Right.READ
    ADD_GATEWAY_GROUPS = "POST", "/v1/gateway-groups", Right.MANAGE
    SET_GATEWAY_GROUP = "PUT", "/v1/gateway-groups/{id}", Right.MANAGE
    REMOVE_GATEWAY_GROUP = "DELETE", "/v1/gateway-groups/{id}", Right.MANAGE

    LIST_VRFS = "GET", "/v1/vrfs", Right.READ
    ADD_VRFS = "POST", "/v1/vrfs", Right.MANAGE
    REMOVE_VRF = "DELETE", "/v1/vrfs/{id}", Right.MANAGE

    LIST_VNETS = "GET", "/v1/vnets", Right.READ
    ADD_VNETS = "POST", "/v1/vnets", Right.MANAGE
    SET_VNET = "PUT", "/v1/vnets/{id}", Right.MANAGE
    REMOVE_VNET = "DELETE", "/v1/vnets/{id}", Right.MANAGE

    LIST_SUBNETS = "GET", "/v1/subnets", Right.READ
    ADD_SUBNETS = "POST", "/v1/subnets", Right.MANAGE
    SET_SUBNET = "PUT", "/v1/subnets/{id}", Right.MANAGE
    REMOVE_SUBNET = "DELETE", "/v1/subnets/{id}", Right.MANAGE

    LIST_PAIRS = "GET", "/v1/pairs", Right.READ
    ADD_PAIRS = "POST", "/v1/pairs", Right.MANAGE
    REMOVE_PAIR = "DELETE", "/v1/pairs/{id}", Right.MANAGE

    LIST_SERVERS = "GET", "/v1/servers", Right.READ
    REGISTER_SERVERS = "POST", "/v1/servers", Right.MANAGE
    REMOVE_SERVER = "DELETE", "/v1/servers/{id}", Right.MANAGE
    DRAIN_SERVER = "POST", "/v1/servers/{id}/drain", Right.MANAGE
    UNDRAIN_SERVER = "POST", "/v1/servers/{id}/undrain", Right.MANAGE
    FENCE_SERVER = "POST", "/v1/servers/{id}/fence", Right.MANAGE
    UNFENCE_SERVER = "POST", "/v1/servers/{id}/unfence", Right.MANAGE
    FORGET_AGENT = "DELETE", "/v1/servers/{id}/agent", Right.MANAGE
    REPORT_HYPERVISOR_EVENT = "POST", "/v1/servers/{id}/hypervisor-events", Right.REPORT_SERVER
    REPORT_MADE_VM = "POST", "/v1/servers/{id}/vm-reports", Right.REPORT_SERVER
    REPORT_SERVER_MAC = "POST", "/v1/servers/{id}/mac", Right.REPORT_SERVER
    REPORT_PROFILE = "POST", "/v1/servers/{id}/profile", Right.REPORT_SERVER
    LIST_BOOKINGS = "GET", "/v1/bookings", Right.READ
    BOOK_SERVER = "POST", "/v1/servers/{id}/bookings", Right.REPORT_SERVER
    RELEASE_BOOKING = "POST", "/v1/servers/{id}/releases", Right.REPORT_SERVER
    REPORT_COUNTERS = "POST", "/v1/servers/{id}/counters", Right.REPORT_SERVER

    LIST_DOMAINS = "GET", "/v1/domains", Right.READ
    LIST_ANCHORS = "GET", "/v1/anchors", Right.READ
    GET_ANCHOR = "GET", "/v1/anchors/{id}", Right.READ
    SET_ANCHOR = "PUT", "/v1/anchors/{id}", Right.MANAGE

    LIST_IMAGES = "GET", "/v1/images", Right.READ
    PUBLISH_IMAGE = "POST", "/v1/images", Right.MANAGE
    GET_IMAGE = "GET", "/v1/images/{id}", Right.READ
    REMOVE_IMAGE = "DELETE", "/v1/images/{id}", Right.MANAGE
    FETCH_IMAGE = "POST", "/v1/images/{id}/fetch", Right.MANAGE
    UNPIN_IMAGE = "POST", "/v1/images/{id}/unpin", Right.MANAGE
    COLLECT_CHUNKS = "POST", "/v1/servers/{id}/images/gc", Right.MANAGE
    SCRUB_CHUNKS = "POST", "/v1/servers/{id}/images/scrub", Right.MANAGE
    REPORT_IMAGES = "POST", "/v1/servers/{id}/images", Right.REPORT_SERVER

    LIST_SWITCHES = "GET", "/v1/switches", Right.READ
    ADD_SWITCHES = "POST", "/v1/switches", Right.MANAGE
    SET_SWITCH = "PUT", "/v1/switches/{id}", Right.MANAGE
    REMOVE_SWITCH = "DELETE", "/v1/switches/{id}", Right.MANAGE
    GET_MAC_TABLE = "GET", "/v1/switches/{id}/mac-table", Right.READ
    LIST_LINKS = "GET", "/v1/links", Right.READ
    ADD_LINKS = "POST", "/v1/links", Right.MANAGE
    REMOVE_LINK = "DELETE", "/v1/links/{id}", Right.MANAGE
    REPORT_ROWS = "POST", "/v1/switches/{id}/rows", Right.MANAGE
    AUDIT_SWITCH = "POST", "/v1/switches/{id}/audit", Right.MANAGE
    LIST_FLOWS = "GET", "/v1/flows", Right.READ
    TRACE_FRAME = "POST", "/v1/traces", Right.READ

    def __init__(self, method: str, template: str, right: Right) -> None:
        self.method = method
        self.template = template
        """The path, with {id} where the id of the VM, migration, renewal, gateway group, VRF, vnet, subnet,
        server, switch or image stands, or a link's lower end."""
        self.right = right

    def path(self, id: str = "", **query: str | int | None) -> str:
        """ "/v1/vms/vm%201" for the thing with this id; parts of the query that are None are left out."""
        path = self.template.replace("{id}", quote(id, safe=""))
        given = {key: value for key, value in query.items() if value is not None}
        return f"{path}?{urlencode(given)}" if given else path


OF_ITSELF = frozenset({Route.GET_CLUSTER, Route.GET_METRICS})
"""What a standby answers: it is about that controller, not about the network."""
