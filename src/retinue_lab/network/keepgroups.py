"""Run a program for which setgroups(2) does nothing and succeeds.

    python -I -S keepgroups.py PROGRAM ARGUMENTS...

libvirt gives each QEMU the groups of the user it is to run as. In the sandbox that is root, who has no groups
to give, and the kernel rejects the call itself (user_namespaces(7), /proc/pid/setgroups): libvirt would then
start no VM. A system call filter (seccomp(2)), which children inherit, answers it instead.
"""

import ctypes
import os
import platform
import struct
import sys

NUMBERS = {"x86_64": (0xC000003E, 116), "aarch64": (0xC00000B7, 159)}
"""By machine: how the kernel names it to a filter (AUDIT_ARCH_...), and the number of setgroups there."""
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_NO_NEW_PRIVS = 38
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, SUCCEED = 0x7FFF0000, 0x00050000
"""SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with error 0: not done, yet no error."""
NUMBER_AT, MACHINE_AT = 0, 4
"""Where struct seccomp_data has the call's number, and the machine."""


def program(machine: int, call: int) -> bytes:
    """The filter, in the kernel's classic BPF: four-field instructions."""
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (LOAD_WORD, 0, 0, MACHINE_AT),
            (JUMP_IF_EQUAL, 0, 3, machine),
            (LOAD_WORD, 0, 0, NUMBER_AT),
            (JUMP_IF_EQUAL, 0, 1, call),
            (RETURN, 0, 0, SUCCEED),
            (RETURN, 0, 0, ALLOW),
        )
    )


def install() -> None:
    """Put the filter in front of this process and all it starts. Raises OSError."""
    if platform.machine() not in NUMBERS:
        raise OSError(f"no system call filter is known for {platform.machine()}")
    code = ctypes.create_string_buffer(program(*NUMBERS[platform.machine()]))
    # struct sock_fprog: the number of instructions, and where they are.
    filter_ = struct.pack("@HP", (len(code) - 1) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_, 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl: " + os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    install()
    os.execvp(sys.argv[1], sys.argv[1:])
