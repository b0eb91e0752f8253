/*
 * Echo server of the laboratory's guest: UDP and TCP port 7, IPv4 and, where there is one, IPv6.
 *
 * A datagram that begins with the measurer's header (retinue_lab.measure.traffic) gets one thing more: in the field
 * "counter" the number of datagrams received before it in the same run. It lets the measurer tell a lost
 * request from a lost reply. The parent process ends when both ports are open, so that "it has returned"
 * means "it listens".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORT = 7, CONNECTIONS = 256, BUFFER = 16384, RUNS = 64, BURST = 256, QUEUE_BYTES = 16 << 20 };

struct header { /* all in network byte order */
    char magic[4];
    uint32_t run;
    uint32_t sequence;
    uint32_t counter;
};

struct connection {
    int fd;
    size_t used; /* bytes read and not yet written */
    char data[BUFFER];
};

static struct connection connections[CONNECTIONS];
static struct { uint32_t run, received; } runs[RUNS];

static uint32_t count(uint32_t run)
{
    static unsigned next;
    for (unsigned i = 0; i < RUNS; i++)
        if (runs[i].run == run)
            return runs[i].received++;
    runs[next].run = run;
    runs[next].received = 1;
    next = (next + 1) % RUNS;
    return 0;
}

static int listen_on(int type)
{
    int on = 1, off = 0, size = QUEUE_BYTES;
    struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int fd = socket(AF_INET6, type | SOCK_NONBLOCK, 0);
    int six = fd >= 0;

    if (!six)
        fd = socket(AF_INET, type | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (six)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (type == SOCK_DGRAM) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
        setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
        if (six)
            setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
    }
    if (bind(fd, six ? (void *)&any6 : (void *)&any4, six ? sizeof any6 : sizeof any4) < 0
        || (type == SOCK_STREAM && listen(fd, CONNECTIONS) < 0)) {
        perror("responder: port 7");
        exit(1);
    }
    return fd;
}

/* An answer comes from the address that was asked, out of the NIC by which it was: the message that says which
 * these were (ip(7), IP_PKTINFO; ipv6(7)) says it again on the way out. */
static void echo_datagrams(int fd)
{
    static char data[65536];
    for (int i = 0; i < BURST; i++) {
        struct sockaddr_storage from;
        char where[256];
        struct iovec part = {data, sizeof data};
        struct msghdr m = {&from, sizeof from, &part, 1, where, sizeof where, 0};
        ssize_t n = recvmsg(fd, &m, 0);
        if (n < 0)
            return;
        struct header h;
        if ((size_t)n >= sizeof h && !memcmp(data, "RTNU", 4)) {
            memcpy(&h, data, sizeof h);
            h.counter = htonl(count(h.run));
            memcpy(data, &h, sizeof h);
        }
        part.iov_len = n;
        sendmsg(fd, &m, 0);
    }
}

static void take_connection(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0)
        return;
    for (int i = 0; i < CONNECTIONS; i++)
        if (connections[i].fd < 0) {
            connections[i].fd = fd;
            connections[i].used = 0;
            return;
        }
    close(fd); /* full */
}

static void serve(struct connection *c, short events)
{
    if (events & (POLLIN | POLLHUP | POLLERR) && c->used < BUFFER) {
        ssize_t n = read(c->fd, c->data + c->used, BUFFER - c->used);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            goto gone;
        if (n > 0)
            c->used += n;
    }
    if (c->used) {
        ssize_t n = send(c->fd, c->data, c->used, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            goto gone;
        if (n > 0)
            memmove(c->data, c->data + n, c->used -= n);
    }
    return;
gone:
    close(c->fd);
    c->fd = -1;
}

int main(void)
{
    int udp = listen_on(SOCK_DGRAM), tcp = listen_on(SOCK_STREAM);

    if (fork())
        return 0;
    setsid();
    for (int i = 0; i < CONNECTIONS; i++)
        connections[i].fd = -1;
    for (;;) {
        static struct pollfd polled[CONNECTIONS + 2];
        static struct connection *owner[CONNECTIONS + 2];
        nfds_t n = 2;

        polled[0] = (struct pollfd){udp, POLLIN, 0};
        polled[1] = (struct pollfd){tcp, POLLIN, 0};
        for (int i = 0; i < CONNECTIONS; i++) {
            struct connection *c = &connections[i];
            if (c->fd < 0)
                continue;
            short wanted = (c->used < BUFFER ? POLLIN : 0) | (c->used ? POLLOUT : 0);
            owner[n] = c;
            polled[n++] = (struct pollfd){c->fd, wanted, 0};
        }
        if (poll(polled, n, -1) < 0)
            continue;
        if (polled[0].revents)
            echo_datagrams(udp);
        if (polled[1].revents)
            take_connection(tcp);
        for (nfds_t i = 2; i < n; i++)
            if (polled[i].revents)
                serve(owner[i], polled[i].revents);
    }
}
