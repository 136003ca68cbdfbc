//! Register files of the host's own: where each register lies in its structure.

use core::mem::offset_of;

use crate::Gprs;

/// Where a structure of the host's keeps each register: byte offsets from the pointer that a stub is called with.
///
/// Each register, and RFLAGS, is a 64-bit word; the words may lie in any order, and no two of them may overlap
/// ([`EmitError::RegisterFile`](crate::EmitError::RegisterFile)). An alignment of 8 is enough for the structure. Where
/// there is no word for RFLAGS, stubs neither load nor store the status flags.
///
/// ```
/// use ioemul::{EmitOptions, Helpers, RegisterFile};
/// // A host that keeps its guest's registers in the order of their numbers in instruction encodings, RSP's place free.
/// let file = RegisterFile::new([0, 24, 8, 16, 48, 56, 40, 64, 72, 80, 88, 96, 104, 112, 120], Some(32));
/// Helpers::emit(&mut [0; Helpers::MAX_LEN], 0x10_0000, &EmitOptions::new().registers(file))?;
/// # Ok::<(), ioemul::EmitError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RegisterFile {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 … R15: the order of [`Gprs::NAMES`].
    offsets: [i16; 15],
    /// RFLAGS, of which the status flags are loaded and stored.
    rflags: Option<i16>,
}

/// The registers' numbers in instruction encodings (SDM vol. 2, table 2-2), in the order of [`Gprs::NAMES`].
const NUMBERS: [u8; 15] = [0, 3, 1, 2, 6, 7, 5, 8, 9, 10, 11, 12, 13, 14, 15];

impl RegisterFile {
    /// [`Gprs`].
    pub const GPRS: Self = Self::new(
        [
            offset_of!(Gprs, rax) as i16,
            offset_of!(Gprs, rbx) as i16,
            offset_of!(Gprs, rcx) as i16,
            offset_of!(Gprs, rdx) as i16,
            offset_of!(Gprs, rsi) as i16,
            offset_of!(Gprs, rdi) as i16,
            offset_of!(Gprs, rbp) as i16,
            offset_of!(Gprs, r8) as i16,
            offset_of!(Gprs, r9) as i16,
            offset_of!(Gprs, r10) as i16,
            offset_of!(Gprs, r11) as i16,
            offset_of!(Gprs, r12) as i16,
            offset_of!(Gprs, r13) as i16,
            offset_of!(Gprs, r14) as i16,
            offset_of!(Gprs, r15) as i16,
        ],
        Some(offset_of!(Gprs, rflags) as i16),
    );

    /// KVM's `struct kvm_regs` (Linux, arch/x86/include/uapi/asm/kvm.h): RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 …
    /// R15, RIP, RFLAGS.
    pub const KVM_REGS: Self = Self::new([0, 8, 16, 24, 32, 40, 56, 64, 72, 80, 88, 96, 104, 112, 120], Some(136));

    /// Linux's `struct pt_regs` (arch/x86/include/uapi/asm/ptrace.h), and Xen's `struct cpu_user_regs`
    /// (xen/include/public/arch-x86/xen-x86_64.h), which has the same offsets: R15, R14, R13, R12, RBP, RBX, R11, R10,
    /// R9, R8, RAX, RCX, RDX, RSI, RDI, and RFLAGS at 144.
    #[doc(alias = "cpu_user_regs")]
    pub const PT_REGS: Self = Self::new([80, 40, 88, 96, 104, 112, 32, 72, 64, 56, 48, 24, 16, 8, 0], Some(144));

    /// A register file with these offsets, in the order of [`Gprs::NAMES`], and that of RFLAGS if there is one.
    ///
    /// Whether it is one is looked at when code is emitted for it.
    pub const fn new(offsets: [i16; 15], rflags: Option<i16>) -> Self {
        Self { offsets, rflags }
    }

    /// The offset of each register, in the order of [`Gprs::NAMES`].
    pub const fn offsets(&self) -> &[i16] {
        &self.offsets
    }

    /// The offset of RFLAGS.
    pub const fn rflags(&self) -> Option<i16> {
        self.rflags
    }

    pub(crate) const fn rax(&self) -> i16 {
        self.offsets[0]
    }

    pub(crate) const fn rcx(&self) -> i16 {
        self.offsets[2]
    }

    pub(crate) const fn rdx(&self) -> i16 {
        self.offsets[3]
    }

    pub(crate) const fn rsi(&self) -> i16 {
        self.offsets[4]
    }

    pub(crate) const fn rdi(&self) -> i16 {
        self.offsets[5]
    }

    /// The registers by ascending address: number in encodings, and offset.
    pub(crate) fn ascending(&self) -> impl Iterator<Item = (u8, i16)> + '_ {
        let mut latest = None;
        core::iter::from_fn(move || {
            let registers = NUMBERS.iter().zip(&self.offsets);
            let left = registers.filter(|register| latest.is_none_or(|latest| *register.1 > latest));
            let (number, offset) = left.min_by_key(|register| *register.1)?;
            latest = Some(*offset);
            Some((*number, *offset))
        })
    }

    /// Whether no two words overlap.
    pub(crate) fn is_valid(&self) -> bool {
        let words = || self.offsets.into_iter().chain(self.rflags);
        words().enumerate().all(|(index, word)| {
            let others = words().enumerate().filter(|other| other.0 != index);
            others.into_iter().all(|(_, other)| i32::from(word).abs_diff(other.into()) >= 8)
        })
    }
}

impl Default for RegisterFile {
    /// [`Self::GPRS`].
    fn default() -> Self {
        Self::GPRS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_address() {
        let numbers = |file: RegisterFile| file.ascending().map(|(number, _)| number).collect::<std::vec::Vec<_>>();
        assert_eq!(numbers(RegisterFile::GPRS), NUMBERS);
        assert_eq!(numbers(RegisterFile::PT_REGS), [15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7]);
    }

    #[test]
    fn words_that_overlap_are_noticed() {
        for file in [RegisterFile::GPRS, RegisterFile::KVM_REGS, RegisterFile::PT_REGS] {
            assert!(file.is_valid());
            let mut offsets = file.offsets;
            offsets[14] = offsets[3] + 7;
            assert!(!RegisterFile::new(offsets, file.rflags).is_valid());
            assert!(!RegisterFile::new(file.offsets, Some(file.offsets[0] - 7)).is_valid());
        }
        let far = core::array::from_fn(|index| (i32::from(i16::MIN) + 4096 * index as i32) as i16);
        assert!(RegisterFile::new(far, Some(i16::MAX)).is_valid());
        assert!(!RegisterFile::new(far, Some(i16::MIN)).is_valid());
    }
}
