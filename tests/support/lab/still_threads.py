"""Stops single threads of a process, by name, while the others run on: a program for the lab's tests.

    python still_threads.py PID NAME

It says "still" when all threads whose name begins with NAME stand still. They run on when its standard input
ends, or with its own end.
"""

import ctypes
import os
import sys
from pathlib import Path

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WAIT_ALL = 0x40000000
"""waitpid(2): __WALL, for threads are no children."""


def main() -> None:
    tasks = Path(f"/proc/{sys.argv[1]}/task").iterdir()
    threads = [int(task.name) for task in tasks if (task / "comm").read_text().startswith(sys.argv[2])]
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        for thread in threads:
            if libc.ptrace(request, thread, None, None):
                raise OSError(ctypes.get_errno(), f"thread {thread} cannot be stopped")
    for thread in threads:
        os.waitpid(thread, WAIT_ALL)
    print(f"still: {len(threads)}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
