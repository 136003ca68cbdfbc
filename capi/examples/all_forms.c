/*
 * Runs every form of IN and OUT in a process that may touch no port: each access faults, the handler of SIGSEGV sets RIP to
 * where the library says, the stub returns 1, and the registers are as they were given.
 *
 *     table   one for all CPUs:    mmap: read, write ──emit──> mprotect: read, execute ──> stubs run
 *     slot    one for each CPU:    two mappings of one file: one is written for each access, the other is executed
 *
 * CPUS threads stand for a host's CPUs, and run at the same time. All layouts are tried but the one that a shadow stack
 * refuses. Needs Linux, and no privilege. What right to touch ports the process has inherited (iopl, ioperm) it gives up first:
 * nothing here reaches the hardware.
 *
 *     cc -pthread all_forms.c $(pkg-config --cflags --libs ioemul)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <ioemul.h>

#define CPUS 2

/* What the handler asks, for the stub that this thread runs: the table, or if there is none the slot. */
static __thread struct {
    const struct ioemul_table *table;
    uint64_t va;
    const struct ioemul_insn *insn;
    const struct ioemul_helpers *helpers;
} volatile current;
static __thread volatile sig_atomic_t resumed;

static void on_fault(int signal, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    uint64_t rip = (uint64_t)registers[REG_RIP], resume;
    int error;
    (void)info;
    if (current.table) {
        error = ioemul_table_fixup(current.table, rip, &resume);
    } else {
        error = ioemul_stub_fixup(current.va, current.insn, current.helpers, rip, &resume);
    }
    if (error) { /* not ours: the instruction runs again, and the process ends as it would have */
        struct sigaction ends;
        memset(&ends, 0, sizeof ends);
        ends.sa_handler = SIG_DFL;
        sigaction(signal, &ends, NULL);
        return;
    }
    registers[REG_RIP] = (greg_t)resume;
    resumed++;
}

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void check(int error, const char *what) {
    if (error) {
        fail(what, ioemul_error_text(error));
    }
}

/* A whole number of pages. */
static size_t pages(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static void given(struct ioemul_gprs *gprs, size_t index) {
    uint64_t *words = &gprs->rax;
    size_t word;
    for (word = 0; word < 16; word++) {
        words[word] = 0x0101010101010101u * (word + 1) + index;
    }
    gprs->rdx = 0x80 + index % 0x1000; /* the port of the forms with DX */
    gprs->rflags = 0x2 | (index % 2 ? 0x8d5 : 0); /* all status flags, or none */
}

/* Fetches, decodes and calls as an emulator does; `entry` is the stub of the decoded instruction. */
static void run(size_t index, uint64_t entry) {
    struct ioemul_gprs gprs, before;
    sig_atomic_t faults = resumed;
    uint64_t returned;
    given(&gprs, index);
    before = gprs;
    returned = ((ioemul_stub)(uintptr_t)entry)(&gprs);
    if (returned != 1 || resumed != faults + 1) {
        fail("a stub", "it did not fault once and return 1");
    }
    if (memcmp(&gprs, &before, sizeof gprs)) {
        fail("a stub", "the registers are not as they were given");
    }
}

/* The guest's instruction of an index, by way of its bytes. */
static void fetch_and_decode(size_t index, struct ioemul_insn *insn) {
    struct ioemul_insn form = IOEMUL_INSN_INIT;
    unsigned char code[IOEMUL_MAX_ENCODED];
    size_t len, length;
    check(ioemul_insn_at(index, &form), "ioemul_insn_at");
    check(ioemul_insn_encode(&form, code, sizeof code, &len), "ioemul_insn_encode");
    check(ioemul_decode(code, len, 64, insn, &length), "ioemul_decode");
    if (length != len || memcmp(&form, insn, sizeof form)) {
        fail("ioemul_decode", "another instruction than was encoded");
    }
}

/* Writes the table, and makes it executable; it is never written to again. Returns its length. */
static size_t make_table(struct ioemul_table *table, void **code, const struct ioemul_options *options) {
    size_t bytes;
    table->size = sizeof *table;
    check(ioemul_table_size(options, &bytes), "ioemul_table_size");
    *code = mmap(NULL, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*code == MAP_FAILED) {
        fail("mmap", strerror(errno));
    }
    check(ioemul_table_emit(table, *code, bytes, (uint64_t)(uintptr_t)*code, options), "ioemul_table_emit");
    if (mprotect(*code, pages(bytes), PROT_READ | PROT_EXEC)) {
        fail("mprotect", strerror(errno));
    }
    return bytes;
}

static void run_table(const struct ioemul_table *table) {
    size_t index;
    current.table = table;
    for (index = 0; index < IOEMUL_FORMS; index++) {
        struct ioemul_insn insn = IOEMUL_INSN_INIT;
        struct ioemul_access accesses[IOEMUL_MAX_ACCESSES];
        size_t count = IOEMUL_MAX_ACCESSES;
        struct ioemul_gprs gprs;
        uint64_t entry;
        given(&gprs, index);
        fetch_and_decode(index, &insn);
        check(ioemul_table_accesses(table, &insn, gprs.rax, gprs.rdx, accesses, &count), "ioemul_table_accesses");
        /* Here a host looks whether all `count` of them are permitted. */
        if (count != 1 || accesses[0].port != (insn.operand == IOEMUL_IMM8 ? insn.port : gprs.rdx)) {
            fail("ioemul_table_accesses", "not the access of the instruction");
        }
        check(ioemul_table_resolve(table, &insn, gprs.rax, gprs.rdx, &entry), "ioemul_table_resolve");
        run(index, entry);
    }
    current.table = NULL;
}

/* One CPU's slot: written through one mapping, executed in another. The helpers come first. */
static void run_slot(const struct ioemul_options *options) {
    static const size_t slot_at = 1024;
    size_t len = pages(1), helpers_len, length, index;
    struct ioemul_helpers helpers;
    unsigned char *writable, *executable;
    uint64_t va;
    int file = memfd_create("ioemul slot", 0);
    if (file < 0 || ftruncate(file, (off_t)len)) {
        fail("memfd_create", strerror(errno));
    }
    writable = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    executable = mmap(NULL, len, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    if (writable == MAP_FAILED || executable == MAP_FAILED) {
        fail("mmap", strerror(errno));
    }
    close(file);
    helpers.size = sizeof helpers;
    check(ioemul_helpers_emit(&helpers, writable, slot_at, (uint64_t)(uintptr_t)executable, options, &helpers_len),
          "ioemul_helpers_emit");
    va = (uint64_t)(uintptr_t)(executable + slot_at);
    for (index = 0; index < IOEMUL_FORMS; index++) {
        struct ioemul_insn insn = IOEMUL_INSN_INIT;
        fetch_and_decode(index, &insn);
        check(ioemul_stub_emit(writable + slot_at, len - slot_at, va, &insn, &helpers, &length), "ioemul_stub_emit");
        current.va = va;
        current.insn = &insn;
        current.helpers = &helpers;
        __asm__ volatile("lfence" ::: "memory"); /* no older bytes of the slot, speculatively */
        run(index, va);
    }
    munmap(writable, len);
    munmap(executable, len);
}

struct cpu {
    pthread_t thread;
    const struct ioemul_table *table;
    const struct ioemul_options *options;
    size_t faults;
};

static void *run_cpu(void *argument) {
    struct cpu *cpu = argument;
    run_table(cpu->table);
    run_slot(cpu->options);
    cpu->faults = (size_t)resumed;
    return NULL;
}

int main(void) {
    static const struct {
        uint32_t layout;
        const char *name;
    } layouts[] = { { IOEMUL_CALL_RET, "call-ret" }, { IOEMUL_COMPACT, "compact" }, { IOEMUL_INLINE, "inline" } };
    struct sigaction action;
    size_t index, faults = 0;
    if (ioemul_abi_version() >> 16 != IOEMUL_ABI_VERSION >> 16
        || ioemul_abi_version() < IOEMUL_ABI_VERSION) {
        fail("libioemul", "it is another version than its header");
    }
    /* Giving up a right needs none, and succeeds where there is none to give up. ENOSYS: there is no such right at all. */
    if ((syscall(SYS_iopl, 0) && errno != ENOSYS) || (syscall(SYS_ioperm, 0, 0x10000, 0) && errno != ENOSYS)) {
        fail("iopl, ioperm", strerror(errno));
    }
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigfillset(&action.sa_mask);
    if (sigaction(SIGSEGV, &action, NULL)) {
        fail("sigaction", strerror(errno));
    }
    for (index = 0; index < sizeof layouts / sizeof *layouts; index++) {
        struct ioemul_options options = IOEMUL_OPTIONS_INIT;
        struct ioemul_table table;
        struct cpu cpus[CPUS];
        void *code;
        size_t bytes, number;
        options.layout = layouts[index].layout;
        options.ring = 3;
        bytes = make_table(&table, &code, &options);
        /* Starting a thread publishes the table to it. */
        for (number = 0; number < CPUS; number++) {
            cpus[number].table = &table;
            cpus[number].options = &options;
            if (pthread_create(&cpus[number].thread, NULL, run_cpu, &cpus[number])) {
                fail("pthread_create", "no thread");
            }
        }
        for (number = 0; number < CPUS; number++) {
            if (pthread_join(cpus[number].thread, NULL)) {
                fail("pthread_join", "no thread");
            }
            faults += cpus[number].faults;
        }
        munmap(code, pages(bytes));
        printf("%-8s  %d forms on a table of %zu bytes, and on a slot: %d CPUs\n", layouts[index].name, IOEMUL_FORMS, bytes,
               CPUS);
    }
    printf("%zu faults, each resumed by RIP alone\n", faults);
    return 0;
}
