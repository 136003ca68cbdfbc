/* A host in C: every form of the table on a structure of its own, faults resumed through the header's fixup. Prints what it
 * has found, for the test to compare. STRUCTURE and MEMBERS are the host's; ELIDED says that there are no-ops for the I/O. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include "table.h"

struct gprs {
    unsigned long rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rflags;
};
struct kvm_regs {
    unsigned long rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags;
};
struct pt_regs {
    unsigned long r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, rflags, rsp, ss;
};

IOEMUL_ASSERT_REGISTERS(STRUCTURE, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rflags);

enum { WORDS = sizeof(STRUCTURE) / 8 };
static const unsigned long STATUS_FLAGS = 0x8d5;
static unsigned long faults, fixed_rip;

static void handler(int signal, siginfo_t *info, void *context)
{
    ucontext_t *machine = context;
    unsigned long pad = ioemul_fixup((unsigned long)machine->uc_mcontext.gregs[REG_RIP]);

    (void)info;
    if (!pad) {
        struct sigaction action;

        memset(&action, 0, sizeof(action));
        sigaction(signal, &action, 0);
        return;
    }
    faults++;
    fixed_rip = (unsigned long)machine->uc_mcontext.gregs[REG_RIP];
    machine->uc_mcontext.gregs[REG_RIP] = (long)pad;
}

static unsigned long random_word(void)
{
    static unsigned long state = 88172645463325252ul;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Whether a call does as it should. */
static int check(ioemul_stub_fn stub, unsigned long rax, unsigned long rdx)
{
    union {
        STRUCTURE registers;
        unsigned long words[WORDS];
    } before, after;
    unsigned long failed, n;

    for (n = 0; n < WORDS; n++)
        before.words[n] = random_word();
    if (rax | rdx) {
        before.registers.rax = rax;
        before.registers.rdx = rdx;
    }
    after = before;
    failed = stub(&after.registers);
#ifdef ELIDED
    (void)STATUS_FLAGS;
    return !failed && !memcmp(&before, &after, sizeof(before));
#else
    (void)STATUS_FLAGS;
    return failed == 1 && !memcmp(&before, &after, sizeof(before));
#endif
}

static const unsigned int WIDTHS[] = { 1, 2, 4 };

int main(void)
{
    static const char *const PROLIANT[IOEMUL_DMI_FIELDS] = { "HP", 0, 0, "ProLiant DL560 Gen8", "" };
    static const char *const OTHER[IOEMUL_DMI_FIELDS] = { "HP", "P89", "HP", "ProBook", 0 };
    static const char *const NEITHER[IOEMUL_DMI_FIELDS] = { "American Megatrends", 0, 0, "ProLiant DL560", 0 };
    struct sigaction action;
    unsigned long good = 0, misplaced = 0, at;
    unsigned int n, opcode, immediate, count, quirks, pass;

    memset(&action, 0, sizeof(action));
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, 0);

    for (opcode = 0xe4; opcode <= 0xef; opcode++) {
        if (opcode >= 0xe8 && opcode <= 0xeb)
            continue;
        for (n = 0; n < 3; n++) {
            if ((opcode & 1) != (n > 0))
                continue;
            for (immediate = 0; immediate < (opcode & 8 ? 1u : 256u); immediate++) {
                unsigned int index = ioemul_index((unsigned char)opcode, WIDTHS[n], (unsigned char)immediate);
                ioemul_stub_fn stub = ioemul_plain(index);
                unsigned long access = (unsigned long)stub + IOEMUL_IO + (n != 1);
                const unsigned char *code = (const unsigned char *)((unsigned long)stub + IOEMUL_IO);
#ifndef ELIDED
                misplaced += code[0] != (n == 1 ? 0x66 : 0x90) || code[1] != opcode
                    || code[2] != (opcode & 8 ? 0x90 : immediate);
#endif
                (void)code;
                fixed_rip = access;
                good += (unsigned long)check(stub, 0, 0);
                misplaced += fixed_rip != access;
                misplaced += ioemul_resolve(index, 0xef, 0xb2, 0) != stub;
            }
        }
    }
    /* Whatever the operand size is said to be, the direction stays, and the table is not left: REX.W says 8. */
    for (opcode = 0xe4; opcode <= 0xef; opcode++)
        for (n = 0; n < 300; n++) {
            unsigned int index = ioemul_index((unsigned char)opcode, n, 0xff), kind = index < 6 ? index : (index - 6) / 256;

            misplaced += index >= IOEMUL_FORMS || (kind >= 3) != !!(opcode & 2) || (index < 6) != !!(opcode & 8);
            misplaced += (kind % 3 > 0) != (opcode & 1);
        }
    printf("forms %lu faults %lu misplaced %lu\n", good, faults, misplaced);

    printf("quirks here %x %x %x\n", ioemul_quirks_here(PROLIANT), ioemul_quirks_here(OTHER), ioemul_quirks_here(NEITHER));
    for (pass = 0; ioemul_quirk_stubs[pass].index != 0xffff; pass++) {
        const struct ioemul_quirk_stub *stub = &ioemul_quirk_stubs[pass];
        unsigned long rax = stub->value | (random_word() & ~(unsigned long)stub->mask), rdx = stub->port | 0x50000ul;
        const struct ioemul_access *access;

        quirks = 1u << stub->quirk;
        access = ioemul_accesses(stub->index, rax, rdx, quirks, &count);
        printf("quirk %u form %u:", stub->quirk, stub->index);
        for (n = 0; n < count; n++)
            printf(" %s%u:%x", access[n].out ? "out" : "in", access[n].bytes, access[n].port);
        printf(" taken %d", ioemul_resolve(stub->index, rax, rdx, quirks) != ioemul_plain(stub->index));
        printf(" other quirks %d", ioemul_resolve(stub->index, rax, rdx, ~quirks) != ioemul_plain(stub->index)
            && ioemul_quirk(stub->index, rax, rdx, ~quirks)->quirk == stub->quirk);
        printf(" other port %d", ioemul_resolve(stub->index, rax, rdx + 1, quirks) != ioemul_plain(stub->index));
#ifndef ELIDED
        printf(" good %d", check(ioemul_resolve(stub->index, rax, rdx, quirks), rax, rdx));
#endif
        printf("\n");
    }
    for (at = 0; at < IOEMUL_SIZE + 16ul; at++) {
        unsigned long pad = ioemul_fixup((unsigned long)ioemul_table + at);

        if (pad)
            printf("fixup %lu %lu\n", at, pad - (unsigned long)ioemul_table);
    }
    return 0;
}
