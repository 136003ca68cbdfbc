//! The table as assembler source and C header: for hypervisors and kernels in C, which assemble it when they are built.
//!
//! ```text
//!   EmitOptions ──emit──▶ bytes of a CodeTable ──decode, name──▶ TABLE.S      (the code: position-independent, text only)
//!        └──────────────────────────────────────quirks, offsets─▶ TABLE.h      (index, quirks, fixup: no call, no library)
//! ```
//!
//! No Rust is in the host then, no code is written while it runs, and the only undefined symbol is the return thunk, if one
//! is asked for.

use core::fmt;

use crate::{CodeTable, EmitError, EmitOptions, Gprs};

mod header;
mod parts;
mod source;

/// A table to be assembled, and its header.
///
/// ```
/// use ioemul::gas::HostTable;
/// use ioemul::{EmitOptions, RegisterFile};
/// let options = EmitOptions::new().registers(RegisterFile::PT_REGS).endbr64(true).int3(true);
/// let table = HostTable::new(&options)?.section(".text.ioemul")?.return_thunk("__x86_return_thunk")?;
/// std::fs::write(std::env::temp_dir().join("ioemul_table.S"), table.source().to_string())?;
/// std::fs::write(std::env::temp_dir().join("ioemul_table.h"), table.header().to_string())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct HostTable<'q> {
    options: EmitOptions<'q>,
    prefix: String,
    section: String,
    return_thunk: Option<String>,
    /// Whether INS and OUTS are among the stubs.
    strings: bool,
}

/// Text of others within a comment.
fn in_comment(text: &str) -> String {
    text.replace("*/", "* /")
}

/// Where the return thunk is while the table is emitted: nowhere near it, so that a jump to it cannot be taken for another.
const THUNK: u64 = 0x4000_0000;

/// Why a table cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostTableError {
    /// The table cannot be emitted.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// A name that C or the assembler would read as something else.
    #[error("{name:?} is no {what}: one or more letters, digits and underscores{}", if *what == "section" { ", dots and hyphens" } else { ", and no digit first" })]
    Name {
        /// Prefix, section or symbol.
        what: &'static str,
        /// The name.
        name: String,
    },
}

fn named(what: &'static str, name: String) -> Result<String, HostTableError> {
    let is_section = what == "section";
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || is_section && matches!(c, '.' | '-');
    let starts = name.starts_with(|c: char| is_section || !c.is_ascii_digit());
    if starts && name.chars().all(fits) { Ok(name) } else { Err(HostTableError::Name { what, name }) }
}

impl<'q> HostTable<'q> {
    /// A table with these options. Their return thunk, an address, is not for a table whose address nobody knows yet: name
    /// its symbol instead ([`Self::return_thunk`]).
    ///
    /// # Errors
    ///
    /// [`HostTableError::Emit`], as [`CodeTable::emit`].
    pub fn new(options: &EmitOptions<'q>) -> Result<Self, HostTableError> {
        let table = Self {
            options: options.return_thunk(None),
            prefix: "ioemul".into(),
            section: ".text".into(),
            return_thunk: None,
            strings: true,
        };
        table.emit()?;
        Ok(table)
    }

    /// What all global names start with; `ioemul` by default.
    ///
    /// # Errors
    ///
    /// [`HostTableError::Name`].
    pub fn prefix(mut self, prefix: impl Into<String>) -> Result<Self, HostTableError> {
        self.prefix = named("prefix", prefix.into())?;
        Ok(self)
    }

    /// The section that the code goes to; `.text` by default.
    ///
    /// # Errors
    ///
    /// [`HostTableError::Name`].
    pub fn section(mut self, section: impl Into<String>) -> Result<Self, HostTableError> {
        self.section = named("section", section.into())?;
        Ok(self)
    }

    /// The symbol of the return thunk: every RET becomes a JMP to it.
    ///
    /// # Errors
    ///
    /// [`HostTableError::Name`].
    pub fn return_thunk(mut self, symbol: impl Into<String>) -> Result<Self, HostTableError> {
        self.return_thunk = Some(named("symbol", symbol.into())?);
        Ok(self)
    }

    /// Whether there are stubs of INS and OUTS; there are by default. A host that asks devices for one element at a time, or has
    /// none of them done by the hardware, leaves them out.
    pub fn strings(mut self, strings: bool) -> Self {
        self.strings = strings;
        self
    }

    /// The assembler source, for GNU as or clang, in AT&T syntax.
    pub fn source(&self) -> impl fmt::Display + '_ {
        source::Source(self)
    }

    /// The C header.
    pub fn header(&self) -> impl fmt::Display + '_ {
        header::Header(self)
    }

    /// What it was made for, line by line.
    fn description(&self, indent: &str) -> String {
        let EmitOptions { layout, ring, endbr64, int3, scrub, registers, .. } = &self.options;
        let words = Gprs::NAMES.iter().zip(registers.offsets().iter().copied().chain(registers.rflags()));
        let words: Vec<_> = words.map(|(name, offset)| format!("{name} {offset}")).collect();
        let quirks: Vec<_> = self.options.quirks.iter().map(crate::Quirk::name).collect();
        format!(
            "{indent}layout {layout:?}, ring {ring:?}, ENDBR64 {endbr64}, INT3 {int3}, scrubbing {scrub}, return thunk {}\n\
             {indent}registers at {}{}\n\
             {indent}quirks: {}\n",
            self.return_thunk.as_deref().unwrap_or("none"),
            words.join(", "),
            if registers.rflags().is_none() { ", no flags" } else { "" },
            if quirks.is_empty() { "none".to_owned() } else { quirks.join("; ") },
        )
    }

    /// The same table, as it is at address 0.
    fn emit(&self) -> Result<(CodeTable, Vec<u8>), EmitError> {
        let options = self.options.return_thunk(self.return_thunk.as_ref().map(|_| THUNK));
        let mut code = vec![0; CodeTable::size(&options)];
        let table = CodeTable::emit(&mut code, 0, &options)?;
        Ok((table, code))
    }
}
