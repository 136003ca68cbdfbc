/* What an access costs a host in C, with no-ops for the I/O: a stub that is rewritten for each access, and a table. In turns, in
 * one run; prints TSC cycles a call, median and quartiles, and the ratio to the bare stub of the same turn. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include "table.h"

struct pt_regs {
    unsigned long r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, rflags, rsp, ss;
};
IOEMUL_ASSERT_REGISTERS(struct pt_regs, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rflags);

enum { FORMS = 64, BATCH = 2048, MAX_ROUNDS = 400, VARIANTS = 5 };

/* An access as a decoder gives it. */
struct access {
    unsigned char opcode, bytes, immediate;
};
static struct access accesses[FORMS];
static struct pt_regs registers __attribute__((aligned(64)));
static unsigned long sum;

/* The plain stub's helpers are as far from a slot as they are from the first stub: what a rewrite has to copy and to fix. */
static unsigned char *slot_writable;
static ioemul_stub_fn slot;
static int slot_len;

static void bare(const struct access *access)
{
    static ioemul_stub_fn stubs[FORMS];
    unsigned long n = (unsigned long)(access - accesses);

    if (!stubs[n])
        stubs[n] = ioemul_plain(ioemul_index(access->opcode, access->bytes, access->immediate));
    sum += stubs[n](&registers);
}

static void inline_lookup(const struct access *access)
{
    unsigned int index = ioemul_index(access->opcode, access->bytes, access->immediate);

    sum += ioemul_resolve(index, registers.rax, registers.rdx, 1)(&registers);
}

/* The same behind a call, as from a library. */
static __attribute__((noinline)) ioemul_stub_fn find(unsigned char opcode, unsigned int bytes, unsigned char immediate,
                                                     unsigned long rax, unsigned long rdx)
{
    return ioemul_resolve(ioemul_index(opcode, bytes, immediate), rax, rdx, 1);
}

static void called_lookup(const struct access *access)
{
    sum += find(access->opcode, access->bytes, access->immediate, registers.rax, registers.rdx)(&registers);
}

/* One stub for each CPU: the bytes that differ are rewritten. */
static void slot_rewritten(const struct access *access)
{
    slot_writable[IOEMUL_IO] = 0x90; /* a no-op in each place, written anew */
    slot_writable[IOEMUL_IO + 1] = 0x90;
    slot_writable[IOEMUL_IO + 2] = (unsigned char)(0x90 + 0 * access->immediate);
    _mm_lfence();
    sum += slot(&registers);
}

/* As hypervisors set a stub up: all of it, piece by piece, with the displacements of this place, then LFENCE. */
static void slot_assembled(const struct access *access)
{
    const unsigned char *from = (const unsigned char *)(unsigned long)ioemul_plain(3);
    unsigned char *to = slot_writable;
    long moved = (const unsigned char *)(unsigned long)slot - from;
    int n, displacement;

    (void)access;
    for (n = 0; n < slot_len; n++) {
        if (from[n] != 0xe8 || (n != IOEMUL_IO - 5 && n != IOEMUL_IO + 3)) {
            *to++ = from[n];
            continue;
        }
        memcpy(&displacement, from + n + 1, 4);
        displacement -= (int)moved;
        *to++ = 0xe8;
        memcpy(to, &displacement, 4);
        to += 4;
        n += 4;
    }
    _mm_lfence();
    sum += slot(&registers);
}

static const struct {
    const char *name;
    void (*call)(const struct access *);
} variants[VARIANTS] = {
    { "the bare stub", bare },
    { "table, lookup inline", inline_lookup },
    { "table, lookup by a call", called_lookup },
    { "slot, its I/O rewritten", slot_rewritten },
    { "slot, set up for each access", slot_assembled },
};

static double samples[VARIANTS][MAX_ROUNDS], ratios[VARIANTS][MAX_ROUNDS];

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

#define MEASURE(function) \
    do { \
        unsigned long start, n; \
        unsigned int aux; \
        for (n = 0; n < 64; n++) \
            function(&accesses[n % forms]); \
        start = __rdtscp(&aux); \
        for (n = 0; n < BATCH; n++) \
            function(&accesses[order[n] % forms]); \
        samples[variant][round] = (double)(__rdtscp(&aux) - start) / BATCH; \
    } while (0)

int main(int argc, char **argv)
{
    static unsigned char order[BATCH];
    int rounds = argc > 1 ? atoi(argv[1]) : 200, round, variant, forms, file;
    unsigned long near = (unsigned long)ioemul_table & ~0xfffful;
    unsigned long n;

    if (rounds < 1 || rounds > MAX_ROUNDS)
        return 2;
    file = memfd_create("slot", 0);
    if (file < 0 || ftruncate(file, 4096))
        return 3;
    slot_writable = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (n = 1; n < 4096 && (slot == 0 || (void *)(unsigned long)slot == MAP_FAILED); n++)
        slot = (ioemul_stub_fn)(unsigned long)mmap((void *)(near + (n << 20)), 4096, PROT_READ | PROT_EXEC,
                                                   MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0);
    if (slot_writable == MAP_FAILED || (void *)(unsigned long)slot == MAP_FAILED)
        return 4;
    slot_len = 36;
    srand(1);
    for (n = 0; n < FORMS; n++) {
        static const unsigned char widths[] = { 1, 2, 4 };
        unsigned char bytes = widths[rand() % 3], opcode = (unsigned char)(0xe4 | (rand() & 2) | (bytes > 1));

        accesses[n].opcode = n ? opcode : 0xee;
        accesses[n].bytes = n ? bytes : 1;
        accesses[n].immediate = (unsigned char)rand();
    }
    for (n = 0; n < BATCH; n++)
        order[n] = (unsigned char)rand();
    registers.rdx = 0x80;
    slot_assembled(accesses);
    for (forms = 1; forms <= FORMS; forms *= FORMS) {
        for (round = 0; round < rounds; round++) {
            variant = 0; MEASURE(bare);
            variant = 1; MEASURE(inline_lookup);
            variant = 2; MEASURE(called_lookup);
            variant = 3; MEASURE(slot_rewritten);
            variant = 4; MEASURE(slot_assembled);
            for (variant = 0; variant < VARIANTS; variant++)
                ratios[variant][round] = samples[variant][round] / samples[0][round];
        }
        printf("%s\n", forms == 1 ? "one form" : "64 forms at random");
        for (variant = 0; variant < VARIANTS; variant++) {
            qsort(samples[variant], (size_t)rounds, sizeof(double), ascending);
            qsort(ratios[variant], (size_t)rounds, sizeof(double), ascending);
            printf("%-32s %8.1f [%.1f, %.1f]  x %.2f [%.2f, %.2f]\n", variants[variant].name, samples[variant][rounds / 2],
                   samples[variant][rounds / 4], samples[variant][rounds * 3 / 4], ratios[variant][rounds / 2],
                   ratios[variant][rounds / 4], ratios[variant][rounds * 3 / 4]);
        }
    }
    return sum == (unsigned long)-1;
}
