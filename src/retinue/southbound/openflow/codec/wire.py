"""The frame around every OpenFlow message: its header, the numbers of the kinds, cutting a byte stream.

Numbers are those of the OpenFlow Switch Specification 1.4.0, section 7; in 1.3 those that both have are the
same. Bytes that come in are never trusted: whatever is wrong with them ends in ProtocolError, and in nothing
else.
"""

from enum import IntEnum, IntFlag
from struct import Struct

from retinue.security.listener.rejections import Rejection

VERSION = 0x05
"""OpenFlow 1.4 on the wire, what is spoken wherever a switch can."""

OLDER = 0x04
"""OpenFlow 1.3, what is spoken to a switch that has no 1.4."""

VERSIONS = {OLDER: "1.3", VERSION: "1.4"}
"""All that are spoken, with the names that people know."""

HEADER = Struct("!BBHI")
"""Version, type, length of the whole message, transaction id (xid)."""

HEADER_BYTES = HEADER.size
MAX_MESSAGE = 0xFFFF
"""Largest message in bytes; the length field has no room for more."""

NO_BUFFER = 0xFFFFFFFF
ANY_TABLE = 0xFF
ANY_GROUP = 0xFFFFFFFF
ALL_METERS = 0xFFFFFFFF
NO_MAX_LENGTH = 0xFFFF
"""OFPCML_NO_BUFFER: the whole frame goes to the controller."""

PADDING = tuple(bytes(-n % 8) for n in range(8))
"""PADDING[n % 8] fills a structure of n bytes up to the next multiple of eight."""


class MessageType(IntEnum):
    HELLO = 0
    ERROR = 1
    ECHO_REQUEST = 2
    ECHO_REPLY = 3
    EXPERIMENTER = 4
    FEATURES_REQUEST = 5
    FEATURES_REPLY = 6
    SET_CONFIG = 9
    PACKET_IN = 10
    FLOW_REMOVED = 11
    PORT_STATUS = 12
    PACKET_OUT = 13
    FLOW_MOD = 14
    GROUP_MOD = 15
    MULTIPART_REQUEST = 18
    MULTIPART_REPLY = 19
    BARRIER_REQUEST = 20
    BARRIER_REPLY = 21
    ROLE_REQUEST = 24
    ROLE_REPLY = 25
    METER_MOD = 29
    ROLE_STATUS = 30
    BUNDLE_CONTROL = 33
    BUNDLE_ADD_MESSAGE = 34


class MultipartType(IntEnum):
    DESC = 0
    FLOW = 1
    AGGREGATE = 2
    GROUP_DESC = 7
    METER = 9
    METER_CONFIG = 10
    PORT_DESC = 13


class FlowCommand(IntEnum):
    ADD = 0
    MODIFY = 1
    MODIFY_STRICT = 2
    DELETE = 3
    DELETE_STRICT = 4


class FlowFlag(IntFlag):
    SEND_FLOW_REMOVED = 1


class ModCommand(IntEnum):
    """What a group-mod or meter-mod does; both kinds use the same numbers."""

    ADD = 0
    MODIFY = 1
    DELETE = 2


class BundleStep(IntEnum):
    OPEN_REQUEST = 0
    OPEN_REPLY = 1
    CLOSE_REQUEST = 2
    CLOSE_REPLY = 3
    COMMIT_REQUEST = 4
    COMMIT_REPLY = 5
    DISCARD_REQUEST = 6
    DISCARD_REPLY = 7


class ControllerRole(IntEnum):
    """A controller's role at a switch; the master's generation id fences off its predecessors."""

    NO_CHANGE = 0
    EQUAL = 1
    MASTER = 2
    SLAVE = 3


class FlowRemovedReason(IntEnum):
    IDLE_TIMEOUT = 0
    HARD_TIMEOUT = 1
    DELETE = 2
    GROUP_DELETE = 3
    METER_DELETE = 4
    EVICTION = 5


class PortReason(IntEnum):
    ADD = 0
    DELETE = 1
    MODIFY = 2


class ProtocolError(Exception):
    """The other side's bytes are not OpenFlow as we speak it. `kind` is a short word to count by."""

    def __init__(self, reason: str, kind: Rejection = Rejection.MALFORMED) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind


class UnknownFieldError(Exception):
    """Well-formed, but nothing our values can express; somebody else's flow, group, meter or message."""


def check_version(version: int, kind: int) -> None:
    """Raises ProtocolError for one that is never spoken; HELLO tells the highest that its sender knows."""
    if version in VERSIONS or (kind == MessageType.HELLO and 0 < version < 0x80):
        return
    spoken = " or ".join(f"{number:#04x} (OpenFlow {name})" for number, name in VERSIONS.items())
    raise ProtocolError(f"message of version {version:#04x}, not {spoken}", Rejection.VERSION)


def in_version(messages: bytes, version: int) -> bytes:
    """Whole messages of ours, in a row, as the other version has them.

    What we say to a switch of 1.3 differs in the version alone: the field `importance` of a flow-mod, which
    is always 0, was padding, and bundles, which it has not, are not sent.
    """
    if version == VERSION:
        return messages
    older, at = bytearray(messages), 0
    while at < len(older):
        older[at] = version
        at += int.from_bytes(older[at + 2 : at + 4])
    return bytes(older)


class Framer:
    """Cuts a byte stream into messages.

    A version that we never speak is an error, except in HELLO. `limit` is the longest message taken, in
    bytes.
    """

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self.limit = limit
        self._rest = bytearray()
        self._need = HEADER_BYTES

    @property
    def partial(self) -> bool:
        """True while part of a message has come and its rest has not."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read; return the messages that are now whole. Raises ProtocolError."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return []
            data = bytes(self._rest)
        messages: list[bytes] = []
        at, end = 0, len(data)
        need = HEADER_BYTES
        while end - at >= HEADER_BYTES:
            need = self._checked_length(data, at)
            if end - at < need:
                break
            messages.append(data[at : at + need])
            at += need
            need = HEADER_BYTES
        self._rest = bytearray(data[at:])
        self._need = need
        return messages

    def _checked_length(self, data: bytes, at: int) -> int:
        version, kind, length, _ = HEADER.unpack_from(data, at)
        check_version(version, kind)
        if length < HEADER_BYTES:
            raise ProtocolError(
                f"message says it is {length} bytes long; a header alone has {HEADER_BYTES}", Rejection.LENGTH
            )
        if length > self.limit:
            raise ProtocolError(
                f"message says it is {length} bytes long; at most {self.limit} are taken", Rejection.LENGTH
            )
        return int(length)
