/*
 * Writes memory at an even rate, and verifies what it wrote before: does a copy of the VM lose a page?
 *
 *   scribble MIB RATE FILE
 *
 * holds MIB mebibytes and writes RATE mebibytes a second, page by page, over and over. Each page is filled with
 * its number and its round; before it is written anew all of it is compared. FILE always has one line,
 * renewed ten times a second:
 *   rounds N pages N wrong N
 * the whole rounds, all pages written, and the pages that did not have what was written last.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, WORDS = PAGE / sizeof(uint64_t), BATCH = 16 };
#define SECOND 1000000000LL

static int64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * SECOND + at.tv_nsec;
}

static uint64_t word_of(uint64_t page, uint64_t round) {
    return round ? (page << 32 ^ round * 0x9e3779b97f4a7c15ull) | 1 : 0;
}

static void tell(const char *path, uint64_t rounds, uint64_t pages, uint64_t wrong) {
    char fresh[256];
    snprintf(fresh, sizeof fresh, "%s.new", path);
    FILE *file = fopen(fresh, "w");
    if (!file) exit(1);
    fprintf(file, "rounds %llu pages %llu wrong %llu\n", (unsigned long long)rounds, (unsigned long long)pages,
            (unsigned long long)wrong);
    fclose(file);
    rename(fresh, path);
}

int main(int argc, char **argv) {
    if (argc != 4 || atoi(argv[1]) < 1 || atoi(argv[2]) < 1) {
        fprintf(stderr, "usage: scribble MIB RATE FILE\n");
        return 2;
    }
    uint64_t count = (uint64_t)atoi(argv[1]) << 8, rate = (uint64_t)atoi(argv[2]) << 8;
    uint64_t *memory = mmap(0, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("scribble");
        return 1;
    }
    uint64_t done = 0, wrong = 0;
    int64_t began = now(), told = 0;
    for (;;) {
        for (int n = 0; n < BATCH; n++, done++) {
            uint64_t page = done % count, round = done / count;
            uint64_t *words = memory + page * WORDS, was = word_of(page, round), is = word_of(page, round + 1);
            int right = 1;
            for (int w = 0; w < (int)WORDS; w++) {
                right &= words[w] == was;
                words[w] = is;
            }
            wrong += !right;
        }
        int64_t at = now(), due = began + (int64_t)((double)done / rate * SECOND);
        if (at > told + SECOND / 10) {
            tell(argv[3], done / count, done, wrong);
            told = at;
        }
        if (due > at) {
            struct timespec rest = {(due - at) / SECOND, (due - at) % SECOND};
            nanosleep(&rest, 0);
        } else if (at - due > SECOND) {
            began += at - due; /* The processor is too slow, or the VM was paused: no rush to catch up. */
        }
    }
}
