/*
 * Numbered datagrams at an even pace, in both directions at once, for comparing networks (retinue_lab.compare).
 *
 *   steady answer ADDRESS PORT                     in the guest, of which ADDRESS is one
 *   steady ask ADDRESS PORT RATE SIZE STREAM FILE  on the client
 *   steady watch INTERFACE                         on the client, beside a bulk stream of another program
 *
 * `ask` sends RATE requests a second, each with SIZE bytes of payload; `answer` sends every one back. At the
 * same time `answer` sends STREAM datagrams a second of the same size of its own accord (0: none). ADDRESS is one
 * of IPv4 or IPv6; a guest with several has an `answer` for each, which answers from it alone. The two streams
 * are numbered apart, and each receiver counts: what was lost, doubled or out of order is known for either
 * direction by itself.
 *
 * `ask` writes "flowing" when the guest has answered for the first time. A line on its standard input ends its
 * requests; when all are answered, or no answer has come for two seconds, it writes "stopped": a guest that is
 * behind takes in what waits for it. The end of its standard input ends it, when it has taken all that has come.
 * Then FILE has every time stamp, a line each:
 *   S TIME                     a request was sent; the first line is number 0
 *   R NUMBER TIME COUNTER      a reply came; COUNTER requests had reached the guest before this one
 *   V NUMBER TIME GUEST-TIME   a datagram of the guest's own stream came; GUEST-TIME is the guest's clock
 * Times are nanoseconds since the epoch; those of arrival are the kernel's.
 *
 * `answer` stops its stream at SIGTERM; when nothing has come for half a second it tells what it has seen:
 *   received N, duplicated N, reordered N    requests; received counts each number once
 *   sent N                                   datagrams of its own stream
 *   widest N                                 longest time between two of them, nanoseconds of its clock
 *   missing FIRST LAST                       a range of numbers below the highest seen that never came
 *
 * `watch` looks once a millisecond how many frames the interface has taken in. At the end of its standard
 * input it tells, in nanoseconds, the longest time without one and how long the last silence has lasted:
 *   longest N, silent N
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HELLO, REQUEST, REPLY, STREAM };
enum { NUMBERS = 1 << 20, LONGEST = 9000, QUEUE_BYTES = 16 << 20, BURST = 64 };

struct datagram { /* in network byte order */
    char magic[4];
    uint32_t run, kind, number, counter, rate, size, spare;
    uint64_t time;
};

#define SECOND 1000000000LL
#define QUIET (2 * SECOND)
#define MAGIC "RTNS"

static char buffer[LONGEST];
static volatile sig_atomic_t stopping;

static void stop(int number)
{
    (void)number;
    stopping = 1;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec * SECOND + at.tv_nsec;
}

/* Sleeps until something can be read, or until `due` by the monotonic clock (0: for ever). */
static void sleep_until(struct pollfd *polled, int n, int64_t due)
{
    int64_t left = due ? due - now(CLOCK_MONOTONIC) : 0;
    if (left < 0)
        left = 0;
    struct timespec wait = {left / SECOND, left % SECOND};
    ppoll(polled, n, due ? &wait : NULL, NULL);
}

struct end { struct sockaddr_storage at; socklen_t length; }; /* of either family */

static struct end end_of(const char *address, int port)
{
    struct end found = {0};
    struct sockaddr_in *v4 = (void *)&found.at;
    struct sockaddr_in6 *v6 = (void *)&found.at;
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        found.length = sizeof *v4;
        return found;
    }
    memset(&found, 0, sizeof found);
    errno = EINVAL;
    if (inet_pton(AF_INET6, address, &v6->sin6_addr) != 1)
        fail(address);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    found.length = sizeof *v6;
    return found;
}

static int open_socket(const struct end *end)
{
    int size = QUEUE_BYTES, on = 1, fd = socket(end->at.ss_family, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        fail("socket");
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    prctl(PR_SET_TIMERSLACK, 1UL); /* wake on time, not up to 50 us later */
    return fd;
}

/* The next datagram that is one of ours, in `buffer`: its length, 0 for another one, -1 when there is none. */
static ssize_t take(int fd, struct datagram *d, struct end *from, int64_t *at)
{
    char ancillary[256];
    struct iovec part = {buffer, sizeof buffer};
    struct msghdr message = {.msg_name = &from->at, .msg_namelen = sizeof from->at, .msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = ancillary, .msg_controllen = sizeof ancillary};
    ssize_t n = recvmsg(fd, &message, 0);
    from->length = message.msg_namelen;
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? -1 : 0; /* else an ICMP error that came back */
    if ((size_t)n < sizeof *d || memcmp(buffer, MAGIC, 4))
        return 0;
    memcpy(d, buffer, sizeof *d);
    *at = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(c), sizeof stamp);
            *at = stamp.tv_sec * SECOND + stamp.tv_nsec;
        }
    return n;
}

static void put(int fd, const struct end *to, struct datagram d, size_t size)
{
    static char out[LONGEST];
    memcpy(d.magic, MAGIC, 4);
    memcpy(out, &d, sizeof d);
    sendto(fd, out, size, 0, (void *)&to->at, to->length); /* refused is as good as lost */
}

static size_t size_of(uint32_t wanted)
{
    return wanted < sizeof(struct datagram) ? sizeof(struct datagram) : wanted > LONGEST ? LONGEST : wanted;
}

/* ---- the guest's side ---- */

static uint8_t seen[NUMBERS];
static struct { uint32_t run, total, distinct, duplicated, reordered, above; } requests;
static struct { uint32_t run, rate, size, sent; int64_t begin, last, widest; struct end to; } stream;

static void note_request(uint32_t number)
{
    requests.total++;
    if (seen[number]) {
        requests.duplicated++;
        return;
    }
    seen[number] = 1;
    requests.distinct++;
    if (number < requests.above)
        requests.reordered++;
    else
        requests.above = number + 1;
}

static void begin(const struct datagram *hello, const struct end *from)
{
    if (requests.run == hello->run)
        return; /* the same client, which has not received an answer yet */
    memset(seen, 0, sizeof seen);
    memset(&requests, 0, sizeof requests);
    memset(&stream, 0, sizeof stream);
    requests.run = stream.run = hello->run;
    stream.rate = ntohl(hello->rate);
    stream.size = size_of(ntohl(hello->size));
    stream.to = *from;
    stream.begin = now(CLOCK_MONOTONIC);
}

static int64_t due_at(int64_t begin, uint32_t number, uint32_t rate)
{
    return begin + (int64_t)number * SECOND / rate;
}

static void send_stream(int fd)
{
    for (int i = 0; i < BURST && due_at(stream.begin, stream.sent, stream.rate) <= now(CLOCK_MONOTONIC); i++) {
        int64_t at = now(CLOCK_MONOTONIC);
        struct datagram d = {.run = stream.run, .kind = htonl(STREAM), .number = htonl(stream.sent++),
                             .time = htobe64(at)};
        if (stream.last && at - stream.last > stream.widest)
            stream.widest = at - stream.last;
        stream.last = at;
        put(fd, &stream.to, d, stream.size);
    }
}

static void answer(int fd)
{
    struct datagram d;
    struct end from;
    int64_t at;
    ssize_t n;
    for (int i = 0; i < BURST && (n = take(fd, &d, &from, &at)) >= 0; i++) {
        if (!n)
            continue;
        if (ntohl(d.kind) == HELLO) {
            begin(&d, &from);
            put(fd, &from, d, sizeof d);
        } else if (ntohl(d.kind) == REQUEST && d.run == requests.run && ntohl(d.number) < NUMBERS) {
            d.kind = htonl(REPLY);
            d.counter = htonl(requests.total);
            note_request(ntohl(d.number));
            put(fd, &from, d, n);
        }
    }
}

static void report(void)
{
    printf("received %u\nduplicated %u\nreordered %u\nsent %u\nwidest %lld\n", requests.distinct,
           requests.duplicated, requests.reordered, stream.sent, (long long)stream.widest);
    for (uint32_t i = 0; i < requests.above; i++)
        if (!seen[i]) {
            uint32_t first = i;
            while (i + 1 < requests.above && !seen[i + 1])
                i++;
            printf("missing %u %u\n", first, i);
        }
}

static int run_answer(const char *address, int port)
{
    struct end own = end_of(address, port);
    int fd = open_socket(&own);
    if (bind(fd, (void *)&own.at, own.length) < 0)
        fail("bind");
    signal(SIGTERM, stop);
    struct pollfd polled = {fd, POLLIN, 0};
    while (!stopping) {
        /* Now and then it wakes for nothing: a signal may have come just before it slept. */
        int64_t due = now(CLOCK_MONOTONIC) + SECOND / 10;
        if (stream.rate)
            due = due_at(stream.begin, stream.sent, stream.rate);
        sleep_until(&polled, 1, due);
        answer(fd);
        if (stream.rate && !stopping)
            send_stream(fd);
    }
    for (int64_t quiet = now(CLOCK_MONOTONIC) + SECOND / 2;;) {
        uint32_t before = requests.total;
        sleep_until(&polled, 1, quiet);
        int64_t moment = now(CLOCK_MONOTONIC); /* before the look: what came late, while it slept, counts */
        answer(fd);
        if (requests.total != before)
            quiet = now(CLOCK_MONOTONIC) + SECOND / 2;
        else if (moment >= quiet)
            break;
    }
    report();
    return 0;
}

/* ---- the client's side ---- */

struct arrival { uint32_t kind, number; int64_t at, extra; };

static int64_t *sent_at;
static struct arrival *arrivals;
static uint32_t sent, arrived, room, answered;

static void note_arrival(const struct datagram *d, int64_t at)
{
    if (arrived == room) {
        room = room ? 2 * room : 1 << 16;
        arrivals = realloc(arrivals, room * sizeof *arrivals);
        if (!arrivals)
            fail("memory");
    }
    uint32_t kind = ntohl(d->kind);
    answered += kind == REPLY;
    int64_t extra = kind == STREAM ? (int64_t)be64toh(d->time) : (int64_t)ntohl(d->counter);
    arrivals[arrived++] = (struct arrival){kind, ntohl(d->number), at, extra};
}

static void write_record(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        fail(path);
    for (uint32_t i = 0; i < sent; i++)
        fprintf(file, "S %lld\n", (long long)sent_at[i]);
    for (uint32_t i = 0; i < arrived; i++)
        fprintf(file, "%c %u %lld %lld\n", arrivals[i].kind == STREAM ? 'V' : 'R', arrivals[i].number,
                (long long)arrivals[i].at, (long long)arrivals[i].extra);
    if (fclose(file))
        fail(path);
}

static int run_ask(const char *address, int port, uint32_t rate, uint32_t size, uint32_t stream_rate,
                   const char *path)
{
    struct end to = end_of(address, port);
    int fd = open_socket(&to), flowing = 0, asking = 1, stopped = 0;
    if (connect(fd, (void *)&to.at, to.length) < 0)
        fail(address);
    sent_at = malloc(NUMBERS * sizeof *sent_at);
    if (!sent_at)
        fail("memory");
    struct datagram hello = {.run = htonl(getpid() ^ (uint32_t)now(CLOCK_REALTIME)), .kind = htonl(HELLO),
                             .rate = htonl(stream_rate), .size = htonl(size)};
    struct pollfd polled[2] = {{fd, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    int64_t begun = 0, again = now(CLOCK_MONOTONIC), quiet = 0; /* quiet: then it says that it has stopped */
    for (;;) {
        int64_t due = !flowing ? again : asking ? due_at(begun, sent, rate) : stopped ? 0 : quiet;
        sleep_until(polled, 2, due);
        struct datagram d;
        struct end from;
        int64_t at;
        ssize_t n;
        /* At the end of its input all that has come is taken, else a burst at a time. */
        int ending = polled[1].revents & POLLHUP;
        for (int i = 0; (ending || i < BURST) && (n = take(fd, &d, &from, &at)) >= 0; i++) {
            if (!n || d.run != hello.run)
                continue;
            if (ntohl(d.kind) != HELLO) {
                note_arrival(&d, at);
                if (quiet && ntohl(d.kind) == REPLY)
                    quiet = now(CLOCK_MONOTONIC) + QUIET;
            } else if (!flowing) {
                flowing = 1;
                begun = now(CLOCK_MONOTONIC);
                printf("flowing\n");
                fflush(stdout);
            }
        }
        if (polled[1].revents) {
            char line[64];
            if (read(STDIN_FILENO, line, sizeof line) <= 0)
                break;
            if (!quiet)
                quiet = now(CLOCK_MONOTONIC) + QUIET;
            asking = 0;
        }
        int64_t moment = now(CLOCK_MONOTONIC);
        if (quiet && !stopped && (answered >= sent || moment >= quiet)) {
            printf("stopped\n");
            fflush(stdout);
            stopped = 1;
        }
        if (!flowing && moment >= again) {
            put(fd, &to, hello, sizeof hello);
            again = moment + SECOND / 50;
        }
        for (int i = 0; flowing && asking && i < BURST && sent < NUMBERS && due_at(begun, sent, rate) <= moment; i++) {
            struct datagram r = {.run = hello.run, .kind = htonl(REQUEST), .number = htonl(sent)};
            sent_at[sent++] = now(CLOCK_REALTIME);
            put(fd, &to, r, size_of(size));
        }
        if (sent == NUMBERS)
            asking = 0;
    }
    write_record(path);
    return 0;
}

/* ---- watching an interface ---- */

static unsigned long long frames(const char *path)
{
    unsigned long long count = 0;
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%llu", &count) != 1)
        fail(path);
    fclose(file);
    return count;
}

static int run_watch(const char *interface)
{
    char path[128], line[64];
    snprintf(path, sizeof path, "/sys/class/net/%s/statistics/rx_packets", interface);
    unsigned long long before = frames(path);
    int64_t last = now(CLOCK_MONOTONIC), longest = 0, due = last;
    struct pollfd polled = {STDIN_FILENO, POLLIN, 0};
    prctl(PR_SET_TIMERSLACK, 1UL);
    printf("watching\n");
    fflush(stdout);
    for (;;) {
        due += SECOND / 1000;
        sleep_until(&polled, 1, due);
        int64_t moment = now(CLOCK_MONOTONIC);
        unsigned long long count = frames(path);
        if (count != before) {
            if (moment - last > longest)
                longest = moment - last;
            last = moment;
            before = count;
        }
        if (polled.revents && read(STDIN_FILENO, line, sizeof line) <= 0)
            break;
        if (due < moment)
            due = moment;
    }
    printf("longest %lld\nsilent %lld\n", (long long)longest, (long long)(now(CLOCK_MONOTONIC) - last));
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "watch"))
        return run_watch(argv[2]);
    if (argc == 4 && !strcmp(argv[1], "answer"))
        return run_answer(argv[2], atoi(argv[3]));
    if (argc == 8 && !strcmp(argv[1], "ask") && atoi(argv[4]) > 0)
        return run_ask(argv[2], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), atoi(argv[6]), argv[7]);
    fprintf(stderr, "steady answer ADDRESS PORT | steady ask ADDRESS PORT RATE SIZE STREAM FILE | "
                    "steady watch INTERFACE\n");
    return 2;
}
