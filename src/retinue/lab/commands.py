"""How the laboratory's tools start programs on its nodes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

Popen = Callable[[str, Sequence[str]], Awaitable[asyncio.subprocess.Process]]
"""Start a program on the node of that name; its standard input, output and error must be pipes."""
