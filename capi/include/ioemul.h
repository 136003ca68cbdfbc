/*
 * ioemul: runs an x86 port-I/O instruction with somebody else's registers in view.
 *
 * This library writes machine code into memory of yours: a stub for each form of IN and OUT, which loads a guest's fifteen
 * general-purpose registers and status flags, makes the access on the real port, and stores all of them again.
 *
 *     guest bytes --ioemul_decode--> form --ioemul_table_accesses--> permitted? --ioemul_table_resolve--> stub --call--> 0 or 1
 *     fault at RIP --ioemul_table_fixup--> set RIP to that, and nothing else: the stub returns 1
 *
 * RESULTS. A function that returns int returns 0, or one of enum ioemul_error; ioemul_error_text says what it means. On an
 * error nothing was written: neither results nor code. No function allocates, locks, or calls the system, and none keeps
 * a pointer that it was given.
 *
 * POINTERS may not be NULL unless it says so here. They are aligned as their type asks for, and lead to initialized memory
 * if they are read. No two that are given to one call overlap. NULL and misaligned ones are errors.
 *
 * STRUCTURES begin with their size, which you set: sizeof the structure. A program that was built with an older header
 * passes a shorter one, in which what is missing counts as 0; one that was built with a newer header passes a longer one,
 * in which what this library does not know has to be 0 (in a result it becomes 0, but for
 * ioemul_table and ioemul_helpers, whose rest is left alone). Five have no size, and never change:
 * ioemul_quirk, ioemul_access and ioemul_fault, which are elements of arrays; ioemul_string, a part of ioemul_dmi; and
 * ioemul_gprs, which is what stubs work on.
 *
 * THREADS. There is no state but in your structures. Any threads may call any functions at the same time, and so may signal
 * handlers, as long as nobody reads what another is writing: one ioemul_table or ioemul_helpers is filled by one thread,
 * then published (a store with release order, a load with acquire order), then read by all, and not written to any more.
 * Stubs of a table may run on any number of CPUs at the same time, each on registers of its own. A slot is one CPU's: see
 * ioemul_stub_emit. Two ports that make one interface (an index and its data) are yours to lock.
 *
 * MEMORY. Code is written through the pointer and runs at `va`, the address at which it can be executed; the same memory may
 * be mapped in two places, or be made executable when it is written. Structures that were filled may be copied and moved
 * within the process while this library is loaded, and need not be given back.
 *
 * FAULTS. An access that the CPU refuses raises an exception, in a process a SIGSEGV, at an address in the stub. Your
 * handler asks for the place to resume at, sets RIP to it, and returns. The stub then returns 1, the registers being as
 * they were given. The handler is installed before the first stub is called, with an alternate stack or without one:
 * stubs keep nothing below RSP.
 *
 * x86-64 only. The calling convention of a stub is System V's.
 */
#ifndef IOEMUL_H
#define IOEMUL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. What ioemul_abi_version returns has the same upper 16 bits, and no smaller lower ones. */
#define IOEMUL_ABI_VERSION 0x10000u

/* The version of the library that is linked. */
uint32_t ioemul_abi_version(void);

/* Why a function did nothing. Later versions may add numbers. */
enum ioemul_error {
    IOEMUL_OK = 0,
    IOEMUL_ERROR_NULL = 1,            /* a pointer is NULL */
    IOEMUL_ERROR_MISALIGNED = 2,      /* a pointer is not aligned */
    IOEMUL_ERROR_SIZE = 3,            /* a structure's size is too small, or there is something unknown in it */
    IOEMUL_ERROR_VALUE = 4,           /* a number is not one of its enumeration's */
    IOEMUL_ERROR_NOT_EMITTED = 5,     /* the ioemul_table or ioemul_helpers was not filled */
    IOEMUL_ERROR_TRUNCATED = 6,       /* the bytes end before the instruction does: fetch more */
    IOEMUL_ERROR_TOO_LONG = 7,        /* more than 15 bytes: a CPU raises #GP */
    IOEMUL_ERROR_LOCK = 8,            /* a LOCK prefix: a CPU raises #UD */
    IOEMUL_ERROR_NOT_PORT_IO = 9,     /* another instruction */
    IOEMUL_ERROR_TOO_SMALL = 10,      /* the memory for the code, or the array, is too short */
    IOEMUL_ERROR_OUT_OF_RANGE = 11,   /* helpers or return thunk are more than 2 GiB away */
    IOEMUL_ERROR_ADDRESS = 12,        /* the code is not in one piece of canonical address space */
    IOEMUL_ERROR_REGISTER_FILE = 13,  /* two registers overlap */
    IOEMUL_ERROR_TOO_MANY_QUIRKS = 14,
    IOEMUL_ERROR_QUIRK = 15,          /* a quirk cannot be emitted with these options */
    IOEMUL_ERROR_NO_STUB = 16,        /* this form has no stub by this name */
    IOEMUL_ERROR_NOT_FOUND = 17,      /* none of that name, number or address */
    IOEMUL_ERROR_INTERNAL = 18        /* a defect of this library: please report it */
};

/* What a number of enum ioemul_error means: an English text that stays, never NULL, whatever the number. */
const char *ioemul_error_text(int error);

/* ---- instructions ---- */

enum ioemul_direction { IOEMUL_IN = 0, IOEMUL_OUT = 1 };

/* Where an instruction takes its port from. */
enum ioemul_operand {
    IOEMUL_DX = 0,    /* DX */
    IOEMUL_IMM8 = 1,  /* a byte of the instruction */
    IOEMUL_STRING = 2 /* DX, the data being in memory: INS and OUTS */
};

enum ioemul_segment { IOEMUL_ES = 0, IOEMUL_CS = 1, IOEMUL_SS = 2, IOEMUL_DS = 3, IOEMUL_FS = 4, IOEMUL_GS = 5 };

/* One port-I/O instruction. What a form does not have is 0. */
struct ioemul_insn {
    size_t size;
    uint8_t direction; /* enum ioemul_direction */
    uint8_t width;     /* of the access, in bytes: 1, 2 or 4 */
    uint8_t operand;   /* enum ioemul_operand */
    uint8_t port;      /* IOEMUL_IMM8: the port */
    uint8_t rep;       /* IOEMUL_STRING: 1 with a REP prefix, else 0 */
    uint8_t address;   /* IOEMUL_STRING: size of addresses and count, in bits: 16, 32 or 64 */
    uint8_t segment;   /* IOEMUL_STRING: enum ioemul_segment; of INS always ES */
    uint8_t reserved;  /* 0 */
};
#define IOEMUL_INSN_INIT { sizeof(struct ioemul_insn), 0, 0, 0, 0, 0, 0, 0, 0 }

/* So many forms of IN and OUT there are, with indices from 0 on, and so many of INS and OUTS behind them. */
#define IOEMUL_FORMS 1542
#define IOEMUL_STRING_FORMS 24

/*
 * Decodes the instruction at the start of `len` bytes of a guest's code, which were fetched once. `bits` is 16, 32 or 64, by
 * the guest's code segment. `*length` is the instruction's length in bytes. Bytes behind it are not looked at.
 *
 * IOEMUL_ERROR_TRUNCATED, _TOO_LONG, _LOCK, _NOT_PORT_IO say what a CPU finds; IOEMUL_ERROR_VALUE: `bits`. `code` may be NULL if
 * `len` is 0.
 */
int ioemul_decode(const void *code, size_t len, uint32_t bits, struct ioemul_insn *insn, size_t *length);

/* The form with this index: the six of IN and OUT with DX, 1,536 with a port of their own, then INS and OUTS.
 * IOEMUL_ERROR_NOT_FOUND: there are not so many. */
int ioemul_insn_at(size_t index, struct ioemul_insn *insn);

/* The index of a form, for tables of your own. IOEMUL_ERROR_NO_STUB: it is a string form with addresses of 16 bits or with a
 * segment override, and is not among those that ioemul_insn_at gives. */
int ioemul_insn_index(const struct ioemul_insn *insn, size_t *index);

/* The shortest encoding of a form in 64-bit code, of IOEMUL_MAX_ENCODED bytes at most. IOEMUL_ERROR_TOO_SMALL: `len`. */
#define IOEMUL_MAX_ENCODED 5
int ioemul_insn_encode(const struct ioemul_insn *insn, void *code, size_t len, size_t *length);

/* The instruction in Intel's syntax, with a NUL at the end: "out 0xb2, al". IOEMUL_MAX_TEXT bytes are enough for any.
 * IOEMUL_ERROR_TOO_SMALL: `len`, in bytes. */
#define IOEMUL_MAX_TEXT 64
int ioemul_insn_text(const struct ioemul_insn *insn, char *text, size_t len);

/* ---- registers ---- */

/* A guest's registers, for hosts that have no structure of their own for them. Of `rflags` the status flags (CF, PF, AF, ZF,
 * SF, OF) are loaded and stored, and the other bits stay. There is no RSP: stubs run on the host's stack. */
struct ioemul_gprs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rflags;
};

/* Where a structure of yours has the registers: in bytes from the address that a stub is called with, 64 bits each. */
struct ioemul_register_file {
    size_t size;
    int16_t gprs[15];    /* RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15 */
    int16_t rflags;      /* 0 if there is none */
    uint32_t has_rflags; /* 1, or 0: the status flags are neither loaded nor stored */
    uint32_t reserved;   /* 0 */
};
#define IOEMUL_REGISTER_FILE_INIT \
    { sizeof(struct ioemul_register_file), { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }, 0, 0, 0 }

enum ioemul_registers {
    IOEMUL_GPRS = 0,     /* struct ioemul_gprs */
    IOEMUL_KVM_REGS = 1, /* Linux's struct kvm_regs */
    IOEMUL_PT_REGS = 2   /* Linux's struct pt_regs, and Xen's struct cpu_user_regs */
};

/* The offsets of a structure that this library knows. IOEMUL_ERROR_VALUE: `which`, of enum ioemul_registers. */
int ioemul_register_file_of(uint32_t which, struct ioemul_register_file *file);

/* ---- quirks ---- */

/* What stands in the place of an access on platforms that need more than the access. */
enum ioemul_quirk_number {
    IOEMUL_PROLIANT = 1,           /* HP ProLiant: OUT to 0xcd4, then the port is polled; chosen by DMI */
    IOEMUL_PROLIANT_UNBOUNDED = 2, /* the same, and the poll has no end but the firmware's, in ring 0 */
    IOEMUL_DELL_SMM = 3,           /* Dell: OUT of 0xa3 to 0xb2 is followed by OUT to 0x84 */
    IOEMUL_THINKPAD_SMAPI = 4,     /* ThinkPad: OUT of 0x5380 to 0xb2 is followed by OUT to 0x4f */
    IOEMUL_READ_BACK = 5,          /* OUT to 0xb2 is followed by IN from there */
    IOEMUL_GSMI_CARRY = 6,         /* Google: after OUT of 0xef to 0xb2 the registers are kept until CF is clear */
    IOEMUL_GSMI_SPIN = 7           /* the same, for 65,536 turns of a loop */
};

/* One quirk. */
struct ioemul_quirk {
    uint32_t number;   /* enum ioemul_quirk_number */
    uint16_t port;     /* if has_port is 1: the port that the machine names, in place of the usual one; else 0 */
    uint16_t has_port; /* 1 or 0 */
};

/* So many quirks are taken. */
#define IOEMUL_MAX_QUIRKS 4

/* What a quirk is called, or NULL if there is none of this number: they are numbered from 1 on, without a gap. */
const char *ioemul_quirk_name(uint32_t number);

/* The quirk of this name, which ends with a NUL. IOEMUL_ERROR_NOT_FOUND: there is none. */
int ioemul_quirk_by_name(const char *name, struct ioemul_quirk *quirk);

/* Some text that does not end with a NUL; NULL and 0 if there is none. */
struct ioemul_string {
    const char *at;
    size_t len; /* in bytes */
};

/* What a machine's firmware calls it. Texts are UTF-8; what is behind the first byte that is not is not looked at. */
struct ioemul_dmi {
    size_t size;
    struct ioemul_string bios_vendor;  /* type 0 */
    struct ioemul_string bios_version; /* type 0 */
    struct ioemul_string sys_vendor;   /* type 1 */
    struct ioemul_string product_name; /* type 1 */
    struct ioemul_string board_name;   /* type 2 */
};
#define IOEMUL_DMI_INIT { sizeof(struct ioemul_dmi), { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 0 } }

/* The SMBIOS structure table's physical address and its length (at most) in bytes, out of the entry point that stands in
 * `len` bytes of memory at a multiple of 16: of firmware without UEFI, 0xf0000 to 0xfffff. IOEMUL_ERROR_NOT_FOUND: no such. */
int ioemul_smbios_find(const void *memory, size_t len, uint64_t *address, uint32_t *length);

/* The texts in an SMBIOS structure table (Linux: /sys/firmware/dmi/tables/DMI). They are in the table: it stays as long as they
 * are used. Whatever is in the table, this succeeds; what is malformed or missing is left out. */
int ioemul_dmi_from_smbios(const void *table, size_t len, struct ioemul_dmi *dmi);

/* The quirks that a machine with these texts has. `*count` is the length of the array, and then how many there are;
 * IOEMUL_MAX_QUIRKS are enough. IOEMUL_ERROR_TOO_SMALL: the array. */
int ioemul_quirks_of_machine(const struct ioemul_dmi *dmi, struct ioemul_quirk *quirks, size_t *count);

/* ---- options ---- */

/* How a stub switches registers. */
enum ioemul_layout {
    IOEMUL_CALL_RET = 0, /* 36 bytes, and helpers */
    IOEMUL_ROP = 1,      /* 9 bytes, for measurements: mispredicted returns; #CP where a shadow stack is active */
    IOEMUL_COMPACT = 2,  /* 13 bytes, and helpers */
    IOEMUL_INLINE = 3    /* about 200 bytes; calls no helper, but the landing pads are among them */
};

#define IOEMUL_ENDBR64 1u /* each stub starts with ENDBR64, for indirect-branch tracking */
#define IOEMUL_INT3 2u    /* INT3 behind every final RET or JMP, against straight-line speculation */
#define IOEMUL_SCRUB 4u   /* RCX, RDX, RSI, RDI and R8 to R11 are zeroed before a stub returns */

/* How code is to be emitted. All 0 but the size are the defaults: for ring 0. A process sets `ring` to 3. */
struct ioemul_options {
    size_t size;
    uint32_t layout;       /* enum ioemul_layout */
    uint32_t ring;         /* the privilege level that the code will run at: 0, or 3. It decides how a quirk waits */
    uint64_t flags;        /* IOEMUL_ENDBR64 and the like */
    uint64_t return_thunk; /* 0, or the address of a return thunk: every RET becomes a JMP to it. It keeps every register
                              but RSP, and every flag: a guest's are live */
    const struct ioemul_register_file *registers; /* NULL: struct ioemul_gprs */
    const struct ioemul_quirk *quirks;            /* in the order in which they are asked; may be NULL if there is none */
    size_t quirk_count;                           /* at most IOEMUL_MAX_QUIRKS */
};
#define IOEMUL_OPTIONS_INIT { sizeof(struct ioemul_options), 0, 0, 0, 0, 0, 0, 0 }

/* An access to a port. */
struct ioemul_access {
    uint16_t port;     /* the first port */
    uint8_t width;     /* how many bytes, and ports, it covers: 1, 2 or 4 */
    uint8_t direction; /* enum ioemul_direction */
};

/* No stub makes more. */
#define IOEMUL_MAX_ACCESSES 8

/*
 * What code is called as: with the address of a register file, of the structure that it was emitted for, 8-aligned. It returns
 * 0 when the access was made and the registers are stored; 1 when the access faulted and was resumed by a fixup: the
 * registers are then as they were given (after INS and OUTS, RCX, RSI and RDI say how far it got).
 *
 * A stub asks nobody for permission. Whoever calls it has made sure that every access that it is going to make is permitted
 * and harmless: ioemul_table_accesses, ioemul_stub_accesses.
 */
#if defined(_WIN32)
typedef uint64_t(__attribute__((sysv_abi)) *ioemul_stub)(void *registers);
#else
typedef uint64_t (*ioemul_stub)(void *registers);
#endif

/* ---- a table: every form, written once ---- */

/* A table. Nothing in it is yours to read or write, but its size. */
struct ioemul_table {
    size_t size;
    uint64_t opaque[127];
};

/* Where an access faults, and where it resumes. */
struct ioemul_fault {
    uint64_t rip;
    uint64_t resume;
};

/* How many bytes of code a table with these options has: 25 KiB (IOEMUL_COMPACT) to 400 KiB (IOEMUL_INLINE).
 * `options` may be NULL: the defaults. */
int ioemul_table_size(const struct ioemul_options *options, size_t *bytes);

/*
 * Writes the code of a table to `len` bytes at `code`, to be executed at `va`, and fills `table`, of which only the size has to
 * be set before. `options` may be NULL.
 *
 * IOEMUL_ERROR_TOO_SMALL, _OUT_OF_RANGE (the return thunk), _ADDRESS (`va`, or the return thunk), _REGISTER_FILE, _TOO_MANY_QUIRKS,
 * _QUIRK, and _VALUE or _SIZE for the options.
 */
int ioemul_table_emit(struct ioemul_table *table, void *code, size_t len, uint64_t va,
                      const struct ioemul_options *options);

/* The address of the plain stub of IN or OUT, whatever the quirks say: an ioemul_stub. IOEMUL_ERROR_NO_STUB: INS and OUTS. */
int ioemul_table_entry(const struct ioemul_table *table, const struct ioemul_insn *insn, uint64_t *entry);

/* The address of the stub of INS or OUTS. It follows RSI, RDI and RCX as they are: whoever asks for it has bounded the count
 * and translated the guest's pointers. IOEMUL_ERROR_NO_STUB: IN and OUT, and forms with 16-bit addresses or a segment override. */
int ioemul_table_string_entry(const struct ioemul_table *table, const struct ioemul_insn *insn, uint64_t *entry);

/* The address of the stub for an access with these registers: that of the first quirk that takes it, else the plain one.
 * IOEMUL_ERROR_NO_STUB: INS and OUTS. */
int ioemul_table_resolve(const struct ioemul_table *table, const struct ioemul_insn *insn, uint64_t rax, uint64_t rdx,
                         uint64_t *entry);

/* Every access that the stub of ioemul_table_resolve makes, each once: all of them have to be permitted before it is called. Of
 * INS and OUTS it is that of one element. `*count` is the length of the array, and then how many there are;
 * IOEMUL_MAX_ACCESSES are enough. IOEMUL_ERROR_TOO_SMALL: the array. */
int ioemul_table_accesses(const struct ioemul_table *table, const struct ioemul_insn *insn, uint64_t rax, uint64_t rdx,
                          struct ioemul_access *accesses, size_t *count);

/* Where a fault at `rip` resumes. IOEMUL_ERROR_NOT_FOUND: it is in no access of this table, and is not this table's to handle.
 * May be called in a signal handler. */
int ioemul_table_fixup(const struct ioemul_table *table, uint64_t rip, uint64_t *resume);

/* How many accesses of the table can fault. */
int ioemul_table_fault_count(const struct ioemul_table *table, size_t *count);

/* All of them, by ascending address, for an exception table of your own. `*count` is the length of the array, and then how many
 * there are. IOEMUL_ERROR_TOO_SMALL: the array. */
int ioemul_table_faults(const struct ioemul_table *table, struct ioemul_fault *faults, size_t *count);

/*
 * What is at an address of the table, for a stack trace: "ioemul:out dx, al", or a helper's name. If there is nothing, this is
 * what comes next: from address 0 on, and then from `*start + *length`, it lists all there is by ascending address, for
 * a file of symbols (perf's /tmp/perf-PID.map). `*length` is in bytes; IOEMUL_MAX_TEXT bytes are enough for any text.
 *
 * IOEMUL_ERROR_NOT_FOUND: nothing more; IOEMUL_ERROR_TOO_SMALL: `len`.
 */
int ioemul_table_symbol(const struct ioemul_table *table, uint64_t address, char *text, size_t len, uint64_t *start,
                        size_t *length);

/* ---- a slot for each CPU: one stub at a time ---- */

/* The helpers, which the stubs of any number of slots share. Nothing in it is yours to read or write, but its size. */
struct ioemul_helpers {
    size_t size;
    uint64_t opaque[255];
};

/* So many bytes are enough for the code of the helpers, with any options. */
#define IOEMUL_HELPERS_MAX_LEN 512

/* Writes the helpers' code to `len` bytes at `code`, to be executed at `va`, fills `helpers`, and says in `*length` how many bytes
 * it has. Errors are those of ioemul_table_emit. */
int ioemul_helpers_emit(struct ioemul_helpers *helpers, void *code, size_t len, uint64_t va,
                        const struct ioemul_options *options, size_t *length);

/*
 * Writes the stub of a form to `len` bytes at `slot`, to be executed at `va` as an ioemul_stub, with the options of the helpers.
 * `*length` is how many bytes it has. If a quirk has this form, the stub looks at the registers when it is called, and does
 * what ioemul_table_resolve decides before the call.
 *
 * A slot is one CPU's, and is not written while its stub may run. A CPU that has written it executes LFENCE before it
 * calls the stub (speculative code store bypass); another one executes an instruction that serializes (CPUID). A table
 * needs neither, and is faster. Stubs of INS and OUTS follow the registers' pointers: whoever emits one has bounded and
 * translated them.
 *
 * IOEMUL_ERROR_TOO_SMALL, _OUT_OF_RANGE (the helpers or the return thunk), _ADDRESS; _NO_STUB for INS and OUTS with 16-bit
 * addresses or a segment override: ask for the form with 64-bit addresses, with pointers that you have translated.
 */
int ioemul_stub_emit(void *slot, size_t len, uint64_t va, const struct ioemul_insn *insn,
                     const struct ioemul_helpers *helpers, size_t *length);

/* Every access that the stub of ioemul_stub_emit makes when it is called with these registers; otherwise as
 * ioemul_table_accesses. */
int ioemul_stub_accesses(const struct ioemul_insn *insn, const struct ioemul_helpers *helpers, uint64_t rax, uint64_t rdx,
                         struct ioemul_access *accesses, size_t *count);

/* Where a fault at `rip` resumes, in the stub that ioemul_stub_emit has written for the same `va`, `insn` and `helpers`.
 * IOEMUL_ERROR_NOT_FOUND: it is in no access of this stub. May be called in a signal handler. */
int ioemul_stub_fixup(uint64_t va, const struct ioemul_insn *insn, const struct ioemul_helpers *helpers, uint64_t rip,
                      uint64_t *resume);

#ifdef __cplusplus
}
#endif

#endif
