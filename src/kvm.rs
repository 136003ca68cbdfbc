//! KVM's port accesses (KVM_EXIT_IO), made with all of the guest's registers in view.
//!
//! ```text
//!   KVM_RUN ──▶ kvm_run ──io_exit──▶ KvmIo, data ──┐
//!   KVM_GET_REGS ──▶ kvm_regs ─────────────────────┴─serve_io─▶ data (an IN's results), kvm_regs ──▶ KVM_SET_REGS, if changed
//! ```
//!
//! Most VMMs look at `data` alone: for a UART that is enough. For a mailbox it is not, which reads and writes the
//! registers. [`serve_io`] does both, for IN, OUT, INS and OUTS, with any number of elements. The example `kvm_exit_io` is the
//! whole loop, with kvm-ioctls.
//!
//! # What KVM delivers
//!
//! KVM runs INS and OUTS itself: it reads and writes the guest's memory, counts RCX, moves RSI and RDI, follows DF, and asks
//! for the accesses alone. What it delivers, in real mode and in 64-bit mode alike (seen on Linux 6.18, `kvm_pvm`, where
//! KVM's emulator runs all of them; the tests of `tests/kvm.rs` look at it on the kernel that they run on):
//!
//! | instruction | exits | `count` | RCX, RSI, RDI at the exit | RIP at the exit |
//! |---|---|---|---|---|
//! | IN | 1 | 1 | the guest's | at the instruction |
//! | OUT | 1 | 1 | the guest's | behind it (at it, where the CPU's own exit is served without the emulator) |
//! | OUTS | 1 | 1 | RSI has moved on | behind it |
//! | REP OUTS | one an element | 1 | RCX and RSI are *behind* the element (RCX is 0 at the last one) | at it, at the last one too |
//! | INS | 1 | 1 | the guest's | at it |
//! | REP INS | one a batch | as many as RCX says, and at most 1,024 bytes and the rest of the page, but at least one | *before* the batch's first element | at it |
//!
//! The elements of a batch are in `data` in the order in which they are moved, with DF set too. A count of 0 makes no exit.
//!
//! So an exit of one element does not tell INS from IN, or OUTS from OUT. A REP INS whose next element is the last in its page
//! makes such an exit, too, whatever its count. A VMM that takes the length of `data` for the width of the access takes REP INSB of two for a word.
//!
//! # What is left to KVM
//!
//! - **RIP**, and the completion of an IN: at the next KVM_RUN it takes the result out of `data`. There is one
//!   exception: if KVM's emulator runs the instruction and KVM_SET_REGS was called after the exit, KVM keeps the RAX that
//!   was set and ignores `data`. So KVM_SET_REGS is to be called only if a device has changed a register ([`Next::SetRegs`]): [`serve_io`]
//!   then has the result in RAX, too, and both kinds of completion come to the same.
//! - **RCX, RDX, RSI and RDI of a string instruction.** KVM goes on with them: another RSI would have it read the next
//!   element elsewhere, another RDX take it to another port. A device sees them as the table says, and what it writes there
//!   is dropped, where the exit is known to be of INS or OUTS.
//! - **The flags of an IN and of INS**, where KVM's emulator runs it: it writes its own copy back, and what a device has
//!   changed is lost. (Those of OUT and OUTS arrive.)

use kvm_bindings::kvm_regs;

use crate::Gprs;

mod exit;
mod serve;

pub use exit::{ExitError, KvmIo, io_exit};
pub use serve::{Next, serve_io};

/// The fifteen registers that a guest's I/O instruction has in view. RSP and RIP are not among them: keep `regs`.
impl From<&kvm_regs> for Gprs {
    fn from(regs: &kvm_regs) -> Self {
        Self {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rbp: regs.rbp,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rflags: regs.rflags,
        }
    }
}

impl Gprs {
    /// Writes the registers back to where they came from. RSP and RIP stay as they are in `regs`.
    ///
    /// Of RFLAGS, the status flags are written back; the other bits stay as they are in `regs`, too.
    ///
    /// ```
    /// use ioemul::Gprs;
    /// use kvm_bindings::kvm_regs;
    /// let mut regs = kvm_regs { rbx: 1, rsp: 0x7000, rip: 0x1000, rflags: 0x202, ..Default::default() };
    /// let mut gprs = Gprs::from(&regs);
    /// gprs.rbx = 2; // what an access may do
    /// gprs.rflags |= Gprs::CF;
    /// gprs.write_back(&mut regs);
    /// assert_eq!(regs, kvm_regs { rbx: 2, rsp: 0x7000, rip: 0x1000, rflags: 0x203, ..Default::default() });
    /// ```
    pub fn write_back(&self, regs: &mut kvm_regs) {
        *regs = kvm_regs {
            rax: self.rax,
            rbx: self.rbx,
            rcx: self.rcx,
            rdx: self.rdx,
            rsi: self.rsi,
            rdi: self.rdi,
            rbp: self.rbp,
            r8: self.r8,
            r9: self.r9,
            r10: self.r10,
            r11: self.r11,
            r12: self.r12,
            r13: self.r13,
            r14: self.r14,
            r15: self.r15,
            rsp: regs.rsp,
            rip: regs.rip,
            rflags: regs.rflags & !Self::STATUS_FLAGS | self.rflags & Self::STATUS_FLAGS,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RegisterFile;

    fn numbered() -> kvm_regs {
        kvm_regs {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            rsi: 5,
            rdi: 6,
            rsp: 7,
            rbp: 8,
            r8: 9,
            r9: 10,
            r10: 11,
            r11: 12,
            r12: 13,
            r13: 14,
            r14: 15,
            r15: 16,
            rip: 17,
            rflags: 0x8d7,
        }
    }

    #[test]
    fn there_and_back_changes_nothing() {
        let mut regs = numbered();
        let gprs = Gprs::from(&regs);
        assert_eq!(gprs.to_words(), [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0x8d7]);
        gprs.write_back(&mut regs);
        assert_eq!(regs, numbered());
    }

    #[test]
    fn of_the_flags_only_the_status_flags_come_back() {
        for (after, expected) in [(0x8d7, 0x8d7), (0x246, 0x46), (0xffff_ffff, 0x8d7), (0, 2)] {
            let mut regs = numbered();
            Gprs { rflags: after, ..Gprs::from(&regs) }.write_back(&mut regs);
            assert_eq!(regs.rflags, expected, "{after:#x}");
        }
    }

    /// The library's offsets are those of the structure that KVM's own bindings declare.
    #[test]
    fn kvm_regs_as_a_register_file() {
        use core::mem::offset_of;
        macro_rules! offsets {
            ($($register:ident)*) => { [$(offset_of!(kvm_regs, $register) as i16),*] };
        }
        let offsets = offsets!(rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15);
        assert_eq!(RegisterFile::KVM_REGS, RegisterFile::new(offsets, Some(offset_of!(kvm_regs, rflags) as i16)));
    }
}
