/*
 * sendraw [-i INTERFACE] [-c COUNT] [FRAME...]: sends Ethernet frames as they are given, in hexadecimal
 * (white space and colons between digits are skipped), from the arguments or, without any, one a line from
 * standard input. For tests that spoof. COUNT sends all given frames that many times.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SHORTEST = 14, LONGEST = 1514 };

static int interface, out;

static void send_frame(const char *text)
{
    unsigned char frame[LONGEST];
    size_t digits = 0;

    for (const char *p = text; *p; p++) {
        if (isspace((unsigned char)*p) || *p == ':')
            continue;
        if (!isxdigit((unsigned char)*p) || digits / 2 >= LONGEST) {
            fprintf(stderr, "sendraw: not a frame in hexadecimal: %s\n", text);
            exit(2);
        }
        int c = tolower((unsigned char)*p), value = isdigit(c) ? c - '0' : c - 'a' + 10;
        frame[digits / 2] = digits % 2 ? frame[digits / 2] << 4 | value : value;
        digits++;
    }
    if (digits % 2 || digits / 2 < SHORTEST) {
        fprintf(stderr, "sendraw: a frame has %d to %d whole bytes: %s\n", SHORTEST, LONGEST, text);
        exit(2);
    }
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = interface, .sll_halen = 6};
    memcpy(to.sll_addr, frame, 6);
    if (sendto(out, frame, digits / 2, 0, (void *)&to, sizeof to) < 0) {
        perror("sendraw");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    const char *name = "eth0";
    long times = 1;
    int option;

    while ((option = getopt(argc, argv, "i:c:")) != -1) {
        if (option == 'i')
            name = optarg;
        else if (option == 'c')
            times = atol(optarg);
        else
            return 2;
    }
    interface = if_nametoindex(name);
    if (!interface || (out = socket(AF_PACKET, SOCK_RAW, 0)) < 0) {
        perror(name);
        return 1;
    }
    if (optind == argc) {
        char line[4 * LONGEST];
        while (fgets(line, sizeof line, stdin))
            for (long i = 0; i < times; i++)
                send_frame(line);
        return 0;
    }
    for (long i = 0; i < times; i++)
        for (int a = optind; a < argc; a++)
            send_frame(argv[a]);
    return 0;
}
