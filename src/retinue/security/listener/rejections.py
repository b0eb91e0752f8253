"""Why a listener rejects a connection: the reasons of all listeners, by which rejections are counted."""

from enum import StrEnum


class Rejection(StrEnum):
    TLS = "tls"
    """The TLS handshake failed, or took too long."""
    CROWDED = "crowded"
    """Too many newer connections had yet to show who they are."""
    IDENTITY = "identity"
    """The certificate is not that of whom the peer claims to be, or of none that may connect here."""
    TIMEOUT = "timeout"
    """The peer did not show in time what it is, or gave no sign of life."""
    CLOSED = "closed"
    """The peer closed the connection before it had shown what it is."""
    MALFORMED = "malformed"
    """What the peer sent is not the listener's protocol."""

    # OpenFlow
    VERSION = "version"
    """Neither OpenFlow 1.4 nor 1.3."""
    LENGTH = "length"
    """A message says that it is shorter than its header, or longer than any may be."""
    HANDSHAKE = "handshake"
    """A message came out of turn in the handshake."""
    TRUNCATED = "truncated"
    """The connection ended in the middle of a message."""
    UNREAD = "unread"
    """The switch does not read what it is sent."""

    # OVSDB
    ERROR = "error"
    """The peer answered the first request with an error."""

    # agent to agent
    NOT_EXPECTED = "not_expected"
    """The peer brings a migration that is not expected here, or has come in already."""
    WRONG_SERVER = "wrong_server"
    """The migration is expected, but from another server."""
    CALLED_OFF = "called_off"
    """The migration was called off as it came in."""
