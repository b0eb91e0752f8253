"""The real REST interface, in a thread of its own, for programs that ask it from outside."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

import structlog

from retinue.controller.api.server import Api
from retinue.controller.app import Controller


@contextlib.contextmanager
def serving(controller: Callable[[], Controller], api: Callable[[Controller], Api]) -> Iterator[int]:
    """The port it listens on, inside the context. Both are made in the thread's event loop."""
    up: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def serve() -> None:
        controls = controller()
        serves = api(controls)
        end = asyncio.Event()
        await controls.start()
        port = await serves.start("127.0.0.1", 0)
        up.put((port, asyncio.get_running_loop(), end))
        await end.wait()
        controls.events.close()
        await serves.stop()
        await controls.stop()

    # A daemon: what cannot be started is told by the test that fails, and holds up nobody's end.
    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    with structlog.testing.capture_logs():
        port, loop, end = up.get(timeout=60)
        try:
            yield port
        finally:
            loop.call_soon_threadsafe(end.set)
            thread.join()
