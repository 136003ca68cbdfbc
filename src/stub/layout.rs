//! The four stub layouts.
//!
//! ```text
//!  CallRet, 36 bytes          Compact, 13 bytes       Rop, 9 bytes              Inline
//!  ─────────────────────      ───────────────────     ─────────────────────     ──────────────────
//!  push rbx … r15, rdi        call enter_guest        call host_to_guest        push rbx … r15, rdi
//!  call load_guest_gprs       <io>                    <io>                      load 15 registers
//!  <io>                       jmp leave_guest         ret → guest_to_host       <io>
//!  call save_guest_gprs                                                         jmp short +0
//!  pop rdi, r15 … rbx                                                           save 15 and flags
//!  ret                                                                          pop …, ret
//! ```
//!
//! Behind `<io>` there is always a control transfer before the first register is saved. An SMI that the access raises
//! may be taken only there (under emulation it is), and a save before it would store what was in the register before
//! the SMM handler ran.

/// How a stub switches registers around its I/O instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StubLayout {
    /// Prologue, call to a load helper, I/O, call to a save helper, epilogue: 36 bytes, every RET paired with a CALL.
    #[default]
    CallRet,
    /// **A measurement mode.** The historic layout of 9 bytes: the first helper leaves the address of the second one on
    /// the stack, where the stub's RET finds it. That RET, and with it every RET of the callers further out, is
    /// mispredicted. Refused where a user shadow stack is active, which would raise #CP.
    Rop,
    /// 13 bytes, and every RET paired with a CALL: `call enter_guest; <io>; jmp leave_guest`, the helpers doing the
    /// stub's pushes and pops.
    Compact,
    /// No helper at all: about 200 bytes for each stub.
    Inline,
}

impl StubLayout {
    /// All layouts, the default first.
    pub const ALL: &[StubLayout] = &[StubLayout::CallRet, StubLayout::Rop, StubLayout::Compact, StubLayout::Inline];

    /// Length in bytes of a stub of IN or OUT that neither a quirk nor an option of the host makes longer.
    pub const fn stub_len(self) -> usize {
        match self {
            StubLayout::CallRet => 36,
            StubLayout::Rop => 9,
            StubLayout::Compact => 13,
            StubLayout::Inline => 207,
        }
    }

    /// Bytes on the stack between RSP at the I/O and the pointer to the register file.
    pub(crate) const fn depth_at_io(self) -> u8 {
        match self {
            StubLayout::Rop => 8, // the address of guest_to_host
            StubLayout::CallRet | StubLayout::Compact | StubLayout::Inline => 0,
        }
    }
}
