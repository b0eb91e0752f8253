/*
 * Writes a disk at an even rate, and verifies what it wrote before: does a copy of the disk lose a block?
 *
 *   diskscribble DEVICE MIB RATE FILE [ROUNDS]
 *
 * writes the first MIB mebibytes of DEVICE, RATE mebibytes a second, block by block, over and over, past every
 * cache. Each block of 64 KiB is filled with its number and its round; before it is written anew it is read, and
 * all of it compared. FILE always has one line, renewed ten times a second:
 *   rounds N blocks N wrong N slowest N
 * the whole rounds, all blocks written, the blocks that did not have what was written last, and the longest
 * that one block took, in milliseconds. After ROUNDS it ends. A SIGTERM ends it, the line being true.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 65536, WORDS = BLOCK / sizeof(uint64_t) };
#define SECOND 1000000000LL

static volatile sig_atomic_t ending;

static void end(int signal) {
    (void)signal;
    ending = 1;
}

static int64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * SECOND + at.tv_nsec;
}

static uint64_t word_of(uint64_t block, uint64_t round) {
    return round ? (block << 32 ^ round * 0x9e3779b97f4a7c15ull) | 1 : 0;
}

static void tell(const char *path, uint64_t count, uint64_t done, uint64_t wrong, int64_t slowest) {
    char fresh[256];
    snprintf(fresh, sizeof fresh, "%s.new", path);
    FILE *file = fopen(fresh, "w");
    if (!file) exit(1);
    fprintf(file, "rounds %llu blocks %llu wrong %llu slowest %lld\n", (unsigned long long)(done / count),
            (unsigned long long)done, (unsigned long long)wrong, (long long)(slowest / 1000000));
    fclose(file);
    rename(fresh, path);
}

int main(int argc, char **argv) {
    if (argc < 5 || atoi(argv[2]) < 1 || atoi(argv[3]) < 1) {
        fprintf(stderr, "usage: diskscribble DEVICE MIB RATE FILE [ROUNDS]\n");
        return 2;
    }
    uint64_t count = (uint64_t)atoi(argv[2]) * (1 << 20) / BLOCK, rate = (uint64_t)atoi(argv[3]) * (1 << 20) / BLOCK;
    uint64_t most = argc > 5 ? (uint64_t)atoi(argv[5]) * count : UINT64_MAX;
    int disk = open(argv[1], O_RDWR | O_DIRECT | O_SYNC);
    uint64_t *is = aligned_alloc(4096, BLOCK), *was = aligned_alloc(4096, BLOCK);
    if (disk < 0 || !is || !was) {
        perror("diskscribble");
        return 1;
    }
    signal(SIGTERM, end);
    uint64_t done = 0, wrong = 0;
    int64_t began = now(), told = 0, slowest = 0;
    for (; done < most && !ending; done++) {
        uint64_t block = done % count, round = done / count;
        int64_t start = now();
        if (round) {
            int right = pread(disk, was, BLOCK, block * BLOCK) == BLOCK;
            for (int w = 0; w < (int)WORDS; w++) right &= was[w] == word_of(block, round);
            wrong += !right;
        }
        for (int w = 0; w < (int)WORDS; w++) is[w] = word_of(block, round + 1);
        if (pwrite(disk, is, BLOCK, block * BLOCK) != BLOCK) {
            perror("diskscribble");
            wrong++;
        }
        int64_t at = now(), due = began + (int64_t)((double)(done + 1) / rate * SECOND);
        if (at - start > slowest) slowest = at - start;
        if (at > told + SECOND / 10) {
            tell(argv[4], count, done + 1, wrong, slowest);
            told = at;
        }
        if (due > at) {
            struct timespec rest = {(due - at) / SECOND, (due - at) % SECOND};
            nanosleep(&rest, 0);
        } else if (at - due > SECOND) {
            began += at - due; /* Too slow, or paused: no rush to catch up. */
        }
    }
    tell(argv[4], count, done, wrong, slowest);
    return 0;
}
