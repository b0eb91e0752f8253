"""Whether some QEMU has a file open, by the locks that it holds on it, here or on another server.

QEMU locks single bytes of the file of a disk that it has open: from byte 100 on for what it does with it,
from byte 200 on for what nobody else may do (its block/file-posix.c, RAW_LOCK_PERM_BASE and
RAW_LOCK_SHARED_BASE). Storage that several servers have passes such locks on (NFS from version 4, cluster
file systems), or is of no use for disks. So a file that nobody has locked is not the one that a running VM
writes.
"""

import fcntl
import os
import struct
from pathlib import Path

FIRST_BYTE, BYTES = 100, 200
"""Of a file, all that QEMU locks."""
_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of fcntl(2), where off_t has 64 bits: l_type, l_whence, l_start, l_len, l_pid."""


def is_open_in_qemu(path: Path) -> bool:
    """Some QEMU has the file open. Raises OSError: the file, or its locks, are not to be had."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, FIRST_BYTE, BYTES, 0)
        # fcntl(2): "If the lock could be placed, ... returns F_UNLCK in the l_type field".
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)
