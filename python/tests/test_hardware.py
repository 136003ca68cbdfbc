"""What can be said of the hardware without touching a device: who may, and what happens to those who may not.

Nothing here reaches a device even as root: the accesses are refused before, or are reads of port 0xff, where nobody is.
"""

import faulthandler
import os
import subprocess
import sys
import threading
import unittest

import ioemul


def privilege():
    """The exception for an access to a port that nobody has; None where it is granted."""
    try:
        ioemul.execute("in al, 0xff")
    except ioemul.PrivilegeError as error:
        return error
    return None


class Privilege(unittest.TestCase):
    def test_it_is_granted_or_the_exception_says_why_not(self):
        error = privilege()
        if error is None:
            return
        self.assertIsInstance(error, PermissionError)
        self.assertEqual(error.call, "ioperm")
        self.assertIn(error.errno, (1, 38))
        self.assertIn("EPERM" if error.errno == 1 else "ENOSYS", str(error))
        if error.errno == 1 and os.geteuid() != 0:
            self.assertIs(error.capable, False)

    def test_the_ports_are_closed_again(self):
        if privilege() is None:
            with self.assertRaises(ioemul.IoFault):
                ioemul.Machine("hardware", "0xff", acquire=False).execute("in al, 0xff")


class Faults(unittest.TestCase):
    def check(self):
        machine = ioemul.Machine("hardware", "0xff", acquire=False)
        with self.assertRaises(ioemul.IoFault) as caught:
            machine.execute("in al, 0xff", {"rbx": 7})
        error = caught.exception
        self.assertEqual((error.vector, error.error_code, error.address), (13, 0, None))
        self.assertEqual((error.port, error.width, error.direction, error.registers["rbx"]), (0xFF, 1, "in", 7))

    def test_an_access_without_privilege_is_an_exception(self):
        self.check()

    def test_in_any_thread(self):
        failures = []

        def work():
            try:
                self.check()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_with_pythons_own_handler_before_and_after(self):
        machine = ioemul.Machine("hardware", "0xff", acquire=False)
        enabled = faulthandler.is_enabled()
        try:
            for _ in range(3):
                faulthandler.disable()
                faulthandler.enable(sys.__stderr__)
                with self.assertRaises(ioemul.IoFault):
                    machine.execute("in al, 0xff")
        finally:
            if not enabled:
                faulthandler.disable()

    def test_other_faults_are_still_pythons(self):
        program = (
            "import faulthandler, ioemul\n"
            "faulthandler.enable()\n"
            "try: ioemul.Machine('hardware', '0xff', acquire=False).execute('in al, 0xff')\n"
            "except ioemul.IoFault: faulthandler._sigsegv()\n"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        self.assertEqual(result.returncode, -11)
        self.assertIn("Fatal Python error: Segmentation fault", result.stderr)


class Hazards(unittest.TestCase):
    def test_a_hazardous_port_wants_to_be_named(self):
        for insn, port in [("out 0xb2, al", 0xB2), ("in al, 0x60", 0x60), ("out 0x92, al", 0x92)]:
            with self.subTest(insn=insn), self.assertRaises(ioemul.Denied) as caught:
                ioemul.execute(insn)
            self.assertEqual(caught.exception.port, port)
            self.assertIn(caught.exception.hazard, str(caught.exception))
            self.assertIn("ports=", str(caught.exception))
        with self.assertRaises(ioemul.Denied):
            ioemul.execute("out dx, eax", {"dx": 0xCF8})  # it covers 0xcf9

    def test_ports_are_checked_before_privilege(self):
        with self.assertRaises(ioemul.Denied):
            ioemul.Machine("hardware", "0xff").execute("in al, 0xfe")
        with self.assertRaises(ioemul.Denied):
            ioemul.execute("in al, 0xff", ports="0xfe")

    def test_an_access_past_the_last_port(self):
        with self.assertRaises(ioemul.Denied):
            ioemul.execute("in eax, dx", {"dx": 0xFFFE})

    def test_no_ports(self):
        with self.assertRaisesRegex(ValueError, "none"):
            ioemul.Machine("hardware", "none")
        with self.assertRaises(TypeError):
            ioemul.Machine("hardware")


if __name__ == "__main__":
    unittest.main()
