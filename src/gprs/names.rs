//! Registers by name, and register files from their written form.

use core::fmt::{self, Write};
use core::str::FromStr;

use arrayvec::ArrayString;

use crate::Gprs;

/// Names of the 32-bit, 16-bit and 8-bit parts of the first seven registers, in the order of [`Gprs::NAMES`].
const PARTS: [[&str; 3]; 7] = [
    ["eax", "ax", "al"],
    ["ebx", "bx", "bl"],
    ["ecx", "cx", "cl"],
    ["edx", "dx", "dl"],
    ["esi", "si", "sil"],
    ["edi", "di", "dil"],
    ["ebp", "bp", "bpl"],
];

/// The bits that can be had of a register by the second byte's name.
const SECOND_BYTES: [&str; 4] = ["ah", "bh", "ch", "dh"];

/// Which word of a register file, and which bits of it.
struct Part {
    word: usize,
    shift: u32,
    bits: u32,
}

impl Part {
    fn of(name: &str) -> Option<Self> {
        let part = |word, shift, bits| Some(Self { word, shift, bits });
        if let Some(word) = Gprs::NAMES.iter().position(|known| *known == name) {
            return part(word, 0, 64);
        }
        if let Some(word) = SECOND_BYTES.iter().position(|known| *known == name) {
            return part(word, 8, 8);
        }
        let lower = |names: &[&str]| names.iter().position(|known| *known == name);
        if let Some((word, size)) = PARTS.iter().enumerate().find_map(|(word, names)| Some((word, lower(names)?))) {
            return part(word, 0, [32, 16, 8][size]);
        }
        // r8d … r15b: the register's name and a letter.
        let (register, bits) = [('d', 32), ('w', 16), ('b', 8)]
            .into_iter()
            .find_map(|(letter, bits)| Some((name.strip_suffix(letter)?, bits)))?;
        let word = Gprs::NAMES.iter().position(|known| *known == register).filter(|word| (7..15).contains(word))?;
        part(word, 0, bits)
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }
}

impl Gprs {
    /// A register, or a part of one, by its name: `rax`, `eax`, `ax`, `al`, `ah`, `r8d`, `rflags`. `None`: there is
    /// none of that name.
    ///
    /// ```
    /// use ioemul::Gprs;
    /// let gprs = Gprs { rax: 0x1122_3344_5566_7788, ..Gprs::default() };
    /// assert_eq!((gprs.get("eax"), gprs.get("ah"), gprs.get("rip")), (Some(0x5566_7788), Some(0x77), None));
    /// ```
    pub fn get(&self, name: &str) -> Option<u64> {
        let part = Part::of(name)?;
        Some(self.to_words()[part.word] >> part.shift & part.mask())
    }

    /// Sets a register, or a part of one; the rest of it stays as it is. (An instruction that writes a 32-bit register
    /// clears the upper half; this does not.)
    ///
    /// ```
    /// use ioemul::Gprs;
    /// let mut gprs = Gprs { rax: 0x1122_3344_5566_7788, ..Gprs::default() };
    /// gprs.set("ax", 0x99)?;
    /// assert_eq!(gprs.rax, 0x1122_3344_5566_0099);
    /// assert!(gprs.set("al", 0x100).is_err());
    /// # Ok::<(), ioemul::ParseGprsError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ParseGprsError`] when there is no such register, or the value does not fit; the registers are then as they
    /// were.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), ParseGprsError> {
        let part = Part::of(name).ok_or_else(|| ParseGprsError::Name { name: Excerpt::of(name) })?;
        if value > part.mask() {
            return Err(ParseGprsError::Range { name: Excerpt::of(name), bits: part.bits });
        }
        let mut words = self.to_words();
        let word = &mut words[part.word];
        *word = *word & !(part.mask() << part.shift) | value << part.shift;
        *self = Self::from_words(words);
        Ok(())
    }
}

impl FromStr for Gprs {
    type Err = ParseGprsError;

    /// Parses `rax=0x5 rbx=7`: names and values, hexadecimal with `0x`, decimal without; what is not named is 0. Of a
    /// register that is named twice, the later part counts.
    ///
    /// ```
    /// use ioemul::Gprs;
    /// let gprs: Gprs = "rax=0x5 rbx=7, ch=0x10".parse()?;
    /// assert_eq!(gprs, Gprs { rax: 5, rbx: 7, rcx: 0x1000, ..Gprs::default() });
    /// let error = "rax=5 rbx=0xy".parse::<Gprs>().unwrap_err();
    /// assert!(error.to_string().starts_with("`rbx=0xy`: "));
    /// # Ok::<(), ioemul::ParseGprsError>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, ParseGprsError> {
        let mut gprs = Self::default();
        let separator = |letter: char| letter == ',' || letter.is_ascii_whitespace();
        for word in text.split(separator).filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').ok_or_else(|| ParseGprsError::Form { word: Excerpt::of(word) })?;
            let wrong = || ParseGprsError::Value { word: Excerpt::of(word) };
            let value = match value.strip_prefix("0x") {
                Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
                    u64::from_str_radix(digits, 16)
                }
                None if value.bytes().all(|digit| digit.is_ascii_digit()) => value.parse(),
                _ => return Err(wrong()),
            };
            gprs.set(name, value.map_err(|_| wrong())?)?;
        }
        Ok(gprs)
    }
}

/// Why a text, or a name and a value, are not registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseGprsError {
    /// Something that is not `name=value`.
    #[error("`{word}`: registers are written `name=value`, as in `rax=0x5 rbx=7`")]
    Form {
        /// What is there instead.
        word: Excerpt,
    },
    /// A register that there is not.
    #[error(
        "`{name}`: no such register: there are rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 to r15, rflags, and their parts as eax, ax, al, ah, r8d"
    )]
    Name {
        /// What it is called.
        name: Excerpt,
    },
    /// A value that is no number of 64 bits.
    #[error("`{word}`: a value is a number of at most 64 bits, decimal or, with 0x, hexadecimal")]
    Value {
        /// The register and the value.
        word: Excerpt,
    },
    /// A value that is too large for the part of the register.
    #[error("`{name}`: the value does not fit the {bits} bits of the register")]
    Range {
        /// The register.
        name: Excerpt,
        /// How many bits it has.
        bits: u32,
    },
}

/// What an error repeats of the text that it is about: all of it, or the beginning, so that no memory is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Excerpt {
    text: ArrayString<32>,
    is_cut: bool,
}

impl Excerpt {
    pub(super) fn of(text: &str) -> Self {
        let mut excerpt = Self { text: ArrayString::new(), is_cut: false };
        excerpt.is_cut = text.chars().any(|letter| excerpt.text.try_push(letter).is_err());
        excerpt
    }

    /// The text, or its first 32 bytes.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Excerpt {
    /// As it is written in a program: control characters are escaped. What was cut off is an ellipsis.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.text.escape_debug())?;
        if self.is_cut { f.write_char('…') } else { Ok(()) }
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_every_register() {
        let numbered = Gprs::from_words(core::array::from_fn(|word| 0x1122_3344_5566_7700 | word as u64));
        for (word, name) in (0..).zip(Gprs::NAMES) {
            assert_eq!(numbered.get(name), Some(0x1122_3344_5566_7700 | word), "{name}");
        }
        for (name, expected) in [
            ("eax", 0x5566_7700),
            ("bx", 0x7701),
            ("cl", 0x02),
            ("dh", 0x77),
            ("esi", 0x5566_7704),
            ("dil", 0x05),
            ("bpl", 0x06),
            ("r8d", 0x5566_7707),
            ("r15w", 0x770e),
            ("r9b", 0x08),
        ] {
            assert_eq!(numbered.get(name), Some(expected), "{name}");
            let mut gprs = numbered;
            gprs.set(name, 0).unwrap();
            assert_eq!(gprs.get(name), Some(0), "{name}");
            gprs.set(name, expected).unwrap();
            assert_eq!(gprs, numbered, "{name}: the rest stays");
        }
        for name in ["", "rsp", "rip", "RAX", "sih", "raxd", "rflagsd", "r16", "r8l"] {
            assert_eq!(numbered.get(name), None, "{name}");
        }
    }

    #[test]
    fn an_error_repeats_what_is_wrong() {
        let excerpt = Excerpt::of;
        for (text, error) in [
            ("rbx=7 rax", ParseGprsError::Form { word: excerpt("rax") }),
            ("rbx=7 rsp=1", ParseGprsError::Name { name: excerpt("rsp") }),
            ("=1", ParseGprsError::Name { name: excerpt("") }),
            ("rax=", ParseGprsError::Value { word: excerpt("rax=") }),
            ("rax=0x", ParseGprsError::Value { word: excerpt("rax=0x") }),
            ("rax=+1,rbx=2", ParseGprsError::Value { word: excerpt("rax=+1") }),
            ("rax=ff", ParseGprsError::Value { word: excerpt("rax=ff") }),
            ("rax=0x10000000000000000", ParseGprsError::Value { word: excerpt("rax=0x10000000000000000") }),
            ("rax=1 al=0x100", ParseGprsError::Range { name: excerpt("al"), bits: 8 }),
        ] {
            assert_eq!(text.parse::<Gprs>(), Err(error), "{text}");
        }
        assert_eq!(Gprs::default().set("eflags", 0), Err(ParseGprsError::Name { name: excerpt("eflags") }));
    }

    #[test]
    fn text_that_is_accepted() {
        assert_eq!(" ".parse(), Ok(Gprs::default()));
        assert_eq!(
            "rflags=0x8d5 rax=18446744073709551615".parse(),
            Ok(Gprs { rflags: 0x8d5, rax: u64::MAX, ..Gprs::default() })
        );
    }

    #[test]
    #[cfg(feature = "std")]
    fn an_excerpt_is_short_and_harmless() {
        let long = "é".repeat(40);
        let excerpt = Excerpt::of(&long);
        assert_eq!(excerpt.as_str(), "é".repeat(16));
        assert_eq!(excerpt.to_string(), "é".repeat(16) + "…");
        assert_eq!(Excerpt::of(&long[..32]).to_string(), "é".repeat(16));
        assert_eq!(Excerpt::of("a\x1b[2J\"").to_string(), r#"a\u{1b}[2J\""#);
        // A letter that does not fit ends it, though a smaller one behind it would.
        assert_eq!(Excerpt::of(&("x".repeat(31) + "éy")).as_str(), "x".repeat(31));
    }
}
