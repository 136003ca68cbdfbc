#!/usr/bin/env python3
"""Writes the seeds of the targets whose input is a script: a file for each state that is far from an empty input.

The order of the bytes is that in which the target takes them: fuzz_targets/TARGET.rs. (The seeds of the other targets
were written by hand, or found.)"""

import struct
from pathlib import Path

SEEDS = Path(__file__).parent / "seeds"


def write(target, seeds):
    directory = SEEDS / target
    directory.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds.items():
        (directory / name).write_bytes(bytes(seed))


def u16(value):
    return list(struct.pack("<H", value))


def u32(value):
    return list(struct.pack("<I", value))


def u64(value):
    return list(struct.pack("<Q", value))


# decode: the bytes.
hexadecimal = {
    "in_al_dx": "ec", "in_ax_imm8": "66e570", "rex_w": "6648ed", "void_rex": "4866ed", "segment": "26ee",
    "repeated": "f3ec", "locked": "f0e680", "insb": "6c", "rep_insw": "f3666d", "repne_outsd": "f26f",
    "addr32": "67f36c", "outs_fs": "646e", "ins_gs": "656c", "outs_es": "266e", "cut_off": "66e5",
    "fifteen": "66" * 13 + "e570", "sixteen": "66" * 14 + "e570", "other": "0f05",
}
write("decode", {name: bytes.fromhex(code) for name, code in hexadecimal.items()})

# text: which reader, and the text or the bitmap.
write("text", {
    "bitmap_short": bytes([0]) + bytes(11),
    "bitmap_whole": bytes([1, 0x0f, 0xf0, 0, 0xff]),
    **{name: bytes([2]) + text.encode() for name, text in {
        "in": "in al, dx", "out": "out 0x80, eax", "spaces": " in  ax ,  0x7 ", "string": "gs addr32 rep outsd",
        "addr16": "addr16 insw", "wrong": "in dx, al", "zeros": "in al, 000x7", "large": "in al, 0x100"}.items()},
    **{name: bytes([3]) + text.encode() for name, text in {
        "registers": "rax=0x5 rbx=7,ch=0x10", "parts": "sil=1 r15w=65535 r8b=0xff ebp=1 dh=2", "flags": "rflags=0x8d5",
        "no_register": "rsp=1", "too_large": "al=256", "no_value": "rax=", "form": "rax", "largest":
        "rax=18446744073709551615", "overflow": "rax=18446744073709551616"}.items()},
})

# devices
OPEN, SIZE, DATA, REPLY_SIZE, REPLY, END, CLOSE = range(7)
IN, OUT = 0, 1
OWN, OTHER, SWAPPED, LOW_WRONG, HIGH_WRONG = 7, 0, 1, 2, 3  # cookies


def step(number, channel=0, direction=IN, cookies=OWN, how=0, rest=()):
    return [0, number, channel, direction, cookies, how, *rest]


def high_bandwidth(direction, channel=0, cookies=OWN, length=None, data=b""):
    taken = [len(data), *data] if direction == OUT else []
    size = [] if length is None else [length]
    return [3, direction, channel, cookies, 0 if length is None else 2, *size, 1, *taken]


def access(base, offset, width, value, kind, count=0):
    return [6, base, offset, width, *u32(value), count, kind]


request = step(SIZE, rest=[5]) + step(DATA, rest=b"hell") + step(DATA, rest=b"oXYZ")
taken = step(REPLY_SIZE, rest=u32(0)) + step(REPLY) * 2 + step(END) + step(CLOSE, rest=u32(0))
# A step takes what its cookies are made of before what is in RBX.
wrong_cookies = ([0, SIZE, 0, IN, OTHER, *u64(7), 0, 5] + [0, SIZE, 0, IN, SWAPPED, 0, 5] + [0, SIZE, 0, IN, LOW_WRONG, 3, 0, 5] +
                 [0, SIZE, 0, IN, HIGH_WRONG, 3, 0, 5])
write("devices", {
    "rpc": step(OPEN) + request + taken,
    "rpc_with_cookies_by_out": step(OPEN, direction=OUT, how=4) + request + taken,
    "rpc_wrong_cookies": step(OPEN, how=4) + wrong_cookies,
    "rpc_strings": step(OPEN, how=4) + step(SIZE, rest=[5]) + high_bandwidth(OUT, data=b"hello") +
    step(REPLY_SIZE, rest=u32(0)) + high_bandwidth(IN) + step(END) + step(CLOSE, rest=u32(0)),
    "rpc_reply_by_string_and_word": step(OPEN) + request + high_bandwidth(IN, length=3) + step(REPLY) + step(END),
    "rpc_two_channels": step(OPEN) * 2 + step(SIZE, 1, rest=[2]) + request + step(DATA, 1, rest=b"ab__") +
    step(REPLY_SIZE, 1, rest=u32(0)) + step(REPLY, 1),
    "rpc_nine_channels": step(OPEN) * 5 + step(OPEN, how=4) * 4 + step(CLOSE, 3, rest=u32(0)) + step(OPEN),
    "rpc_too_large": step(OPEN) + step(SIZE, how=6, rest=u32(65537)) + step(SIZE, how=6, rest=u32(65536)) +
    high_bandwidth(OUT, data=b"x") + step(SIZE, rest=[0]) + step(REPLY_SIZE, rest=u32(0)),
    "rpc_begun_again": step(OPEN) + step(SIZE, rest=[9]) + step(DATA, rest=b"hell") + request + step(REPLY) + request + taken,
    "commands": [byte for command in range(7) for direction in (IN, OUT) for byte in [5, 0, direction, 0, 0, command]],
    "no_commands": [5, 3, 0, 0, 0, 0, 5, 0, 0, 3, 0, 0, 5, 0, 0, 0, 3, 0, 5, 0, 0, 0, 4, 0],
    "latch": access(0, 0, 2, 0x44332211, 0) + access(0, 1, 1, 0, 1) + access(0, 2, 2, 7, 0) + access(0, 0, 2, 0, 1),
    "cmos": access(1, 0, 1, 0x5a8f, 0) + access(1, 1, 0, 0, 1) + access(1, 0, 1, 0, 3, 4),
    "smm": access(2, 0, 0, 0x42, 0) + access(2, 0, 1, 0x0142, 0) + access(2, 0, 0, 0, 2, 7),
    "proliant": access(3, 0, 0, 0x85, 0) + access(3, 0, 0, 0, 1) * 4,
    "uart": access(4, 0, 0, 0x41, 0) + access(5, 0, 0, 0x5a, 0) + access(4, 3, 0, 0x80, 0) + access(4, 0, 2, 0x01020304, 0) +
    access(4, 0, 0, 0x42, 2, 7) + access(4, 1, 0, 0x0f, 0) + access(4, 0, 2, 0, 3, 5),
    "i8042": access(7, 0, 0, 0xd1, 0) + access(6, 0, 0, 0xfe, 0) + access(7, 0, 0, 0x20, 0) + access(6, 0, 0, 0, 1) +
    access(7, 0, 0, 0xfe, 0),
})

# strings: an instruction with its registers, and what the devices do.
PORTS = [0x10, 0x12, 0x14, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1f, 0x20, 0x2c, 0x30, 0xb2, 0xcd4, 0xfffc, 0xffff, 0]
INS, OUTS, REP = 0, 3, 6
BYTE, WORD, DWORD = range(3)


def run(group, form, port, count=0, rax=0, address=3, length=64, devices=(), string=True):
    kind = [2, form, address] if string else [1, form]
    registers = [PORTS.index(port), count, rax, 255, 0, 0, *u16(0x8d5), 0xb]
    return [group, *kind, *registers, length, len(devices), *devices]


def change(*registers):
    """How many registers a device changes, and what they become: their places in `Gprs::NAMES`."""
    return [len(registers), *(byte for at, value in registers for byte in [at, *u64(value)])]


def reads(outcome, changes=()):
    """Nine bytes of 0x77, and what the device says that it did."""
    return change(*changes) + [9, 0x77, *outcome]


# An outcome: all is well, or an error after so many bytes.
WELL, FAR_MORE, MORE, ALL, ONE_LESS, ALMOST_WRAPPING = [0], [130], [150], [170], [180], [200]
RCX, RDX, RSI, RDI = 2, 3, 4, 5
POINTERS = [(RCX, 1 << 63), (RSI, 2**64 - 1), (RDI, 0x1234)]


def element(value=0, changes=(), refused=False):
    return change(*changes) + ([0xee] if refused else [0, *u32(value)])


write("strings", {
    "ins": run(0, REP + INS + BYTE, 0x10, 8, devices=reads(WELL)),
    "ins_less": run(0, REP + INS + WORD, 0x12, 8, devices=reads(ONE_LESS)),
    "ins_more": run(0, REP + INS + WORD, 0x12, 8, devices=reads(MORE)),
    "ins_far_more": run(0, REP + INS + DWORD, 0x10, 8, devices=reads(FAR_MORE)),
    "ins_almost_wrapping": run(0, REP + INS + DWORD, 0x10, 8, devices=reads(ALMOST_WRAPPING)),
    "ins_all_and_refused": run(0, REP + INS + BYTE, 0x10, 8, devices=reads(ALL)),
    "ins_part_of_an_element": run(0, REP + INS + DWORD, 0x10, 8, devices=reads([255, 7])),
    "ins_registers": run(0, REP + INS + BYTE, 0x10, 8, devices=reads(WELL, POINTERS)),
    "ins_registers_refused": run(0, REP + INS + WORD, 0x10, 8, devices=reads(ONE_LESS, POINTERS)),
    "outs_odd": run(1, REP + OUTS + DWORD, 0x14, 5, devices=change() + [255, 7]),
    "outs_registers": run(1, REP + OUTS + DWORD, 0x14, 5, devices=change(*POINTERS) + WELL),
    "outs_to_bytes": run(2, REP + OUTS + DWORD, 0x17, 5, devices=element() * 27),
    "outs_elements": run(1, REP + OUTS + WORD, 0x18, 5, devices=element(changes=POINTERS) + element() * 9),
    "outs_elements_refused": run(1, REP + OUTS + WORD, 0x20, 5, devices=element() * 3 + element(refused=True)),
    "addr16": run(0, REP + INS + BYTE, 0x10, 8, address=0, devices=reads(WELL)),
    "addr32": run(0, 12 + REP + INS + BYTE, 0x10, 8, devices=reads(WELL)),
    "gs": run(0, OUTS + BYTE, 0x14, address=1, devices=change() + WELL),
    "read_only": run(0, OUTS + BYTE, 0x10, devices=change() + WELL),
    "write_only": run(0, INS + BYTE, 0x2c, devices=reads(WELL)),
    "out_of_bounds": run(0, REP + INS + DWORD, 0x10, 17),
    "last_port": run(0, REP + OUTS + BYTE, 0xffff, 3, devices=element() * 3) + run(0, OUTS + WORD, 0xffff),
    "proliant": run(1, 3 + BYTE, 0xcd4, rax=1, devices=element() + element(0x80) * 2 + element(), string=False),
    "proliant_refused": run(1, 3 + BYTE, 0xcd4, rax=1, devices=element() + element(refused=True), string=False),
    "proliant_leaves_the_port": run(1, 3 + BYTE, 0xcd4, rax=1, devices=element(changes=[(RDX, 0x60)]), string=False),
    "dell": run(2, 3 + BYTE, 0xb2, rax=2, devices=element() * 2, string=False),
    "gsmi": run(2, 3 + BYTE, 0xb2, rax=3, devices=element() * 2, string=False),
    "smapi": run(2, 3 + WORD, 0xb2, rax=4, devices=element() * 2, string=False),
    "read_back": run(3, 3 + BYTE, 0x1a, devices=element() * 2, string=False),
    "read_back_leaves_the_port": run(3, 3 + BYTE, 0x1a, devices=element(changes=[(RDX, 0x84)]) + element(7), string=False),
    "carry": run(3, 3 + BYTE, 0x14, rax=3, devices=element() * 2, string=False),
    "code": run(4, 3 + BYTE, 0xb2, rax=5, devices=element(changes=POINTERS) + element() * 2, string=False),
    "code_leaves_the_port": run(4, 3 + BYTE, 0xb2, rax=5, devices=element(changes=[(RDX, 0x84)]), string=False),
})

# dmi: kind and bytes of each file, and what is asked.
def file(text, kind=4):
    text = text if isinstance(text, bytes) else text.encode()
    return [kind, len(text), *text]


NOTHING = [0, 0]
write("dmi", {
    "proliant": file("HP\n") + NOTHING * 2 + file("ProLiant DL380 G5\n") + NOTHING + [1, 0, 0, 3, 0],
    "another": file("Dell Inc.\n") + file("A01") + file("Dell Inc.") + file("Latitude") + file("X") + [1, 2, 2, 2, 2],
    "no_utf8": file(b"H\xffP\n\n") + file("é") + NOTHING * 3 + [4, 5, 0, 0, 0],
    "directory": file("HP") + [1, 0] + NOTHING * 3,
    "links": [2, 0, 3, 0] + NOTHING * 3,
    "long": [255, *u16(300), *b"ProLiant ML3" * 25] + NOTHING * 4 + [3],
})

# firmware: a FADT (QEMU's), or a list of ports.
FADT_PC = list(bytes.fromhex(
    "464143507400000001f1424f4348532042585043202020200100000042585043010000000000fe074000fe0701000900b200"
    "0000f1f00000000600000000000004060000000000000000000008060000e0af0000000000000402000404000000ff0fff0f"
    "000000000000000032000000a5800000"))
FADT_Q35 = list(bytes.fromhex(
    "46414350f40000000328424f4348532042585043202020200100000042585043010000000000fe074000fe0701000900b200"
    "00000203000000060000000000000406000000000000000000000806000020060000000000000402000410000000ff0fff0f"
    "000000000000000032020000a584000001080000f90c0000000000000f00000000000000000000004000fe07000000000120"
    "0000000600000000000000000000000000000000000001100000040600000000000000000000000000000000000000000000"
    "0000000000000000012000000806000000000000018000002006000000000000000000000000000000000000"))
PORTS = b"""0000-0cf7 : PCI Bus 0000:00
  0060-0060 : keyboard
  0070-0077 : rtc0
0cf8-0cff : PCI conf1
0d00-ffff : PCI Bus 0000:00
  1800-18fe : pnp 00:04
    1800-1803 : ACPI PM1a_EVT_BLK
  3060-307f : 0000:00:17.0
    3060-307f : ahci
"""
write("firmware", {
    "fadt_pc": FADT_PC,
    "fadt_q35": FADT_Q35,
    "fadt_codes": FADT_PC[:52] + [0, 0xf0, 1, 2] + FADT_PC[56:95] + [3] + FADT_PC[96:],
    "fadt_reduced": FADT_PC[:112] + [0, 0, 0x10, 0],
    "fadt_no_port": FADT_PC[:48] + [0, 0, 1, 0] + FADT_PC[52:],
    "fadt_cut_off": FADT_PC[:100],
    "ports": PORTS,
    "ports_hidden": b"0000-0000 : PCI Bus 0000:00\n  0000-0000 : dma1\n",
    "ports_beyond": b"0070-0077 : rtc0\n00010000-0001ffff : x\n",
    "ports_line": b"0070-0077 : rtc0\n0077-0070 : x\n",
})

# smbios: a table, or memory with an entry point in it.
def structure(kind, fields, strings):
    return [kind, 4 + len(fields), 0, 0, *fields, *strings, 0]


def sealed(bytes, at):
    bytes[at] = -sum(bytes) & 0xff
    return bytes


ENTRY_64 = sealed([*b"_SM3_\0\x18\x03\x06\x00\x01\x00\x00\x10\x00\x00\x20\x00\xf0\x7e\x00\x00\x00\x00"], 5)
INTERMEDIATE = sealed([*b"_DMI_\0\x77\x07\x10\x00\x0e\x00\x09\x00\x28"], 5)
ENTRY_32 = sealed([*b"_SM_\0\x1f\x02\x08\x80\x00", *[0] * 6, *INTERMEDIATE], 4)
write("smbios", {
    "table": structure(0, [1, 2, 0], b"HP\0P56\0") + structure(1, [1, 2], b"HP\0ProLiant DL380 G5\0") + structure(127, [], b"\0"),
    "board": structure(2, [0, 1], b"board\0") + structure(2, [1, 1], b"another\0") + structure(4, [], b"\0"),
    "cut_off": structure(0, [1, 2], b"HP\0P56")[:-1],
    "short": [0, 3, 0, 0, 0] + structure(0, [1], b"HP\0"),
    "entry_64": ENTRY_64,
    "entry_32": [0] * 16 + ENTRY_32,
})

# replay: strict or lenient, records, accesses.
def record(width, kind, rax=1, rbx=0, port=1, count=2, after=(3, 1), result=(9, 0, 0, 0), error=1, rest=()):
    immediate = [port] if kind in (1, 3) else []
    result = list(result) if kind in (0, 1) else [2]
    return [width, kind, *immediate, rax, rbx, port, count, 0, *after, *result, 1, error, *rest]


all_kinds = (record(0, 0) + record(1, 1) + record(2, 2) + record(0, 3) + record(0, 4, rest=[1, 2]) + record(1, 5, rest=[1, 2]) +
             record(0, 6, rest=[0, 1]) + record(1, 7, rest=[1, 0]))
outs = [byte for data in ([0, 1], [1, 1], [0, 1], [2, 2]) for byte in record(0, 6, rest=data)]
early = record(0, 6, error=0, rest=[1, 1]) + record(0, 6, rest=[1, 1]) + record(0, 6, error=0, rest=[0]) + record(0, 6, rest=[1, 0])
AS_RECORDED = [0, 15]


def other(what, value):
    return [0, what, value]


write("replay", {
    "strict": [0, 8, *all_kinds, *AS_RECORDED * 9],
    "lenient": [1, 8, *all_kinds, *AS_RECORDED * 9],
    "strict_others": [0, 8, *all_kinds] + [b for i in range(5) for b in other(i, 1) + AS_RECORDED],
    "lenient_backwards": [1, 8, *all_kinds] + [b for i in reversed(range(8)) for b in [128 + i, 15]] * 2,
    "lenient_outs": [1, 4, *outs, *[131, 15, 130, 15, 128, 15, 128, 15, 129, 15]],
    "lenient_early": [1, 4, *early, *[131, 15, 129, 15, 129, 15, 129, 15, 131, 15]],
    "same_twice": [1, 3, *record(2, 2) * 3, *AS_RECORDED * 4],
    "refused": [0, 2, *record(0, 0, error=0), *record(0, 2, error=4), *AS_RECORDED * 3],
    "wide": [1, 1, *record(2, 0)[:-2], 0, 1, *AS_RECORDED * 2],
})

# recover: tables, a stub, RIP, the signal, the machine context.
def fault(table=0, form=0, quirk=0, which=0, at=0, where=2, code=1, kind=1, moment=0, dropped=0, rip=(), vector=0):
    return [moment, dropped, table, *u16(form), quirk, which, *u16(at), where, *rip, code, kind, 0, 0, vector, *u32(0x1f35), *u64(0x7fff_dead_b000)]


write("recover", {
    "call_ret": fault(at=17),
    "prologue": fault(at=3),
    "page_fault": fault(at=17, vector=1),
    "compact": fault(table=4, at=6),
    "inline": fault(table=6, at=88),
    "rop": fault(table=2, at=6),
    "string": fault(form=1542 + 6, at=18),
    "quirk": fault(table=1, which=1, at=17),
    "quirk_poll": fault(table=1, which=1, at=40),
    "sent": fault(at=17, code=0xfa, kind=2),
    "mapping": fault(at=17, code=1, kind=3),
    "anywhere": fault(where=0, rip=u64(0x1234)),
    "of_the_moment": fault(at=17, moment=255),
    "gone": fault(where=0, dropped=255, at=6),
})

# fixup: as `arbitrary` takes it.
def variant(index, count):
    return u32((index << 32) // count + 1)


def near(by):
    return variant(1, 4) + list(struct.pack("<h", by))


def options(layout=0, registers=0, quirks=0, endbr64=0, ring_3=0):
    return [layout, *variant(registers, 4), endbr64, 0, 0, quirks, ring_3]


def fixup(form=0, here=(), other_form=0, there=(), table=0):
    return [*u16(form), *u64(0xffff_8000_0010_0000), *near(0x2000), *options(**dict(here)), *u16(other_form), *near(0x100),
            *options(**dict(there)), table, *near(16) * 4]


write("fixup", {
    "plain": fixup(there={"layout": 1}),
    "imm8": fixup(300, {"layout": 1}, 7),
    "compact": fixup(3, {"layout": 2, "registers": 1}, 4, {"layout": 2, "registers": 2}),
    "inline": fixup(3, {"layout": 3}, 3, {"layout": 3, "endbr64": 1}),
    "string": fixup(1545, {}, 3),
    "quirk": fixup(3, {"quirks": 1}, 3, {"quirks": 0x13, "ring_3": 1}),
    "quirks": fixup(3, {"quirks": 0x24, "endbr64": 1, "ring_3": 1}, 4, {"quirks": 4}),
    "table": fixup(table=1),
    "table_with_quirks": fixup(9, {"layout": 2, "quirks": 4}, table=1),
})
