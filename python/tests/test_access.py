"""What goes in, what comes back, and what is refused before anything happens."""

import pathlib
import pickle
import threading
import unittest

import ioemul

WORDS = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15 rflags".split()
ALL_ONES = 2**64 - 1


class Recorder:
    """A model that remembers what it has seen."""

    def __init__(self, answer=None):
        self.answer = answer
        self.seen = []

    def __call__(self, access, gprs):
        self.seen.append((access.direction, access.port, access.width, access.value, dict(gprs)))
        return self.answer


def bus_with(model, first=0xB2, last=0xB3):
    bus = ioemul.Bus()
    bus.attach(first, last, model)
    return bus


class Readme(unittest.TestCase):
    def test_its_example_on_device_models(self):
        readme = pathlib.Path(__file__).parent.with_name("README.md")
        if not readme.exists():
            self.skipTest("it is not in the guest")
        example = readme.read_text().split("```python\n")[1].split("```")[0]
        on_bus = example[example.index("bus = ") : example.index("# Any IN or OUT")]
        exec(on_bus, {"ioemul": ioemul})
        self.assertIn("assert", on_bus)


class Decode(unittest.TestCase):
    def test_text_and_length_of_the_first_instruction(self):
        self.assertEqual(ioemul.decode(b"\x66\xe5\x70\x90"), ("in ax, 0x70", 3))
        self.assertEqual(ioemul.decode(bytearray(b"\xef"), 16), ("out dx, ax", 1))
        self.assertEqual(ioemul.decode(b"\xef", mode=32), ("out dx, eax", 1))
        self.assertEqual(ioemul.decode(b"\xf3\x6e"), ("rep outsb", 2))

    def test_what_is_no_port_io_is_a_decode_error(self):
        for code, truncated in [(b"", True), (b"\xe5", True), (b"\x90", False), (b"\xf0\xee", False), (b"\x66" * 15, False)]:
            with self.subTest(code=code), self.assertRaises(ioemul.DecodeError) as caught:
                ioemul.decode(code)
            self.assertEqual(caught.exception.truncated, truncated)
            self.assertIsInstance(caught.exception, ValueError)

    def test_a_mode_that_there_is_not(self):
        with self.assertRaisesRegex(ValueError, "16, 32 or 64"):
            ioemul.decode(b"\xef", 8)
        for code in ["ef", [0xEF], None, 0xEF]:
            with self.subTest(code=code), self.assertRaisesRegex(TypeError, "bytes"):
                ioemul.decode(code)


class Registers(unittest.TestCase):
    def test_every_register_reaches_the_device_and_comes_back(self):
        before = {name: index * 0x0101_0101_0101_0101 for index, name in enumerate(WORDS, 1)}
        before["rflags"] = 0x8D5  # the status flags; no other bit is the guest's
        seen = {}

        def complement(access, gprs):
            seen.update(dict(gprs))
            for name in WORDS[:-1]:
                gprs[name] = ~gprs[name] & ALL_ONES
            gprs.rflags = 0

        after = ioemul.execute("out 0xb2, al", before, on=bus_with(complement))
        self.assertEqual(seen, before)
        self.assertEqual(list(after), WORDS)
        self.assertEqual(after, {name: ~before[name] & ALL_ONES for name in WORDS[:-1]} | {"rflags": 0})

    def test_parts_by_their_names(self):
        recorder = Recorder(answer=0x7F)
        registers = {"ah": 0x12, "al": 0x34, "bl": 1, "ecx": 2, "dx": 0xB2, "sil": 3, "r8d": 4, "r15b": 5}
        after = ioemul.execute("in al, dx", registers, on=bus_with(recorder))
        [(direction, port, width, value, gprs)] = recorder.seen
        self.assertEqual((direction, port, width, value), ("in", 0xB2, 1, 0))
        self.assertEqual([gprs[name] for name in "rax rbx rcx rdx rsi r8 r15".split()], [0x1234, 1, 2, 0xB2, 3, 4, 5])
        self.assertEqual(after["rax"], 0x127F)

    def test_nothing_named_is_nothing_set(self):
        recorder = Recorder(answer=0)
        for registers in [None, {}]:
            self.assertEqual(ioemul.execute("in al, 0xb2", registers, on=bus_with(recorder)), dict.fromkeys(WORDS, 0))

    def test_what_cannot_be_is_refused_before_anything_happens(self):
        class Index:
            def __index__(self):
                raise ZeroDivisionError("mine")

        recorder = Recorder()
        bus = bus_with(recorder)
        table = [
            ({"rip": 1}, ValueError, "no such register"),
            ({"RAX": 1}, ValueError, "no such register"),
            ({"r16": 1}, ValueError, "no such register"),
            ({"": 1}, ValueError, "no such register"),
            ({"rsp": 1}, ValueError, "stack"),
            ({"esp": 1}, ValueError, "stack"),
            ({"spl": 1}, ValueError, "stack"),
            ({"al": 0x100}, ValueError, "al.*8 bits.*0x100"),
            ({"eax": 1 << 32}, ValueError, "eax.*32 bits"),
            ({"rax": 1 << 64}, ValueError, "rax.*64 bits"),
            ({"rax": 1 << 4000}, ValueError, "rax.*64 bits"),
            ({"rax": -1}, ValueError, "rax.*negative"),
            ({"rbx": "5"}, TypeError, "rbx.*int, not str"),
            ({"rbx": 5.0}, TypeError, "rbx.*int, not float"),
            ({"rbx": None}, TypeError, "rbx.*int, not NoneType"),
            ({"rbx": Index()}, ZeroDivisionError, "mine"),
            ({"rbx": 1, "bh": 1}, ValueError, "same bits"),
            ({5: 5}, TypeError, "named by a str"),
            ({"rax\0": 5}, ValueError, "no such register"),
            (5, TypeError, "dict of names"),
            ("rax=5", TypeError, "dict of names"),
            ([("rax", 5)], TypeError, "dict of names"),
        ]
        for registers, kind, message in table:
            for call in [
                lambda: ioemul.execute("out 0xb2, al", registers, on=bus),
                lambda: bus.execute("out 0xb2, al", registers),
                lambda: ioemul.smi(1, registers=registers, on=bus),
            ]:
                with self.subTest(registers=registers), self.assertRaisesRegex(kind, message):
                    call()
        self.assertEqual(recorder.seen, [])

    def test_a_mapping_of_another_kind_will_do(self):
        from types import MappingProxyType

        recorder = Recorder()
        bus = bus_with(recorder)
        ioemul.execute("out 0xb2, al", MappingProxyType({"rbx": 7}), on=bus)
        kept = []
        bus.attach(0x80, 0x80, lambda access, gprs: kept.append(gprs))
        ioemul.execute("out 0x80, al", {"rbx": 8}, on=bus)
        ioemul.execute("out 0xb2, al", kept[0], on=bus)
        self.assertEqual([seen[4]["rbx"] for seen in recorder.seen], [7, 8])


class Instructions(unittest.TestCase):
    def test_text_and_bytes_are_the_same_instruction(self):
        recorder = Recorder()
        bus = bus_with(recorder, 0xE0, 0xE3)
        ioemul.execute("out dx, ax", {"rdx": 0xE0, "rax": 0x1234}, on=bus)
        ioemul.execute(b"\xef", {"rdx": 0xE0, "rax": 0x1234}, mode=16, on=bus)
        ioemul.execute(bytearray(b"\x66\xef"), {"rdx": 0xE0, "rax": 0x1234}, on=bus)
        self.assertEqual([seen[:4] for seen in recorder.seen], [("out", 0xE0, 2, 0x1234)] * 3)

    def test_what_is_no_instruction_is_refused(self):
        recorder = Recorder()
        bus = bus_with(recorder)
        for insn, kind, message in [
            ("mov eax, 1", ValueError, "mov eax, 1"),
            ("", ValueError, ""),
            ("OUT 0xb2, al", ValueError, ""),
            (b"", ioemul.DecodeError, "cut off"),
            (b"\x90", ioemul.DecodeError, "not a port-I/O"),
            (b"\xe6\xb2\x90", ValueError, "2 of these 3 bytes"),
            (None, TypeError, "NoneType"),
            (0xEF, TypeError, "int"),
        ]:
            with self.subTest(insn=insn), self.assertRaisesRegex(kind, message):
                ioemul.execute(insn, on=bus)
        self.assertEqual(recorder.seen, [])

    def test_string_instructions_take_their_memory(self):
        sent = []
        bus = ioemul.Bus()

        def fifo(access, gprs):
            if access.direction == "out":
                sent.append(access.value)
            else:
                return 0x60 + gprs.rcx

        bus.attach(0x1F0, 0x1F1, fifo)
        after = ioemul.execute("rep outsb", {"rcx": 3, "rsi": 0x1000, "dx": 0x1F0}, data=b"abc", on=bus)
        self.assertEqual((bytes(sent), after["rcx"], after["rsi"]), (b"abc", 0, 0x1003))
        memory = bytearray(4)
        after = bus.execute("rep insb", {"rcx": 3, "rdi": 0x1000, "dx": 0x1F0}, data=memory)
        self.assertEqual((memory, after["rcx"], after["rdi"]), (b"\x63\x62\x61\0", 0, 0x1003))

    def test_memory_that_does_not_fit_the_instruction(self):
        recorder = Recorder()
        bus = bus_with(recorder)
        for insn, data, kind, message in [
            ("outsb", None, ValueError, "give the memory"),
            ("insb", None, ValueError, "give the memory"),
            ("insb", b"1234", ValueError, "bytearray"),
            ("outsb", "text", TypeError, "bytes"),
            ("rep outsb", b"12", ValueError, "moves 3 elements"),
            ("out dx, al", b"12", ValueError, "accesses no memory"),
        ]:
            with self.subTest(insn=insn, data=data), self.assertRaisesRegex(kind, message):
                ioemul.execute(insn, {"rcx": 3, "dx": 0xB2}, data=data, on=bus)
        self.assertEqual(recorder.seen, [])

    def test_a_string_instruction_that_ends_early_gives_what_has_come(self):
        def two(access, gprs):
            if gprs.rcx == 1:
                raise LookupError("no more")
            return gprs.rcx

        memory = bytearray(b"....")
        with self.assertRaisesRegex(LookupError, "no more"):
            ioemul.execute("rep insb", {"rcx": 3, "dx": 0xB2}, data=memory, on=bus_with(two))
        self.assertEqual(memory[:2], b"\3\2")


class Models(unittest.TestCase):
    def test_answers(self):
        for answer, expected in [(None, 0xFF), (0, 0), (0xFF, 0xFF), (True, 1)]:
            with self.subTest(answer=answer):
                self.assertEqual(ioemul.execute("in al, 0xb2", on=bus_with(Recorder(answer)))["rax"], expected)
        for answer, kind in [(0x100, ValueError), (-1, ValueError), (1 << 70, ValueError), ("x", TypeError)]:
            with self.subTest(answer=answer), self.assertRaisesRegex(kind, "the model's answer to an IN of 1 byte"):
                ioemul.execute("in al, 0xb2", on=bus_with(Recorder(answer)))

    def test_nobody_answers_with_all_ones(self):
        self.assertEqual(ioemul.execute("in ax, 0x71", {"rax": 0x12345678}, on=ioemul.Bus())["rax"], 0x1234FFFF)

    def test_an_access_across_two_models_comes_byte_by_byte(self):
        low, high = Recorder(0x11), Recorder(0x22)
        bus = bus_with(low, 0xE0, 0xE0)
        bus.attach(0xE1, 0xE1, high)
        self.assertEqual(ioemul.execute("in ax, 0xe0", on=bus)["rax"], 0x2211)
        self.assertEqual([seen[:3] for seen in low.seen + high.seen], [("in", 0xE0, 1), ("in", 0xE1, 1)])

    def test_what_a_model_raises_reaches_the_caller_as_it_is(self):
        class Mine(Exception):
            pass

        for raised in [Mine("a"), KeyboardInterrupt(), SystemExit(3), ioemul.DeviceError("busy"), ioemul.Error("x")]:
            def model(access, gprs):
                gprs.rbx = 5
                raise raised

            bus = bus_with(model)
            for call in [lambda: bus.execute("in al, 0xb2"), lambda: ioemul.smi(1, on=bus)]:
                with self.subTest(raised=raised), self.assertRaises(type(raised)) as caught:
                    call()
                self.assertIs(caught.exception, raised)
            self.assertEqual(bus.execute("in al, 0x71")["rbx"], 0)  # it can be used further

    def test_hostile_models(self):
        def unknown(access, gprs):
            gprs.rxb = 5

        def stack(access, gprs):
            gprs.rsp = 5

        def wide(access, gprs):
            gprs["al"] = 256

        def item(access, gprs):
            return gprs["rip"]

        def delete(access, gprs):
            del gprs["rax"]

        def frozen(access, gprs):
            access.port = 5

        for model, kind in [
            (unknown, AttributeError),
            (stack, AttributeError),
            (wide, ValueError),
            (item, KeyError),
            (delete, TypeError),
            (frozen, AttributeError),
            (lambda: 5, TypeError),
        ]:
            with self.subTest(model=model), self.assertRaises(kind):
                ioemul.execute("in al, 0xb2", on=bus_with(model))

    def test_registers_are_a_copy_after_the_access(self):
        kept = []
        bus = bus_with(lambda access, gprs: kept.append((access, gprs)))
        ioemul.execute("out 0xb2, al", {"rbx": 7, "al": 5}, on=bus)
        [(access, gprs)] = kept
        gprs.rbx = 9
        self.assertEqual((gprs.bl, len(gprs), list(gprs), access.insn), (9, 16, WORDS, "out 0xb2, al"))
        self.assertIn("OUT of 1 byte to port 0x00b2, value 0x5", repr(access))
        self.assertIn("rbx=0000000000000009", repr(gprs))

    def test_a_value_may_use_the_registers_that_it_is_for(self):
        class Value:
            def __init__(self, gprs):
                self.gprs = gprs

            def __index__(self):
                self.gprs.rcx = 3
                return ioemul.execute("in al, 0x71", self.gprs, on=other)["rcx"] + 1

        other = ioemul.Bus()

        def model(access, gprs):
            gprs.rbx = Value(gprs)
            gprs["rdx"] = Value(gprs)

        after = ioemul.execute("out 0xb2, al", on=bus_with(model))
        self.assertEqual((after["rbx"], after["rcx"], after["rdx"]), (4, 3, 4))

    def test_a_model_cannot_use_the_machine_that_it_is_called_by(self):
        bus = ioemul.Bus()
        other = bus_with(Recorder(0x42))
        bus.attach(0xB2, 0xB2, lambda access, gprs: bus.execute("in al, 0x71"))
        bus.attach(0xB3, 0xB3, lambda access, gprs: bus.attach(0x71, 0x71, print))
        bus.attach(0xB4, 0xB4, lambda access, gprs: other.execute("in al, 0xb2")["rax"])
        for insn in ["in al, 0xb2", "in al, 0xb3"]:
            with self.assertRaisesRegex(ioemul.Error, "the machine that it is called by"):
                bus.execute(insn)
        self.assertEqual(bus.execute("in al, 0xb4")["rax"], 0x42)

    def test_threads_take_turns(self):
        count = 0

        def model(access, gprs):
            nonlocal count
            before = count
            for _ in range(50):
                pass  # the interpreter may switch threads here
            count = before + 1

        bus = bus_with(model)
        work = lambda: [bus.execute("out 0xb2, al") for _ in range(500)]
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(count, 2000)

    def test_models_that_cannot_be_attached(self):
        bus = bus_with(print)
        for first, last, model, kind, message in [
            (0xB3, 0xB4, print, ValueError, "taken"),
            (5, 4, print, ValueError, "empty"),
            (0, 0x10000, print, ValueError, "last.*0xffff"),
            (-1, 5, print, ValueError, "first.*negative"),
            ("0x70", 0x71, print, TypeError, "first.*int"),
            (0x70, 0x71, None, TypeError, "callable"),
        ]:
            with self.subTest(message=message), self.assertRaisesRegex(kind, message):
                bus.attach(first, last, model)


class Machines(unittest.TestCase):
    def test_ports_that_were_not_named(self):
        recorder = Recorder()
        bus = ioemul.Bus("0xb2")
        bus.attach(0, 0xFFFF, recorder)
        for call, port, width in [
            (lambda: bus.execute("out 0x80, al"), 0x80, 1),
            (lambda: bus.execute("out 0xb2, ax"), 0xB2, 2),
            (lambda: bus.smi(1), 0xB3, 1),
        ]:
            with self.assertRaises(ioemul.Denied) as caught:
                call()
            error = caught.exception
            self.assertEqual((error.port, error.width, error.direction, error.quirk), (port, width, "out", None))
        self.assertEqual(recorder.seen, [])
        bus.smi(1, data=None)
        self.assertEqual(len(recorder.seen), 1)

    def test_ports_in_every_form(self):
        for ports, text in [
            ("0xb2-0xb3", "0xb2-0xb3"),
            (0xB2, "0xb2"),
            ([0xB3, 0xB2], "0xb2-0xb3"),
            (range(0x70, 0x72), "0x70-0x71"),
            ("all", "all"),
        ]:
            self.assertEqual(ioemul.Bus(ports).ports, text)
        for ports, kind in [("b2", ValueError), ("70", ValueError), (0x10000, ValueError), (-1, ValueError), (1.5, TypeError),
                            (["0x70"], TypeError), (None, TypeError)]:
            with self.subTest(ports=ports), self.assertRaises(kind):
                ioemul.Machine("hardware", ports)

    def test_quirks_by_name(self):
        seen = []
        bus = ioemul.Bus(quirks=["Dell SMM"])
        bus.attach(0x80, 0xB2, lambda access, gprs: seen.append(access.port))
        bus.execute("out 0xb2, al", {"al": 0xA3})
        self.assertEqual(seen, [0xB2, 0x84])
        with self.assertRaisesRegex(ValueError, "'?Dell.*there are.*Dell SMM"):
            ioemul.Bus(quirks=["Dell"])
        narrow = ioemul.Bus("0xb2", quirks=["Dell SMM"])
        with self.assertRaises(ioemul.Denied) as caught:
            narrow.execute("out 0xb2, al", {"al": 0xA3})
        self.assertEqual((caught.exception.quirk, caught.exception.port), ("Dell SMM", 0x84))

    def test_a_machine_has_its_own_ports(self):
        with self.assertRaisesRegex(ValueError, "has its own"):
            ioemul.execute("in al, 0x71", on=ioemul.Bus(), ports="0x71")

    def test_on_is_never_guessed(self):
        for on, kind in [(None, TypeError), ("bus", ValueError), ("", ValueError), (5, TypeError), (ioemul.Bus, TypeError)]:
            for call in [lambda: ioemul.execute("in al, 0x71", on=on), lambda: ioemul.smi(1, on=on)]:
                with self.subTest(on=on), self.assertRaisesRegex(kind, "hardware"):
                    call()
        with self.assertRaisesRegex(ValueError, "ioemul.Bus"):
            ioemul.Machine("bus", "0x71")

    def test_what_a_machine_says_of_itself(self):
        bus = ioemul.Bus("0xb2-0xb3")
        self.assertEqual((bus.on, bus.ports, bus.cpu, repr(bus)), ("bus", "0xb2-0xb3", None, "<ioemul.Bus, ports 0xb2-0xb3>"))


class Exceptions(unittest.TestCase):
    def test_they_go_between_processes_with_their_facts(self):
        for error in [
            ioemul.Error("a"),
            ioemul.DecodeError("a", truncated=True),
            ioemul.Denied("a", port=1, width=2, direction="in", quirk="q", hazard="h"),
            ioemul.IoFault("a", port=1, vector=13, error_code=0, registers={"rax": 1}),
            ioemul.DeviceError("a", port=1),
            ioemul.NoSuchCpu("a", cpu=5),
            ioemul.PrivilegeError("a", errno=1, call="ioperm", capable=False, locked_down=None),
        ]:
            copy = pickle.loads(pickle.dumps(error))
            self.assertEqual((type(copy), str(copy), vars(copy)), (type(error), str(error), vars(error)))
            self.assertIsInstance(error, ioemul.Error)
            self.assertEqual(type(error).__module__, "ioemul")


if __name__ == "__main__":
    unittest.main()
