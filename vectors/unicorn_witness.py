"""Runs the vectors on Unicorn (QEMU's TCG), which knows nothing of ioemul: `cargo xtask vectors unicorn [class ...]`.

Prints, for each class, how many vectors Unicorn agrees with, how many it cannot run, and how many differ for a reason that
EXPLAINED names. Fails if one differs without.
"""

import collections
import json
import pathlib
import re
import struct
import sys

from unicorn import *
from unicorn.x86_const import *

PAGE = 4096
DATA = pathlib.Path(__file__).parent / "data"
SEGMENTS = ["es", "cs", "ss", "ds", "fs", "gs"]
SHOWN = 3  # differences that are printed in full


def register(name):
    return globals()["UC_X86_REG_" + name.upper()]


def cannot_run(vector):
    """Why Unicorn cannot be asked about a vector, or None."""
    tags = vector.get("tags", [])
    if "permission" in tags:
        return "Unicorn lets every port access pass: its gen_check_io returns at once"
    if "limit" in tags:
        return "TCG checks no segment limits"
    if "canonical" in tags:
        return "Unicorn has no page tables, and no canonical addresses"
    if vector["expect"][0]["outcome"] == "not-io" and not is_inc_dec(vector):
        return "what other instructions do is not the matter here"
    return None


def is_inc_dec(vector):
    """40 to 4F outside 64-bit code, at the very start: run, to see that no access is made."""
    return vector["mode"] != 64 and vector["code"][:1] == "4"


class Machine:
    """A Unicorn in the state that a vector describes."""

    def __init__(self, vector):
        self.vector = vector
        self.mode = vector["mode"]
        self.rip = int(vector["rip"], 16)
        self.code = bytes.fromhex(vector["code"])
        self.io = []
        self.answers = [int(answer, 16) for answer in vector.get("answers", [])]
        self.page = self.exception = None
        self.uc = Uc(UC_ARCH_X86, {16: UC_MODE_16, 32: UC_MODE_32, 64: UC_MODE_64}[self.mode])
        self.map_everything()
        self.hook_everything()
        self.load_segments()
        for name, text in vector["registers"].items():
            self.uc.reg_write(self.wide_or_narrow(name), self.masked(int(text, 16)))

    def wide_or_narrow(self, name):
        if name == "rflags":
            return UC_X86_REG_EFLAGS
        return register(name if self.mode == 64 else "e" + name[1:])

    def masked(self, value):
        return value if self.mode == 64 else value & 0xFFFFFFFF

    def segment(self, name):
        default = {"base": "0", "limit": "ffff" if self.mode == 16 else "ffffffff"}
        return {**default, **self.vector.get("segments", {}).get(name, {})}

    def base(self, name):
        return int(self.segment(name)["base"], 16)

    def map_everything(self):
        memory = self.vector.get("memory", {"pages": []})
        self.pages = {int(page, 16): UC_PROT_ALL for page in memory["pages"]}
        self.pages.update((int(page, 16), UC_PROT_READ) for page in memory.get("read_only", []))
        self.linear_code = self.rip + (self.base("cs") if self.mode != 64 else 0)
        code_page = self.linear_code // PAGE * PAGE
        if self.code:
            self.uc.mem_map(code_page, PAGE, UC_PROT_READ | UC_PROT_EXEC)
            self.uc.mem_write(self.linear_code, self.code)
        for page, protection in self.pages.items():
            self.uc.mem_map(page, PAGE, protection)
        self.bytes = {}
        for address, text in memory.get("bytes", {}).items():
            self.put(self.bytes, address, text)
        for address, byte in self.bytes.items():
            self.uc.mem_write(address, bytes([byte]))
        taken = {page // PAGE for page in self.pages} | {code_page // PAGE, code_page // PAGE + 1}
        taken |= {int(e["page"], 16) // PAGE for e in self.vector["expect"] if "page" in e}
        self.free_page = next(page * PAGE for page in range(1, 0x100000) if page not in taken)

    @staticmethod
    def put(memory, address, text):
        for index, byte in enumerate(bytes.fromhex(text)):
            memory[(int(address, 16) + index) & 0xFFFFFFFFFFFFFFFF] = byte

    def hook_everything(self):
        uc = self.uc
        uc.hook_add(UC_HOOK_INSN, self.on_in, None, 1, 0, UC_X86_INS_IN)
        uc.hook_add(UC_HOOK_INSN, self.on_out, None, 1, 0, UC_X86_INS_OUT)
        uc.hook_add(UC_HOOK_INTR, self.on_interrupt)
        uc.hook_add(UC_HOOK_MEM_READ_UNMAPPED | UC_HOOK_MEM_WRITE_UNMAPPED | UC_HOOK_MEM_WRITE_PROT, self.on_bad_memory)

    def on_in(self, uc, port, size, _):
        value = self.answers.pop(0) if self.answers else 0
        self.io.append(["in", f"{port:04x}", size, f"{value:0{2 * size}x}"])
        return value

    def on_out(self, uc, port, size, value, _):
        value &= (1 << 8 * size) - 1
        self.io.append(["out", f"{port:04x}", size, f"{value:0{2 * size}x}"])

    def on_interrupt(self, uc, number, _):
        self.exception = number
        uc.emu_stop()

    def on_bad_memory(self, uc, access, address, size, value, _):
        self.page = address // PAGE * PAGE
        return False

    def load_segments(self):
        """16-bit code runs in real mode; in 32-bit code, bases take a descriptor table."""
        if self.mode == 64:
            for name in ("fs", "gs"):
                self.uc.reg_write(register(name + "_base"), self.base(name))
        elif self.mode == 16:
            for name in SEGMENTS:
                self.uc.reg_write(register(name), self.base(name) >> 4)
        elif self.vector.get("segments"):
            table = bytes(8) + b"".join(self.data_descriptor(self.base(name)) for name in SEGMENTS)
            self.uc.mem_map(self.free_page, PAGE, UC_PROT_READ)
            self.uc.mem_write(self.free_page, table)
            self.uc.reg_write(UC_X86_REG_GDTR, (0, self.free_page, len(table) - 1, 0))
            for name in ("es", "ds", "fs", "gs"):
                self.uc.reg_write(register(name), 8 * (SEGMENTS.index(name) + 1))

    @staticmethod
    def data_descriptor(base):
        """Present, DPL 0, writable, accessed, 4 GiB."""
        return struct.pack("<HHBBBB", 0xFFFF, base & 0xFFFF, base >> 16 & 0xFF, 0x93, 0xCF, base >> 24)

    def run(self):
        """What came of it, as an expectation is written."""
        uc = self.uc
        length = self.vector["expect"][0].get("length", 1 if is_inc_dec(self.vector) else len(self.code) + (self.vector["expect"][0]["outcome"] == "truncated"))
        begin, until = self.linear_code, self.linear_code + length
        outcome, error = "done", None
        try:
            uc.emu_start(begin, until)
        except UcError as caught:
            error = caught
        if self.exception is not None:
            outcome = {6: "#UD", 13: "#GP(0)", 12: "#SS(0)"}.get(self.exception, f"exception {self.exception}")
        elif error is not None:
            outcome = {
                UC_ERR_INSN_INVALID: "#UD",
                UC_ERR_READ_UNMAPPED: "#PF",
                UC_ERR_WRITE_UNMAPPED: "#PF",
                UC_ERR_WRITE_PROT: "#PF",
                UC_ERR_FETCH_UNMAPPED: "truncated",
            }.get(error.errno, str(error))
        result = {"outcome": outcome, "io": self.io}
        at = uc.reg_read(UC_X86_REG_RIP if self.mode == 64 else UC_X86_REG_EIP)
        result["moved"] = at - self.rip
        if self.page is not None:
            result["page"] = f"{self.page:016x}"
        result["registers"] = {
            name: f"{self.masked(uc.reg_read(self.wide_or_narrow(name))):016x}" for name in self.vector["registers"]
        }
        memory = {}
        for page in self.pages:
            memory.update((page + index, byte) for index, byte in enumerate(uc.mem_read(page, PAGE)) if byte)
        result["memory"] = memory
        return result

    def differences(self, result, expect):
        """In what `result` is not as expected, by name."""
        wrong = []
        outcome = expect["outcome"]
        if outcome == "not-io":
            return ["io"] if result["io"] else []
        if result["outcome"] != outcome:
            wrong.append("outcome")
        if outcome != "truncated" and result["moved"] != expect.get("length", 0):
            wrong.append("rip")
        if outcome == "#PF" and result.get("page") != expect["page"]:
            wrong.append("page")
        io = expect.get("io", [])
        if result["io"] != io and not ("maybe_io" in expect and result["io"] == io + [expect["maybe_io"]]):
            wrong.append("io")
        for name, before in self.vector["registers"].items():
            wanted = int(expect.get("registers", {}).get(name, before), 16)
            if int(result["registers"][name], 16) != self.masked(wanted):
                wrong.append(name)
        memory = dict(self.bytes)
        for address, text in expect.get("memory", {}).items():
            self.put(memory, address, text)
        if result["memory"] != {address: byte for address, byte in memory.items() if byte}:
            wrong.append("memory")
        return wrong


# What TCG or Unicorn is known to do otherwise: what it is, and whether a difference is that.
EXPLAINED = [
    (
        "TCG makes the access of an instruction with LOCK, where CPUs raise #UD",
        lambda vector, result, _: vector["expect"][0]["outcome"] == "#UD" and result["outcome"] in ("done", "#PF"),
    ),
    (
        "TCG fetches the byte behind fifteen prefixes before it finds them too long",
        lambda vector, result, _: len(vector["code"]) == 30 and result["outcome"] == "truncated",
    ),
    (
        "TCG forgets FS or GS when an override follows that 64-bit code ignores, and CPUs do not",
        lambda vector, result, _: vector["mode"] == 64 and re.match("(..)*6[45](..)*(26|2e|3[6e])(..)*6[ef]", vector["code"]),
    ),
    (
        "Unicorn looks for memory by 52 bits of an address, and not by 64",
        lambda vector, result, _: result.get("page") == "000ffffffffff000",
    ),
]


def main():
    known = [entry["name"] for entry in json.loads((DATA / "manifest.json").read_text())["classes"]]
    names = sys.argv[1:] or known
    for name in set(names).difference(known):
        sys.exit(f"there is no class `{name}`: the classes are {', '.join(known)}")
    counts, skipped, explained, shown = collections.Counter(), collections.Counter(), collections.Counter(), 0
    print(f"Unicorn {'.'.join(map(str, uc_version()[:2]))}, Python binding {__import__('unicorn').__version__}")
    print(f"{'class':14} {'vectors':>8} {'agree':>8} {'explained':>10} {'not run':>8} {'differ':>8}")
    for name in names:
        row = collections.Counter()
        for line in (DATA / f"{name}.jsonl").read_text().splitlines():
            vector = json.loads(line)
            row["vectors"] += 1
            reason = cannot_run(vector)
            if reason:
                row["not run"] += 1
                skipped[reason] += 1
                continue
            machine = Machine(vector)
            result = machine.run()
            differences = [machine.differences(result, expect) for expect in vector["expect"]]
            if [] in differences:
                row["agree"] += 1
                continue
            reason = next((reason for reason, holds in EXPLAINED if holds(vector, result, differences[0])), None)
            if reason:
                row["explained"] += 1
                explained[reason] += 1
                continue
            row["differ"] += 1
            shown += 1
            if shown <= SHOWN:
                print(f"{vector['id']} differs in {', '.join(differences[0])}:\n  {line}\n  {result}")
        counts += row
        print_row(name, row)
    print_row("total", counts)
    for title, reasons in (("not run", skipped), ("explained", explained)):
        for reason, count in reasons.most_common():
            print(f"{title}, {count}: {reason}")
    sys.exit(1 if counts["differ"] else 0)


def print_row(name, row):
    print(f"{name:14} {row['vectors']:8} {row['agree']:8} {row['explained']:10} {row['not run']:8} {row['differ']:8}", flush=True)


if __name__ == "__main__":
    main()
