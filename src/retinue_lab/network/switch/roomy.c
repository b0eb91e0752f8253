/*
 * Preloaded into ovs-vswitchd (ld.so(8), LD_PRELOAD): its packet sockets have room for some thousand frames.
 *
 * In user space Open vSwitch takes frames from packet sockets of the system's default size, 208 KiB: less than
 * 100 frames of 1400 bytes. A laptop that has VMs to emulate lets the switch wait for longer than these take
 * to come, and the kernel drops the rest, which no switch with a datapath of its own would. For one process
 * this is what `sysctl net.core.rmem_default` is for all: as much as net.core.rmem_max lets it have.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

enum { ROOM = 4 << 20 };

int socket(int domain, int type, int protocol)
{
    int (*make)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    int fd = make(domain, type, protocol), before = errno, room = ROOM;

    if (fd >= 0 && domain == AF_PACKET && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    errno = before;
    return fd;
}
