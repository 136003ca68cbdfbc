"""The first process of a Linux guest of `cargo xtask hw --python`: this module and chipsec on a (emulated) machine's own SMM.

Writes a line for each check to the console: `ioemul|NAME|ok`, or what went wrong. What the firmware does to the registers is
in hw/shared/src/smm.rs; /handler is its machine code.
"""

import contextlib
import ctypes
import io
import os
import random
import sys
import traceback
import unittest

LIBC = ctypes.CDLL(None, use_errno=True)
MASK = 2**64 - 1
# Each register is given the complement of the one behind it, the last one that of the first.
RING = "rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
COMMAND = 0x5A
SMRAM_HANDLER = 0xA8000


def mount(kind, at):
    if LIBC.mount(kind.encode(), at.encode(), kind.encode(), 0, None) != 0:
        raise OSError(ctypes.get_errno(), f"mounting {at}")


def equal(found, expected):
    if found != expected:
        raise AssertionError(f"{found} where {expected} should be")


def after(registers):
    """What the handler makes of all registers; CF becomes bit 0 of RBX."""
    words = {name: ~registers[RING[(place + 1) % len(RING)]] & MASK for place, name in enumerate(RING)}
    words["rflags"] = registers["rflags"] & ~1 | registers["rbx"] & 1
    return words


def install_handler():
    """As hw/shared/src/smm.rs does on a q35: SMIs on, SMRAM open, the handler in, SMRAM closed."""
    import ioemul

    machine = ioemul.Machine("hardware", "all")

    def select(device, register):
        machine.execute("out dx, eax", {"dx": 0xCF8, "eax": 1 << 31 | device << 11 | register & 0xFC})

    select(0x1F, 0x40)
    enable = (machine.execute("in eax, dx", {"dx": 0xCFC})["rax"] & 0xFF80) + 0x30
    enabled = machine.execute("in eax, dx", {"dx": enable})["rax"]
    machine.execute("out dx, eax", {"dx": enable, "eax": enabled | 0x21})

    def smram(value):
        select(0, 0x9D)
        machine.execute("out dx, al", {"dx": 0xCFC + (0x9D & 3), "al": value})

    smram(0x4A)
    with open("/handler", "rb") as handler, open("/dev/mem", "r+b", buffering=0) as memory:
        memory.seek(SMRAM_HANDLER)
        memory.write(handler.read())
    smram(0x0A)


def check_smi():
    """Every register, random, by ioemul.smi; and the data is in port 0xb3."""
    import ioemul

    for turn in range(100):
        registers = {name: random.getrandbits(64) for name in RING}
        registers["rbx"] &= ~2  # bit 1 would leave CF alone
        registers["rflags"] = random.getrandbits(64) & 0x8D5
        given = dict(registers, rax=registers["rax"] & ~0xFF | COMMAND)
        equal(ioemul.smi(COMMAND, turn, registers), after(given))
        equal(ioemul.execute("in al, 0xb3", ports=0xB3)["rax"], turn)


ARGUMENTS = (0x1111_2222_3333_4444, 0x5, 0x66, 0x77, 0x88, 0x99)


def tuple_of_chipsec():
    registers = dict.fromkeys(RING, 0) | dict(zip("rax rbx rcx rdx rsi rdi".split(), ARGUMENTS)) | {"rflags": 0}
    registers["rax"] = registers["rax"] & ~0xFFFF | 0x7700 | COMMAND
    words = after(registers)
    return (0x7700 | COMMAND, *(words[name] for name in "rax rbx rcx rdx rsi rdi".split()))


def check_send_sw_smi():
    import ioemul

    equal(ioemul.send_sw_smi(0, 0x7700 | COMMAND, *ARGUMENTS), tuple_of_chipsec())


def chipset(helper):
    from chipsec.chipset import cs

    made = cs()
    made.load_helper(helper)
    made.start_helper()
    return made


def check_chipsec_without_the_plug():
    from chipsec.hal.interrupts import Interrupts

    try:
        Interrupts(chipset("linuxnativehelper")).send_SW_SMI(0, COMMAND, 0x77, *ARGUMENTS)
    except NotImplementedError:
        return
    raise AssertionError("chipsec's native helper can send SMIs by itself")


def check_chipsec():
    """chipsec's class Interrupts."""
    import ioemul.chipsec
    from chipsec.hal.interrupts import Interrupts

    interrupts = Interrupts(chipset(ioemul.chipsec.install()))
    equal(interrupts.send_SW_SMI(0, COMMAND, 0x77, *ARGUMENTS), tuple_of_chipsec())


def check_chipsec_util():
    """`chipsec_util smi send`, which prints what the firmware has left."""
    import ioemul.chipsec
    from chipsec.library.logger import logger

    said = []
    log = logger().log
    logger().log = lambda text="", *rest: said.append(str(text))
    try:
        arguments = ["0", f"{COMMAND:x}", "77", *(f"{word:x}" for word in ARGUMENTS)]
        ended = ioemul.chipsec.main(["util", "-nl", "-nb", "-p", "SNB", "smi", "send", *arguments])
    finally:
        logger().log = log
    text = "\n".join(said)
    if ended != 0:
        raise AssertionError(f"it ended with {ended}: {text}")
    for name, word in zip("RAX RBX RCX RDX RSI RDI".split(), tuple_of_chipsec()[1:]):
        if f"          {name}: {word:16X}" not in text.partition("Return values")[2]:
            raise AssertionError(f"no {name} {word:x} in {text}")


def check_vmware():
    """The backdoor of VMware, which QEMU has: a command that answers in RBX."""
    import ioemul

    equal(ioemul.execute("in eax, dx", {"eax": 0x564D5868, "ecx": 10, "dx": 0x5658})["rbx"], 0x564D5868)


def check_nobody():
    """A process without CAP_SYS_RAWIO is told so."""
    import ioemul

    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            ioemul.smi(COMMAND)
        except PermissionError as error:
            facts = (error.call, error.errno, error.capable)
            os._exit(0 if facts == ("ioperm", 1, False) and "CAP_SYS_RAWIO" in str(error) else 1)
        except BaseException:
            os._exit(2)
        os._exit(3)
    equal(os.waitpid(child, 0)[1], 0)


def check_tests():
    """The tests that need no device, as root and with ioperm."""
    report = io.StringIO()
    suite = unittest.defaultTestLoader.loadTestsFromNames(["test_access", "test_smi", "test_hardware"])
    result = unittest.TextTestRunner(report).run(suite)
    if not result.wasSuccessful() or result.testsRun < 40:
        raise AssertionError(report.getvalue())


def outcome(check):
    """What comes of a check, in a process of its own: chipsec opens all ports of its process (iopl)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "ok"
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                check()
        except BaseException:
            said = traceback.format_exc().replace("\n", " / ")
        os.write(writer, said[:4000].encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    status = os.waitpid(child, 0)[1]
    return said or f"it ended with status {status:#x}"


def main():
    for kind, at in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")]:
        mount(kind, at)
    console = open("/dev/console", "w", buffering=1)
    for descriptor in (1, 2):
        os.dup2(console.fileno(), descriptor)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    os.environ.update(PATH="/usr/bin", PYTHONPATH="/site")
    os.chdir("/tests")
    sys.path.append("/tests")
    checks = [(name[len("check_") :].replace("_", "-"), check) for name, check in globals().items() if name[:6] == "check_"]
    try:
        install_handler()
        # Once, and not in each of the processes to come: compiling it takes an emulated CPU seconds.
        import chipsec.chipset
        import chipsec.hal.interrupts
        import chipsec_util  # noqa: F401

        for name, check in checks:
            print(f"ioemul|{name}|{outcome(check)}", file=console)
    except BaseException:
        print(f"ioemul|error|{traceback.format_exc()!r}", file=console)
    print("ioemul|end", file=console)


if __name__ == "__main__":
    if os.getpid() != 1:
        sys.exit("this is the first process of a virtual machine, which it ends: cargo xtask hw --python")
    try:
        main()
    finally:
        LIBC.reboot(0x01234567)
