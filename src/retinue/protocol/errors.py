"""What goes wrong between two sides that speak this protocol: codes for programs, sentences for people.

A request that is rejected is answered with {"error": SENTENCE, "code": CODE}. The sentence says what is
wrong and what to do; it may change. The code does not.
"""

from enum import StrEnum


class ErrorCode(StrEnum):
    NOT_AUTHENTICATED = "not_authenticated"
    """401: the client has not authenticated."""
    NOT_ALLOWED = "not_allowed"
    """403: the client is known, and may not do this."""

    MALFORMED_BODY = "malformed_body"
    """400: not JSON, or a field is missing, unknown, of the wrong type or none of the words agreed."""
    MALFORMED_REQUEST = "malformed_request"
    """Any other request that HTTP itself does not allow."""
    NO_SUCH_PATH = "no_such_path"
    """404."""
    METHOD_NOT_ALLOWED = "method_not_allowed"
    """405."""
    BODY_TOO_LARGE = "body_too_large"
    """413."""

    UNKNOWN_VM = "unknown_vm"
    UNKNOWN_NIC = "unknown_nic"
    UNKNOWN_SERVER = "unknown_server"
    UNKNOWN_SWITCH = "unknown_switch"
    UNKNOWN_LINK = "unknown_link"
    UNKNOWN_GATEWAY_GROUP = "unknown_gateway_group"
    UNKNOWN_PAIR = "unknown_pair"
    UNKNOWN_BOOKING = "unknown_booking"
    NO_PAIR = "no_pair"
    """No pair of MAC and IP is free."""
    UNKNOWN_VRF = "unknown_vrf"
    UNKNOWN_VNET = "unknown_vnet"
    UNKNOWN_SUBNET = "unknown_subnet"
    UNKNOWN_MIGRATION = "unknown_migration"
    UNKNOWN_RENEWAL = "unknown_renewal"
    UNKNOWN_IMAGE = "unknown_image"
    UNKNOWN_ENTITY = "unknown_entity"
    UNKNOWN_MATCH = "unknown_match"
    """There is none with this id: 404 where the path asks for it, 409 where it is needed for something."""

    CONFLICT = "conflict"
    """409: a value is none, or does not go with what there is: an address that another has, and the like."""
    ALREADY_REGISTERED = "already_registered"
    """409: a VM, a VRF, a vnet, a subnet or a gateway group with this id is there."""
    MIGRATION_UNDER_WAY = "migration_under_way"
    """409: the VM is being migrated; wait for the end, or cancel."""
    ALREADY_THERE = "already_there"
    """409: the VM is at the target already."""
    CONTRADICTION = "contradiction"
    """409: a live-migration message names another source, MAC or IP than the VM has."""
    NOT_A_TARGET = "not_a_target"
    """409: the target is named twice, is fenced or drained, or runs no VMs."""
    NO_MATCH = "no_match"
    """409: no server can take the VM, or none is better than where it is; the sentence says why."""
    NAME_TAKEN = "name_taken"
    """409: an entity of another kind, or another image, has this name, which never changes its meaning."""
    PARTY_AWAY = "party_away"
    """409: a server that has a part in a migration is fenced, or its switch or agent is away."""
    TOO_OFTEN = "too_often"
    """409: more than one server may say in a second; the same, said later, may be taken."""
    OUT_OF_STEP = "out_of_step"
    """409: a report, or a cancel, that the migration's state does not allow."""
    NOT_CONFIRMED = "not_confirmed"
    """409: the switches have not confirmed in time."""
    NOT_RUNNING = "not_running"
    """409: the VM does not run."""
    RUNNING = "running"
    """409: the VM runs, or is to, and this of it changes only while it is off."""
    NOT_REGISTERED = "not_registered"
    """409: no manager registered the VM: its server's own manager alone starts and stops it."""
    NOT_RENEWABLE = "not_renewable"
    """409: the VM has no lease to renew, or no port to renew it at."""
    NOT_BELIEVED = "not_believed"
    """409: a manifest without a signature that counts."""
    NEEDED = "needed"
    """409: the image is pinned, or being fetched."""
    STANDBY = "standby"
    """503: this controller is not the active one; the sentence names that. Ask there."""

    NOT_AUDITED = "not_audited"
    """409: the switch cannot be read now; or too many traces wait for that."""


class ControllerError(Exception):
    """A client cannot have from the controller what it asked for; the message is one sentence for people."""


class ControllerAwayError(ControllerError):
    """The controller cannot be reached, hung up, or what answers is none."""


class NotServedError(ControllerAwayError):
    """It cannot be reached, or is a standby: for certain nothing has been done of what was asked for."""


class RejectedError(ControllerError):
    """The controller rejected the request; the message is the controller's own."""

    def __init__(self, message: str, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        """An ErrorCode; "" from a controller that gives none."""
        self.status = status
        """Of HTTP."""


class RecordError(ControllerError, ValueError):
    """The controller sent something else than agreed; the message says what."""
