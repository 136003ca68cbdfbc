//! Registers to and from KVM: `KVM_GET_REGS`, an access, `KVM_SET_REGS`.
//!
//! ```text
//!   kvm_regs ──Gprs::from──▶ Gprs ──execute──▶ Gprs ──write_back──▶ kvm_regs
//!      └── RSP and RIP stay here, and so does RFLAGS but for what the access changed ──┘
//! ```

use kvm_bindings::kvm_regs;

use crate::Gprs;

/// The fifteen registers that a guest's I/O instruction has in view. RSP and RIP are not among them: keep `regs`.
///
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
