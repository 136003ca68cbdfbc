"""chipsec's own classes send an SMI through its native helper, which cannot without this module."""

import contextlib
import io
import os
import subprocess
import sys
import unittest

from chipsec.chipset import cs
from chipsec.hal.interrupts import Interrupts
from chipsec.helper.linuxnative.linuxnativehelper import LinuxNativeHelper
from chipsec.library.exceptions import OsHelperError
from chipsec.library.logger import logger
from chipsec.utilcmd.interrupts_cmd import SMICommand

import ioemul
import ioemul.chipsec

A_CPU = max(os.sched_getaffinity(0))
REGISTERS = (0xAAAA_AAAA_AAAA_AAAA, 1, 0x10, 0xD, 0x51, 0xD1)
ANSWER = (0x775A, 0xAAAA_AAAA_AAAA_775A, 0x11, ~0x10 & 2**64 - 1, 0xD, 0x51, 0xD1)


class Firmware:
    """Behind 0xb2 and 0xb3: RBX becomes RBX + RCX, and RCX its complement."""

    def __init__(self):
        self.writes = []
        self.registers = None
        self.cpus = None

    def __call__(self, access, gprs):
        if access.direction == "in":
            return 0x5B
        self.writes.append((access.port, access.width, access.value))
        if access.port == 0xB2:
            self.registers = dict(gprs)
            self.cpus = os.sched_getaffinity(0)
            gprs.rbx += gprs.rcx
            gprs.rcx ^= 2**64 - 1


class Chipsec(unittest.TestCase):
    def setUp(self):
        self.firmware = Firmware()
        self.bus = ioemul.Bus()
        self.bus.attach(0xB2, 0xB3, self.firmware)
        self.chipset = cs()

    def tearDown(self):
        self.chipset.os_helper.avail_helpers.pop(ioemul.chipsec.NAME, None)

    def start(self, helper):
        self.chipset.load_helper(helper)
        self.chipset.start_helper()
        return Interrupts(self.chipset)

    def check(self, interrupts):
        before = os.sched_getaffinity(0)
        self.assertEqual(interrupts.send_SW_SMI(A_CPU, 0x5A, 0x77, *REGISTERS), ANSWER)
        self.assertEqual(self.firmware.writes, [(0xB3, 1, 0x77), (0xB2, 1, 0x5A)])
        seen = self.firmware.registers
        self.assertEqual([seen[name] for name in "rax rbx rcx rdx rsi rdi".split()], [ANSWER[1], *REGISTERS[1:]])
        self.assertEqual(self.firmware.cpus, {A_CPU})
        self.assertEqual(os.sched_getaffinity(0), before)

    def test_without_the_plug_it_is_not_implemented(self):
        interrupts = self.start("linuxnativehelper")
        with self.assertRaises(NotImplementedError):
            interrupts.send_SW_SMI(A_CPU, 0x5A, 0x77, *REGISTERS)
        with self.assertRaisesRegex(OsHelperError, "not found"):
            self.chipset.load_helper(ioemul.chipsec.NAME)

    def test_with_the_helper_that_is_returned(self):
        self.check(self.start(ioemul.chipsec.install(on=self.bus)))

    def test_with_the_helper_by_its_name(self):
        ioemul.chipsec.install(on=self.bus)
        self.assertIn(ioemul.chipsec.NAME, self.chipset.os_helper.get_available_helpers())
        self.check(self.start(ioemul.chipsec.NAME))

    def test_with_a_helper_that_is_there_already(self):
        interrupts = self.start("linuxnativehelper")
        self.assertIs(ioemul.chipsec.install(self.chipset.helper, on=self.bus), self.chipset.helper)
        self.check(interrupts)

    def test_nothing_of_chipsecs_is_changed(self):
        helper = ioemul.chipsec.install(on=self.bus)
        self.assertIs(type(helper), LinuxNativeHelper)
        with self.assertRaises(NotImplementedError):
            LinuxNativeHelper().send_sw_smi(A_CPU, 0, 0, 0, 0, 0, 0, 0)

    def command(self, *arguments):
        command = SMICommand(["send", f"{A_CPU:x}", *arguments], cs=self.chipset)
        said = []
        log, logger().log = logger().log, lambda text="", *rest: said.append(str(text))
        try:
            command.parse_arguments()
            command.run()
        finally:
            logger().log = log
        return "\n".join(said)

    def test_the_command_of_chipsec_util(self):
        self.start(ioemul.chipsec.install(on=self.bus))
        said = self.command("0x5a", "0x77", "0xaaaaaaaaaaaaaaaa", "0x1", "0x10")
        self.assertEqual(self.firmware.writes, [(0xB3, 1, 0x77), (0xB2, 1, 0x5A)])
        self.assertRegex(said, r"Return values\n +RAX: AAAAAAAAAAAA775A\n +RBX: +11\n +RCX: FFFFFFFFFFFFFFEF\n")

    def test_the_command_without_registers_stays_on_the_bus(self):
        self.start(ioemul.chipsec.install(on=self.bus))
        self.command("0x5a", "0x77")
        self.assertEqual(self.firmware.writes, [(0xB3, 1, 0x77), (0xB2, 1, 0x5A)])

    def test_port_accesses_of_the_helper_are_the_bus_s(self):
        helper = ioemul.chipsec.install(on=self.bus)
        self.assertEqual([helper.read_io_port(0xB2, size) for size in (1, 2, 4)], [0x5B, 0x5B, 0xFFFF_5B5B])
        self.assertTrue(helper.write_io_port(0xB3, 0x12, 1))
        self.assertEqual(self.firmware.writes, [(0xB3, 1, 0x12)])
        for size in (0, 3, 8):
            with self.assertRaises(ValueError):
                helper.read_io_port(0xB2, size)
        with self.assertRaises(ValueError):
            helper.write_io_port(0xB3, 0x100, 1)

    def test_on_hardware_they_stay_chipsecs(self):
        helper = ioemul.chipsec.install()
        self.assertEqual(helper.read_io_port.__func__, LinuxNativeHelper.read_io_port)

    def test_hostile_arguments_write_nothing(self):
        interrupts = self.start(ioemul.chipsec.install(on=self.bus))
        good = [A_CPU, 0x5A, 0x77, *REGISTERS]
        for position, value, kind in [
            (0, 1 << 20, ioemul.NoSuchCpu),
            (0, -1, ValueError),
            (1, -1, ValueError),
            (2, 0x100, ValueError),
            (2, -1, ValueError),
            (3, -1, ValueError),
            (4, 1 << 64, ValueError),
            (8, -5, ValueError),
        ]:
            arguments = list(good)
            arguments[position] = value
            with self.subTest(position=position, value=value), self.assertRaises(kind):
                interrupts.send_SW_SMI(*arguments)
        # What chipsec's logging would not let pass.
        for value in (None, "5", 0.5, b"5"):
            with self.subTest(value=value), self.assertRaises(TypeError):
                self.chipset.helper.send_sw_smi(A_CPU, 0x775A, value, 0, 0, 0, 0, 0)
        self.assertEqual(self.firmware.writes, [])

    def test_what_firmware_raises_reaches_chipsecs_caller(self):
        def broken(access, gprs):
            raise LookupError("broken")

        bus = ioemul.Bus()
        bus.attach(0xB2, 0xB3, broken)
        with self.assertRaisesRegex(LookupError, "broken"):
            self.start(ioemul.chipsec.install(on=bus)).send_SW_SMI(A_CPU, 0x5A, 0x77, *REGISTERS)

    def test_what_cannot_be_installed(self):
        for on, kind in [(None, TypeError), ("bus", ValueError), (5, TypeError)]:
            with self.assertRaises(kind):
                ioemul.chipsec.install(on=on)
        with self.assertRaisesRegex(TypeError, "one of chipsec's"):
            ioemul.chipsec.install(object())
        self.assertNotIn(ioemul.chipsec.NAME, self.chipset.os_helper.get_available_helpers())


class CommandLine(unittest.TestCase):
    def test_usage(self):
        for arguments in [[], ["smi"]]:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                self.assertEqual(ioemul.chipsec.main(arguments), 2)
            self.assertIn("util|main", said.getvalue())

    def test_chipsec_util_knows_the_helper(self):
        command = [sys.executable, "-m", "ioemul.chipsec", "util", "-h"]
        result = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("--helper {dalhelper,ioemulhelper,linux", result.stdout)


if __name__ == "__main__":
    unittest.main()
