"""SMIs: what is written where, on which CPU, and by chipsec's conventions."""

import os
import unittest
from types import MappingProxyType

import ioemul

A_CPU = max(os.sched_getaffinity(0))


class Mailbox:
    """Records writes, and answers a code by adding RCX to RBX."""

    def __init__(self):
        self.writes = []
        self.registers = {}
        self.cpus = None

    def __call__(self, access, gprs):
        self.writes.append((access.port, access.width, access.value))
        if access.port & 1 == 0:
            self.registers = dict(gprs)
            self.cpus = os.sched_getaffinity(0)
            gprs.rbx = gprs.rbx + gprs.rcx & 2**64 - 1
            gprs.rflags |= 1

    def bus(self, first=0xB2):
        bus = ioemul.Bus()
        bus.attach(first, first + 1, self)
        return bus


class Smi(unittest.TestCase):
    def test_the_data_first_then_the_code_each_a_byte(self):
        mailbox = Mailbox()
        registers = {"rax": 0x1111_2222_3333_4444, "rbx": 1, "rcx": 0x10, "rdx": 0xDDDD, "r15": 15}
        after = ioemul.smi(0x5A, 0x77, registers, on=mailbox.bus())
        self.assertEqual(mailbox.writes, [(0xB3, 1, 0x77), (0xB2, 1, 0x5A)])
        self.assertEqual(mailbox.registers["rax"], 0x1111_2222_3333_445A)
        self.assertEqual([mailbox.registers[name] for name in ("rdx", "r15")], [0xDDDD, 15])
        self.assertEqual((after["rbx"], after["rflags"]), (0x11, 1))

    def test_no_data(self):
        mailbox = Mailbox()
        mailbox.bus().smi(0x5A, None)
        mailbox.bus().smi(0x5A)
        self.assertEqual(mailbox.writes, [(0xB2, 1, 0x5A), (0xB3, 1, 0), (0xB2, 1, 0x5A)])

    def test_another_port_by_dx(self):
        mailbox = Mailbox()
        ioemul.smi(0x5A, 1, {"rdx": 0x1234_5678}, port=0x1B2, on=mailbox.bus(0x1B2))
        self.assertEqual(mailbox.writes, [(0x1B3, 1, 1), (0x1B2, 1, 0x5A)])
        self.assertEqual(mailbox.registers["rdx"], 0x1234_01B2)

    def test_the_cpu_and_the_thread_is_free_again(self):
        before = os.sched_getaffinity(0)
        mailbox = Mailbox()
        bus = mailbox.bus()
        for call, cpus in [
            (lambda: ioemul.smi(1, cpu=A_CPU, on=bus), {A_CPU}),
            (lambda: bus.smi(1, cpu=A_CPU), {A_CPU}),
            (lambda: bus.execute("out 0xb2, al", cpu=A_CPU), {A_CPU}),
            (lambda: ioemul.execute("out 0xb2, al", cpu=A_CPU, on=bus), {A_CPU}),
            (lambda: ioemul.smi(1, cpu="any", on=bus), before),
            (lambda: ioemul.smi(1, on=bus), before),
        ]:
            call()
            self.assertEqual(mailbox.cpus, cpus)
            self.assertEqual(os.sched_getaffinity(0), before)

    def test_what_cannot_be_is_refused_before_anything_is_written(self):
        mailbox = Mailbox()
        bus = mailbox.bus()
        table = [
            (dict(code=0x100), ValueError, "code.*byte"),
            (dict(code=-1), ValueError, "code.*negative"),
            (dict(code="0x5a"), TypeError, "code.*int"),
            (dict(code=None), TypeError, "code.*int"),
            (dict(code=1, data=0x100), ValueError, "data.*byte"),
            (dict(code=1, data="x"), TypeError, "data.*int"),
            (dict(code=1, port=0x10000), ValueError, "port.*0xffff"),
            (dict(code=1, port=0xFFFF), ValueError, "none behind"),
            (dict(code=1, registers={"al": 1}), ValueError, "holds the code"),
            (dict(code=1, registers=MappingProxyType({"al": 1})), ValueError, "holds the code"),
            (dict(code=1, cpu=-1), ValueError, "cpu.*negative"),
            (dict(code=1, cpu="0"), ValueError, '"any"'),
            (dict(code=1, cpu=1.5), TypeError, "cpu.*int"),
        ]
        for arguments, kind, message in table:
            with self.subTest(**arguments), self.assertRaisesRegex(kind, message):
                ioemul.smi(**arguments, on=bus)
        for cpu in [8191, 1 << 40, 1 << 63]:
            with self.assertRaises(ioemul.NoSuchCpu) as caught:
                ioemul.smi(1, cpu=cpu, on=bus)
            self.assertEqual(caught.exception.cpu, cpu)
        self.assertEqual(mailbox.writes, [])


class ChipsecsCall(unittest.TestCase):
    REGISTERS = (0xAAAA_AAAA_AAAA_AAAA, 1, 0x10, 0xD, 0x51, 0xD1)

    def test_the_tuple(self):
        mailbox = Mailbox()
        answer = ioemul.send_sw_smi(A_CPU, 0x775A, *self.REGISTERS, on=mailbox.bus())
        self.assertEqual(mailbox.writes, [(0xB3, 1, 0x77), (0xB2, 1, 0x5A)])
        rax = 0xAAAA_AAAA_AAAA_775A  # AX is code and data
        self.assertEqual(answer, (0x775A, rax, 0x11, 0x10, 0xD, 0x51, 0xD1))
        self.assertEqual(mailbox.registers["rax"], rax)
        self.assertEqual(mailbox.registers["rdx"], 0xD)
        self.assertEqual(mailbox.cpus, {A_CPU})

    def test_what_cannot_be_is_refused_before_anything_is_written(self):
        mailbox = Mailbox()
        bus = mailbox.bus()
        good = [A_CPU, 0x5A, 0, 0, 0, 0, 0, 0]
        for position in range(2, 8):
            for value, kind in [(-1, ValueError), (1 << 64, ValueError), (None, TypeError), ("5", TypeError), (0.5, TypeError)]:
                arguments = list(good)
                arguments[position] = value
                with self.subTest(position=position, value=value), self.assertRaisesRegex(kind, "^r[abcds][xi]: "):
                    ioemul.send_sw_smi(*arguments, on=bus)
        for code_data, kind in [(0x10000, ValueError), (-1, ValueError), (None, TypeError), ("5", TypeError)]:
            with self.subTest(code_data=code_data), self.assertRaisesRegex(kind, "SMI_code_data"):
                ioemul.send_sw_smi(A_CPU, code_data, *good[2:], on=bus)
        for cpu, kind in [(1 << 20, ioemul.NoSuchCpu), (-1, ValueError), (0.5, TypeError)]:
            with self.subTest(cpu=cpu), self.assertRaises(kind):
                ioemul.send_sw_smi(cpu, *good[1:], on=bus)
        self.assertEqual(mailbox.writes, [])


if __name__ == "__main__":
    unittest.main()
