//! Register files of the host's own: where each register lies in its structure.

use core::mem::offset_of;
use core::str::FromStr;

use super::Excerpt;
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

/// A register file as text: for each register its name and its offset in bytes, as in `rax 80, rbx=40`. Blanks, line breaks,
/// commas, semicolons and equals signs separate, and `#` starts a comment. All fifteen registers are named, and `rflags` if there is a
/// word for it. The offsets are what a host's build prints of its own structure.
///
/// ```
/// use ioemul::RegisterFile;
/// let text = "# struct cpu_user_regs
///     r15 0, r14 8, r13 16, r12 24, rbp 32, rbx 40, r11 48, r10 56, r9 64, r8 72,
///     rax 80, rcx 88, rdx 96, rsi 104, rdi 112, rflags 144";
/// assert_eq!(text.parse(), Ok(RegisterFile::PT_REGS));
/// ```
impl FromStr for RegisterFile {
    type Err = ParseRegisterFileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let separates = |letter: char| letter.is_whitespace() || matches!(letter, ',' | ';' | '=');
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let mut words = lines.flat_map(|line| line.split(separates)).filter(|word| !word.is_empty());
        let mut offsets = [None; 16];
        while let Some(name) = words.next() {
            let excerpt = Excerpt::of(name);
            let place = Gprs::NAMES.iter().zip(&mut offsets).find(|(register, _)| **register == name);
            let (_, place) = place.ok_or(ParseRegisterFileError::Name { name: excerpt })?;
            let word = words.next().unwrap_or_default();
            let offset: i16 = word
                .parse()
                .map_err(|_| ParseRegisterFileError::Offset { name: excerpt, offset: Excerpt::of(word) })?;
            if place.replace(offset).is_some() {
                return Err(ParseRegisterFileError::Twice { name: excerpt });
            }
        }
        let mut file = Self { offsets: [0; 15], rflags: offsets[15] };
        for ((name, offset), place) in Gprs::NAMES.iter().zip(offsets).zip(&mut file.offsets) {
            *place = offset.ok_or(ParseRegisterFileError::Missing { name })?;
        }
        if file.is_valid() { Ok(file) } else { Err(ParseRegisterFileError::Overlap) }
    }
}

/// Why a text is no register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRegisterFileError {
    /// A name that is none of a register.
    #[error("`{name}` is no register: there are rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 to r15, and rflags")]
    Name {
        /// The name.
        name: Excerpt,
    },
    /// What follows a name is no offset.
    #[error("`{name}` has the offset `{offset}`: an offset is a decimal number from -32768 to 32767")]
    Offset {
        /// The register.
        name: Excerpt,
        /// What follows.
        offset: Excerpt,
    },
    /// A register that is named twice.
    #[error("`{name}` has two offsets")]
    Twice {
        /// The register.
        name: Excerpt,
    },
    /// A register that is not named.
    #[error("`{name}` has no offset: stubs load and store all fifteen registers")]
    Missing {
        /// The register.
        name: &'static str,
    },
    /// Two words overlap.
    #[error("two registers overlap: each needs 8 bytes of its own")]
    Overlap,
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
    fn text_that_is_a_register_file_and_text_that_is_none() {
        let text = "rax=0 rbx=-8;rcx=16,rdx=24\trsi=32\nrdi=40 # rbp=1\nrbp=48 r8=56 r9=64 r10=72 r11=80 r12=88 r13=96 r14=104 r15=112";
        let file: RegisterFile = text.parse().unwrap();
        assert_eq!((file.offsets[1], file.offsets[14], file.rflags), (-8, 112, None));
        assert_eq!(std::format!("{text} rflags 120").parse::<RegisterFile>().unwrap().rflags, Some(120));
        let excerpt = Excerpt::of;
        for (text, error) in [
            ("rsp=0", ParseRegisterFileError::Name { name: excerpt("rsp") }),
            ("rax=0x10", ParseRegisterFileError::Offset { name: excerpt("rax"), offset: excerpt("0x10") }),
            ("rax=32768", ParseRegisterFileError::Offset { name: excerpt("rax"), offset: excerpt("32768") }),
            ("rax", ParseRegisterFileError::Offset { name: excerpt("rax"), offset: excerpt("") }),
            ("rax 1 rax 2", ParseRegisterFileError::Twice { name: excerpt("rax") }),
            ("rax 1", ParseRegisterFileError::Missing { name: "rbx" }),
            (&text.replace("rcx=16", "rcx=17"), ParseRegisterFileError::Overlap),
        ] {
            assert_eq!(text.parse::<RegisterFile>(), Err(error), "{text}");
        }
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
