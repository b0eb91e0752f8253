"""Commands inside a guest, over its second serial port.

The guest's `shell-server` reads one request a line and answers between a line "TOKEN begin" and a line
"TOKEN end CODE". One command runs at a time. The port needs no network, so a test can use it while it breaks
the guest's network.
"""

import asyncio
import base64
import contextlib
import secrets
from pathlib import Path

from retinue.socket_addresses import short_path


class GuestShellError(Exception):
    """The guest's shell did not answer as it should."""


class GuestShell:
    """The root shell of the guest whose second serial port is the unix socket at `path`.

    A connection is made for each command, so that it does not matter whether the QEMU behind the path has
    been replaced meanwhile (give the new path after a migration).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._one_at_a_time = asyncio.Lock()

    async def run(self, command: str, timeout: float = 20.0) -> tuple[int, str]:
        """Run `command` (any shell text) as root; returns its exit code and its output (both streams).

        It is killed in the guest after `timeout` seconds (exit code 137). Raises GuestShellError where the
        guest does not answer at all, as before it has booted.
        """
        async with self._one_at_a_time:
            try:
                with short_path(self.path) as path:
                    reader, writer = await asyncio.open_unix_connection(path, limit=16 << 20)
            except OSError as error:
                raise GuestShellError(f"{self.path}: cannot reach the guest's shell: {error}") from error
            try:
                async with asyncio.timeout(timeout + 5):
                    return await self._ask(reader, writer, command, timeout)
            except TimeoutError as error:
                raise GuestShellError(
                    f"{self.path}: the guest did not answer within {timeout + 5:.0f} s"
                ) from error
            except (OSError, asyncio.IncompleteReadError) as error:
                raise GuestShellError(
                    f"{self.path}: the connection to the guest's shell broke: {error}"
                ) from error
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    @staticmethod
    async def _ask(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str, timeout: float
    ) -> tuple[int, str]:
        token = secrets.token_hex(8)
        encoded = base64.b64encode(command.encode()).decode()
        # The leading line end closes what a broken connection before this one may have left half written.
        writer.write(f"\n{token} {max(1, round(timeout))} {encoded}\n".encode())
        await writer.drain()
        await reader.readuntil(f"{token} begin\n".encode())
        output = await reader.readuntil(f"\n{token} end ".encode())
        code = await reader.readuntil(b"\n")
        text = output.decode(errors="replace").removesuffix(f"\n{token} end ")
        return int(code), text


async def console_line(console: Path, text: str, timeout: float = 60.0) -> str:
    """Wait for a whole line with `text` in what the guest has written to its console; returns that line.

    Raises GuestShellError with the console's last words. Nothing reports that a file has grown, so it is
    looked at again and again.
    """
    until = asyncio.get_running_loop().time() + timeout
    while True:
        output = console.read_text(errors="replace") if console.exists() else ""
        whole = output[: output.rfind("\n") + 1].splitlines()
        found = next((line.strip() for line in whole if text in line), None)
        if found is not None:
            return found
        if asyncio.get_running_loop().time() > until:
            last = " / ".join(whole[-3:]) or "nothing"
            raise GuestShellError(
                f"{console}: no {text!r} within {timeout:.0f} s; the guest wrote last: {last}"
            )
        await asyncio.sleep(0.02)
