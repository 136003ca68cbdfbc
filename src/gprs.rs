//! The register file that a stub loads and stores: its memory layout *is* the stub ABI.

use core::fmt;

mod file;
mod names;

pub use file::{ParseRegisterFileError, RegisterFile};
pub use names::{Excerpt, ParseGprsError};

/// The fifteen general-purpose registers that a port-I/O instruction can have in view, and the flags it left.
///
/// Sixteen 64-bit words, 128 bytes, aligned to a cache line; the stubs address them by offset, so the order is part of
/// the ABI: RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 … R15, RFLAGS.
///
/// There is no RSP: the host's stack stays in place while guest registers are live, so that signals and interrupts
/// have somewhere safe to land.
///
/// `rflags` takes part by its status flags ([`Gprs::STATUS_FLAGS`]): they are loaded before the access and stored after
/// it, like every register, since firmware is called with a flag and answers with one. Every other bit is left as
/// given: IF, TF, DF and their like are the host's, and no guest's bit of them ever reaches the CPU.
///
/// ```
/// use ioemul::Gprs;
/// let gprs = Gprs { rax: 0x85, rdx: 0xcd4, ..Gprs::default() };
/// assert_eq!(core::mem::size_of_val(&gprs), 128);
/// assert_eq!(gprs.rdx, 0xcd4);
/// ```
#[allow(missing_docs)] // the fields are the registers they are named after
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C, align(64))]
#[doc(alias("cpu_user_regs", "pt_regs", "register file"))]
pub struct Gprs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    /// RFLAGS, of which the status flags are loaded and stored, and no other bit.
    pub rflags: u64,
}

const _: () = assert!(size_of::<Gprs>() == 128 && align_of::<Gprs>() == 64);

impl Gprs {
    /// CF, PF, AF, ZF, SF and OF: the bits of RFLAGS that arithmetic writes (SDM vol. 1, 3.4.3.1).
    pub const STATUS_FLAGS: u64 = Self::CF | 0x0004 | 0x0010 | 0x0040 | 0x0080 | 0x0800;

    /// The carry flag, in which Dell's SMM handlers (and others) report failure.
    pub const CF: u64 = 0x0001;

    /// Names of the sixteen words, in memory order.
    pub const NAMES: &[&str] = &[
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rflags",
    ];

    /// The sixteen words in memory order, as named by [`Self::NAMES`].
    pub const fn to_words(self) -> [u64; 16] {
        [
            self.rax,
            self.rbx,
            self.rcx,
            self.rdx,
            self.rsi,
            self.rdi,
            self.rbp,
            self.r8,
            self.r9,
            self.r10,
            self.r11,
            self.r12,
            self.r13,
            self.r14,
            self.r15,
            self.rflags,
        ]
    }

    /// The inverse of [`Self::to_words`].
    pub const fn from_words(w: [u64; 16]) -> Self {
        Self {
            rax: w[0],
            rbx: w[1],
            rcx: w[2],
            rdx: w[3],
            rsi: w[4],
            rdi: w[5],
            rbp: w[6],
            r8: w[7],
            r9: w[8],
            r10: w[9],
            r11: w[10],
            r12: w[11],
            r13: w[12],
            r14: w[13],
            r15: w[14],
            rflags: w[15],
        }
    }

    /// The words that differ: the name, the value here, the value in `other`.
    ///
    /// ```
    /// # use ioemul::Gprs;
    /// let before = Gprs { rbx: 7, ..Gprs::default() };
    /// let after = Gprs { rbx: 8, ..before };
    /// assert_eq!(before.differences(&after).collect::<Vec<_>>(), [("rbx", 7, 8)]);
    /// ```
    pub fn differences(&self, other: &Self) -> impl Iterator<Item = (&'static str, u64, u64)> + use<> {
        let words = self.to_words().into_iter().zip(other.to_words());
        let named = Self::NAMES.iter().copied().zip(words).map(|(name, (here, there))| (name, here, there));
        named.filter(|&(_, here, there)| here != there)
    }

    /// What an access changed: the register's name, its value before, its value now.
    ///
    /// ```
    /// use ioemul::Gprs;
    /// let before: Gprs = "rax=0x564d5868 rcx=10 rdx=0x5658".parse()?;
    /// let mut gprs = before;
    /// (gprs.rax, gprs.rcx) = (6, 2); // as an access might
    /// for (name, was, is) in gprs.changed(&before) {
    ///     println!("{name}: {was:#x} → {is:#x}");
    /// }
    /// assert!(gprs.changed(&before).eq([("rax", 0x564d_5868, 6), ("rcx", 10, 2)]));
    /// # Ok::<(), ioemul::ParseGprsError>(())
    /// ```
    pub fn changed(&self, before: &Self) -> impl Iterator<Item = (&'static str, u64, u64)> + use<> {
        before.differences(self)
    }
}

impl fmt::Debug for Gprs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Gprs");
        for (name, word) in Self::NAMES.iter().zip(self.to_words()) {
            s.field(name, &format_args!("{word:#x}"));
        }
        s.finish()
    }
}

impl fmt::Display for Gprs {
    /// Four lines of four registers, sixteen hexadecimal digits each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, word)) in Self::NAMES.iter().zip(self.to_words()).enumerate() {
            let separator = match i {
                0 => "",
                _ if i % 4 == 0 => "\n",
                _ => "  ",
            };
            write!(f, "{separator}{name:>6}={word:016x}")?;
        }
        Ok(())
    }
}
