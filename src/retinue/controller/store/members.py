"""The database's servers where several controllers share it: one, or a cluster of which the leader is asked.

They are started by the operator (docs/high-availability.md), not by us. Of a cluster the leader alone is
used: locks are its own, and whatever is written elsewhere is handed on to it anyway.
"""

import asyncio
import re
import shutil
import ssl as tls
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import structlog

from retinue.controller.errors import StoreError
from retinue.controller.store.schema import NAME, VERSION
from retinue.southbound.ovsdb import Connection, OvsdbError, ProtocolError, connect

log = structlog.get_logger()

CONNECT_SECONDS = 3.0
"""For a server to accept a connection, and to say what it is."""
TRUSTED_FROM = (3, 3)
"""The version of Open vSwitch from which its clusters hold off a member that comes back (pre-vote)."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a server says of itself and of our database (ovsdb-server(7), the database _Server)."""

    clustered: bool
    usable: bool
    """It is in contact with the cluster, and leads it; of a single server always true."""
    version: str
    """Of the schema."""


class Members:
    """Finds the server that is to be asked; begins with the one that was found last."""

    def __init__(self, endpoints: Sequence[str], ssl: tls.SSLContext | None = None) -> None:
        """`endpoints` as southbound.ovsdb.connect takes them, such as "ssl:192.0.2.21:6641"."""
        self._endpoints = list(endpoints)
        self._ssl = ssl
        self.at = ""
        """The server found last."""
        self.clustered = False

    @property
    def pid(self) -> int | None:
        """None: it is not a process of ours."""
        return None

    async def start(self) -> Connection:
        """A connection to the server to be asked. Raises StoreError when there is none now."""
        reasons: list[str] = []
        for endpoint in list(self._endpoints):
            try:
                connection = await self._try(endpoint)
            except (OSError, TimeoutError, OvsdbError, ProtocolError, ValueError) as error:
                reasons.append(str(error) if endpoint in str(error) else f"{endpoint}: {error}")
                continue
            self._endpoints.remove(endpoint)
            self._endpoints.insert(0, endpoint)
            if endpoint != self.at:
                log.info("database.member", at=endpoint, clustered=self.clustered)
            self.at = endpoint
            return connection
        raise StoreError(f"no server of the database can be used: {'; '.join(reasons)}")

    def leave(self) -> None:
        """The one found last has failed: begin with another."""
        self._endpoints = [*self._endpoints[1:], self._endpoints[0]]

    async def stop(self) -> None:
        """Nothing: it runs on, for the others."""

    async def _try(self, endpoint: str) -> Connection:
        connection = await connect(endpoint, ssl=self._ssl, timeout=CONNECT_SECONDS)
        try:
            found = await standing(connection)
            if found.version != VERSION:
                raise OvsdbError(
                    "wrong schema",
                    f"it is {found.version or 'unknown'}, this retinue needs {VERSION}: "
                    "`retinue controller schema` prints it for `ovsdb-client convert`",
                )
            if not found.usable:
                raise OvsdbError("not the leader", "another member of the cluster is, or none for now")
            if found.clustered and not self.clustered and (doubt := await doubt_of_clusters()):
                log.warning("database.doubtful", reason=doubt)
            self.clustered = found.clustered
            return connection
        except BaseException:
            connection.close("not to be used")
            raise


async def standing(connection: Connection, timeout: float = CONNECT_SECONDS) -> Standing:
    """Ask a server. Raises what Connection.transact does; OvsdbError where it does not have our database."""
    look = {
        "op": "select",
        "table": "Database",
        "where": [["name", "==", NAME]],
        "columns": ["model", "connected", "leader", "schema"],
    }
    rows = (await connection.transact("_Server", [look], timeout))[0].get("rows", [])
    match rows:
        case [{"model": str(model), "connected": bool(connected), "leader": bool(leader), "schema": schema}]:
            clustered = model == "clustered"
            return Standing(clustered, connected and (leader or not clustered), _version(schema))
        case []:
            raise OvsdbError("unknown database", f"it has no database {NAME}")
    raise ProtocolError(f"the database _Server has {rows!r:.100}")


class _Schema(msgspec.Struct):
    version: str = ""


def _version(schema: object) -> str:
    """Of a schema in JSON; "" while a member that joins has none yet."""
    try:
        return msgspec.json.decode(schema, type=_Schema).version if isinstance(schema, str) else ""
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the schema of {NAME} cannot be read: {error}") from error


async def doubt_of_clusters() -> str:
    """What a cluster of servers of the version installed here cannot be trusted with; "" when it can.

    No server tells its version: that of this machine is most likely the others', too.
    """
    program = shutil.which("ovsdb-server", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        return ""
    asked = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await asked.communicate()
    found = re.search(r"(\d+)\.(\d+)\.\d+", output.decode(errors="replace"))
    if found is None or (int(found[1]), int(found[2])) >= TRUSTED_FROM:
        return ""
    return (
        f"a cluster of ovsdb-server {found[0]}: before 3.3 a member that comes back after it was cut off "
        "deposes a healthy leader, and one that joins, or is made anew, may hang (docs/high-availability.md)"
    )
