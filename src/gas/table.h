/* Stubs for port I/O with a guest's registers in view: the header of the table. Made by ioemul @VERSION@: do not edit.
 *
@OPTIONS@ *
 * A stub is called with the address of the register structure. It returns 0 when the access was made, all registers and the
 * status flags being stored, and 1 when the access faulted and the handler of the exception has set RIP to what
 * prefix_fixup() says: the structure is then as it was. Nothing here calls a function or allocates. All of it may be used by any
 * number of CPUs at a time.
 *
 *     unsigned int index = prefix_index(opcode, bytes, immediate);
 *     accesses = prefix_accesses(index, regs->rax, regs->rdx, quirks, &count);  // a quirk's; check each, or the plain one if 0
 *     failed = prefix_resolve(index, regs->rax, regs->rdx, quirks)(regs);
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef PREFIX_TABLE_H
#define PREFIX_TABLE_H

#define PREFIX_ABI_VERSION 1

#ifndef PREFIX_INLINE
#define PREFIX_INLINE static __inline__ __attribute__((__always_inline__, __unused__))
#endif
#ifndef PREFIX_DATA /* of arrays that a file may not use */
#define PREFIX_DATA static const __attribute__((__unused__))
#endif

#ifdef __cplusplus
extern "C" {
#endif
extern const unsigned char prefix_table[] __attribute__((__visibility__("hidden")));
typedef unsigned long (*prefix_stub_fn)(void *registers);
#ifdef __cplusplus
}
#endif

/* Bytes from prefix_table on. */
#define PREFIX_SIZE @SIZE@u
#define PREFIX_FIRST @FIRST@u
#define PREFIX_STRIDE @STRIDE@u
@STRINGS@
#define PREFIX_STRING_FIRST @STRING_FIRST@u
#define PREFIX_STRING_STRIDE @STRING_STRIDE@u
@END@
#define PREFIX_IO @IO@u
#define PREFIX_PLAIN_PAD @PLAIN_PAD@u
/* Forms of IN and OUT. */
#define PREFIX_FORMS @FORMS@u

/* Where the structure has each register: bytes from its start. */
@REGISTERS@
/* Fails to compile where a member of the host's structure is not where the stubs look for it, or has not 64 bits. At file
 * scope: PREFIX_ASSERT_REGISTERS(struct cpu_user_regs, rax, rbx, ...); the members in the order of the definitions above, each as
 * after a dot (`regs.ax`, `regs[3]`). Not for negative offsets. */
#define PREFIX_ASSERT_WORD(type, name, member, offset) \
    extern char prefix_assert_##name[__builtin_offsetof(type, member) == (offset) \
        && sizeof(((type *)0)->member) == 8 ? 1 : -1] __attribute__((__unused__))
@ASSERTIONS@

typedef char prefix_assert_lp64[sizeof(unsigned long) == 8 ? 1 : -1] __attribute__((__unused__));

/* Direction and width: 0 to 5 for INB, INW, IND, OUTB, OUTW, OUTD. The opcode says whether it is a byte; `bytes`, the operand size,
 * tells 2 from 4, and 8 (REX.W) counts as 4. */
PREFIX_INLINE unsigned int prefix_kind(unsigned char opcode, unsigned int bytes)
{
    return (opcode & 2 ? 3u : 0u) + (opcode & 1 ? (bytes == 2 ? 1u : 2u) : 0u);
}

/* The index of a form, below PREFIX_FORMS: its opcode (E4 to E7, EC to EF; nothing else), the operand size in bytes and the immediate
 * byte, if it has one. */
PREFIX_INLINE unsigned int prefix_index(unsigned char opcode, unsigned int bytes, unsigned char immediate)
{
    return opcode & 8 ? prefix_kind(opcode, bytes) : 6 + prefix_kind(opcode, bytes) * 256 + immediate;
}

/* The plain stub of a form, whatever the quirks say. */
PREFIX_INLINE prefix_stub_fn prefix_plain(unsigned int index)
{
    return (prefix_stub_fn)(unsigned long)(prefix_table + PREFIX_FIRST + (unsigned long)index * PREFIX_STRIDE);
}

@STRINGS@
/* The stub of INS or OUTS (opcode 6C to 6F). It follows RSI, RDI and RCX of the structure: bound and translate them first. DF
 * of the structure is not looked at: data goes upwards. */
PREFIX_INLINE prefix_stub_fn prefix_string(unsigned char opcode, unsigned int bytes, int rep, int address_32)
{
    unsigned int index = (rep ? 6u : 0u) + (address_32 ? 12u : 0u) + prefix_kind(opcode, bytes);

    return (prefix_stub_fn)(unsigned long)(prefix_table + PREFIX_STRING_FIRST + (unsigned long)index * PREFIX_STRING_STRIDE);
}

@END@
/* An access that a quirk makes. */
struct prefix_access {
    unsigned short port;
    unsigned char bytes; /* 1, 2, 4 */
    unsigned char out;
};

/* Where a quirk's stub stands in the place of a form's: at this port, if these bits of EAX have this value. */
struct prefix_quirk_stub {
    unsigned short index;
    unsigned short port;
    unsigned char quirk;
    unsigned char count; /* of the accesses */
    unsigned int mask;
    unsigned int value;
    unsigned int stub; /* bytes from prefix_table on */
    struct prefix_access accesses[8];
};

@QUIRK_NAMES@PREFIX_DATA struct prefix_quirk_stub prefix_quirk_stubs[] = {
@QUIRK_STUBS@    { 0xffff, 0, 0, 0, 0, 0, 0, { { 0, 0, 0 } } }
};

/* The strings of an SMBIOS (DMI) table that quirks ask for. */
enum {
    PREFIX_DMI_BIOS_VENDOR,
    PREFIX_DMI_BIOS_VERSION,
    PREFIX_DMI_SYS_VENDOR,
    PREFIX_DMI_PRODUCT_NAME,
    PREFIX_DMI_BOARD_NAME,
    PREFIX_DMI_FIELDS
};

/* A machine has the quirk if each field that is named for it contains one of the fragments named. */
struct prefix_dmi {
    unsigned char quirk;
    unsigned char field;
    const char *fragment;
};

PREFIX_DATA struct prefix_dmi prefix_dmi[] = {
@DMI@    { 0xff, 0, 0 }
};

PREFIX_INLINE int prefix_contains(const char *string, const char *fragment)
{
    unsigned int n;

    for (; string && *string; string++) {
        for (n = 0; fragment[n] && string[n] == fragment[n]; n++)
            ;
        if (!fragment[n])
            return 1;
    }
    return 0;
}

/* The quirks of a machine with these strings (0 where there is none), as bits (PREFIX_QUIRK_0 ...): to be asked once, and kept. A quirk
 * that names no machine is not among them: set its bit where it is wanted. Of several that take an access, the first counts. */
PREFIX_INLINE unsigned int prefix_quirks_here(const char *const strings[PREFIX_DMI_FIELDS])
{
    unsigned int asked = 0, lacking = 0, at = 0;

    while (prefix_dmi[at].fragment) {
        unsigned int quirk = prefix_dmi[at].quirk, field = prefix_dmi[at].field, found = 0;

        for (; prefix_dmi[at].fragment && prefix_dmi[at].quirk == quirk && prefix_dmi[at].field == field; at++)
            found |= (unsigned int)prefix_contains(strings[field], prefix_dmi[at].fragment);
        asked |= 1u << quirk;
        lacking |= (found ? 0u : 1u) << quirk;
    }
    return asked & ~lacking;
}

/* The quirk's stub that takes an access, if one of these quirks does; else 0. */
PREFIX_INLINE const struct prefix_quirk_stub *prefix_quirk(unsigned int index, unsigned long rax, unsigned long rdx,
                                                           unsigned int quirks)
{
    const struct prefix_quirk_stub *stub;

    for (stub = prefix_quirk_stubs; stub->index != 0xffff; stub++)
        if (stub->index == index && (quirks >> stub->quirk & 1) && (index >= 6 || (rdx & 0xffff) == stub->port)
            && ((unsigned int)rax & stub->mask) == stub->value)
            return stub;
    return 0;
}

/* The stub for an access with these registers. */
PREFIX_INLINE prefix_stub_fn prefix_resolve(unsigned int index, unsigned long rax, unsigned long rdx, unsigned int quirks)
{
    const struct prefix_quirk_stub *stub = quirks ? prefix_quirk(index, rax, rdx, quirks) : 0;

    return stub ? (prefix_stub_fn)(unsigned long)(prefix_table + stub->stub) : prefix_plain(index);
}

/* All accesses of a quirk's stub, to be permitted before it is called; 0 if the stub is the plain one, whose access is the
 * guest's own. */
PREFIX_INLINE const struct prefix_access *prefix_accesses(unsigned int index, unsigned long rax, unsigned long rdx,
                                                          unsigned int quirks, unsigned int *count)
{
    const struct prefix_quirk_stub *stub = quirks ? prefix_quirk(index, rax, rdx, quirks) : 0;

    *count = stub ? stub->count : 0;
    return stub ? stub->accesses : 0;
}

/* Accesses of INS, OUTS and quirks that can fault, and their landing pads: bytes from prefix_table on. */
PREFIX_DATA struct {
    unsigned int fault;
    unsigned int pad;
} prefix_faults[] = {
@FAULTS@};

/* Where a fault at `rip` resumes: the value for RIP, and nothing else. 0 if it is not an access of the table. */
PREFIX_INLINE unsigned long prefix_fixup(unsigned long rip)
{
    unsigned long at = rip - (unsigned long)prefix_table, within;
    unsigned int n;

    if (at >= PREFIX_SIZE)
        return 0;
    if (at >= PREFIX_FIRST) {
        within = (at - PREFIX_FIRST) % PREFIX_STRIDE;
        return within - PREFIX_IO < 2 ? (unsigned long)prefix_table + PREFIX_PLAIN_PAD : 0;
    }
    for (n = 0; prefix_faults[n].fault; n++)
        if (prefix_faults[n].fault == at)
            return (unsigned long)prefix_table + prefix_faults[n].pad;
    return 0;
}

#endif
