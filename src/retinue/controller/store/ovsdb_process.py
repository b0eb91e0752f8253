"""The ovsdb-server that serves our file, as a child process of the controller that ends with it."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import structlog

from retinue.controller.errors import StoreError
from retinue.controller.store.file_check import inspect
from retinue.controller.store.schema import FIRST_READ, VERSION, schema
from retinue.socket_addresses import fits
from retinue.southbound.ovsdb import Connection, OvsdbError, ProtocolError, connect

log = structlog.get_logger()

OPEN_TIMEOUT = 60.0
"""Seconds a server may take to read its file and answer."""
LOCK_PATIENCE = 3.0
"""Seconds to wait for a former server that was asked to end a moment ago to let go of the file."""
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class DatabaseServer:
    """One server of one file; `start` may be called again after it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sockets: _Sockets | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: asyncio.Task[None] | None = None
        self._words: deque[str] = deque(maxlen=20)

    @property
    def pid(self) -> int | None:
        """Of the running server, None when there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> Connection:
        """Make the file if there is none, serve it, and return a connection. Raises StoreError."""
        await self.stop()
        if not await asyncio.to_thread(self.path.exists):
            await self._create()
        state = await asyncio.to_thread(inspect, self.path)
        if state.version != VERSION:
            await self._convert(state.version)
        elif state.torn_at is not None:
            log.warning(
                "database.last_write_dropped",
                path=str(self.path),
                byte=state.torn_at,
            )
        try:
            self._sockets = _new_sockets(self.path)
        except OSError as e:
            raise StoreError(f"there is no place for the sockets of {self.path}: {e}") from e
        try:
            return await self._serve(self._sockets)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the server. What it has confirmed is in its file."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5.0)
            except TimeoutError:
                log.warning("database.server_killed", pid=process.pid)
                process.kill()
                await process.wait()
        if self._stderr is not None:
            await self._stderr
            self._stderr = None
        if self._sockets is not None:
            self._sockets.remove()
            self._sockets = None

    async def _serve(self, sockets: "_Sockets") -> Connection:
        socket = sockets.database
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._process = await self._spawn(sockets)
        while True:
            if self._process.returncode is not None:
                if self._stderr is not None:
                    await self._stderr
                if "already locked" not in self._last_lines() or loop.time() > began + LOCK_PATIENCE:
                    raise StoreError(self._why_it_ended())
                await asyncio.sleep(0.1)
                self._process = await self._spawn(sockets)
            try:
                connection = await connect(f"unix:{socket}", timeout=OPEN_TIMEOUT, probe=None)
                sockets.remove_older()  # the file is locked by ours, so they are nobody's
                log.info("database.open", path=str(self.path), pid=self.pid, socket=str(socket))
                return connection
            except (FileNotFoundError, ConnectionError):
                if loop.time() > began + OPEN_TIMEOUT:
                    raise StoreError(
                        f"ovsdb-server has not opened {self.path} in {OPEN_TIMEOUT:g} s"
                    ) from None
                await asyncio.sleep(0.01)
            except (OSError, OvsdbError, ProtocolError) as e:
                raise StoreError(f"ovsdb-server of {self.path} cannot be talked to: {e}") from e

    async def _spawn(self, sockets: "_Sockets") -> asyncio.subprocess.Process:
        if self._stderr is not None:
            await self._stderr
        self._words.clear()
        remotes = [f"--remote=punix:{sockets.database}", f"--unixctl={sockets.control}"]
        command = [_program("ovsdb-server"), *remotes, "-vconsole:warn", "-vsyslog:off", "--", str(self.path)]
        if setpriv := shutil.which("setpriv", path=_search_path()):
            # Should the controller be killed, its database ends too and does not keep the file locked.
            command = [setpriv, "--pdeathsig", "TERM", *command]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the controller, which has last things to write
        )
        self._stderr = asyncio.create_task(self._listen(process), name="database server's stderr")
        return process

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with contextlib.suppress(ValueError):  # a line longer than a pipe holds: nothing to learn from it
            async for line in process.stderr:
                text = line.decode(errors="replace").strip()
                self._words.append(text)
                if "|ERR|" in text or "|EMER|" in text:
                    log.error("database.server_output", text=text)
                else:
                    log.debug("database.server_output", text=text)
        await process.wait()

    def _last_lines(self) -> str:
        return "; ".join(self._words) or "it wrote nothing"

    def _why_it_ended(self) -> str:
        lines = self._last_lines()
        advice = ""
        if "already locked" in lines:
            advice = "another controller or ovsdb-server has this file open, end that first: "
        return f"ovsdb-server does not serve {self.path}: {advice}{lines}"

    async def _create(self) -> None:
        log.info("database.created", path=str(self.path))
        fresh = self.path.with_name(self.path.name + ".new")
        if not self.path.parent.is_dir():
            raise StoreError(f"{self.path} cannot be made: there is no directory {self.path.parent}")
        try:
            fresh.unlink(missing_ok=True)
            await self._tool("create", fresh)
            fresh.replace(self.path)  # a whole file or none, whenever we are interrupted
            fresh.with_name(f".{fresh.name}.~lock~").unlink(missing_ok=True)
        except OSError as e:
            raise StoreError(f"{self.path} cannot be made: {e.strerror}") from e

    async def _convert(self, version: str) -> None:
        if _numbers(version) > _numbers(VERSION):
            raise StoreError(
                f"{self.path} was made by a later retinue (schema {version}, this one has {VERSION}); "
                "use that one"
            )
        if _numbers(version) < _numbers(FIRST_READ):
            raise StoreError(
                f"{self.path} was made by a retinue before the first release (schema {version}): tables "
                "had other names, nothing of it can be carried over. Move it away, and a new one is made"
            )
        copy = self.path.with_name(f"{self.path.name}.{version}")
        log.warning("database.converted", path=str(self.path), frm=version, to=VERSION, copy=str(copy))
        await asyncio.to_thread(shutil.copy2, self.path, copy)
        await self._tool("convert", self.path)

    async def _tool(self, verb: str, path: Path) -> None:
        with tempfile.NamedTemporaryFile("w", prefix="retinue-", suffix=".ovsschema") as declared:
            json.dump(schema(), declared)
            declared.flush()
            process = await asyncio.create_subprocess_exec(
                _program("ovsdb-tool"),
                *("-vsyslog:off", verb, str(path), declared.name),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, output = await process.communicate()
        if process.returncode:
            raise StoreError(f"ovsdb-tool {verb} {path} failed: {output.decode(errors='replace').strip()}")


@dataclass(frozen=True, slots=True)
class _Sockets:
    """In a directory only we may enter; the names are new each time, so that nobody else answers there."""

    directory: Path
    token: str

    @property
    def database(self) -> Path:
        return self.directory / f"{self.token}.sock"

    @property
    def control(self) -> Path:
        return self.directory / f"{self.token}.ctl"

    def remove(self) -> None:
        with contextlib.suppress(OSError):  # not empty: another server of this file is just starting
            self.database.unlink(missing_ok=True)
            self.control.unlink(missing_ok=True)
            self.directory.rmdir()

    def remove_older(self) -> None:
        for socket in self.directory.iterdir():
            if socket.stem != self.token:
                socket.unlink(missing_ok=True)


def _new_sockets(path: Path) -> _Sockets:
    """In FILE.run beside the file; or in a temporary directory if that path is too long for a socket."""
    sockets = _Sockets(path.absolute().with_name(path.name + ".run"), secrets.token_hex(4))
    if not (fits(sockets.database) and fits(sockets.control)):
        return _Sockets(Path(tempfile.mkdtemp(prefix="retinue-db-")), sockets.token)
    sockets.directory.mkdir(mode=0o700, exist_ok=True)
    return sockets


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":" + _SYSTEM_PATH


def _program(name: str) -> str:
    found = shutil.which(name, path=_search_path())
    if found is None:
        raise StoreError(f"{name} is not installed (it comes with Open vSwitch: openvswitch-switch)")
    return found


def _numbers(version: str) -> list[int]:
    try:
        return [int(part) for part in version.split(".")]
    except ValueError as e:
        raise StoreError(f"a schema's version is three numbers, not {version!r}") from e
