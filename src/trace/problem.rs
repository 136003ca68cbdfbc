//! What can be wrong with a trace file.

use std::io;

use super::file::FORMAT_VERSION;
use crate::{IoInsn, ParseInsnError};

/// A line of a trace file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("trace, line {line}: {problem}")]
#[non_exhaustive]
pub struct TraceError {
    /// Number of the line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: TraceProblem,
}

/// What is wrong with a line of a trace file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceProblem {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error("not a trace: a trace begins with {{\"ioemul-trace\":{FORMAT_VERSION}}}")]
    NotATrace,
    /// A format of another version.
    #[error("the format has version {found}, and this program reads versions 1 to {FORMAT_VERSION}")]
    Version {
        /// The version of the file.
        found: u32,
    },
    /// Not the JSON that the line should be.
    #[error("column {column}: {message}")]
    Syntax {
        /// The byte, counted from 1.
        column: usize,
        /// What is wrong there; of a long message both ends.
        message: String,
    },
    /// The instruction is none.
    #[error("`{text}`: {source}")]
    Insn {
        /// The text in its place; of a long one the beginning, and an ellipsis.
        text: String,
        /// Why it is none.
        source: ParseInsnError,
    },
    /// `data` does not go with the instruction.
    #[error("`{insn}` asks for {requested} bytes, and `data` holds {found}")]
    Data {
        /// The instruction.
        insn: IoInsn,
        /// Bytes that it asks for.
        requested: u64,
        /// Bytes that are there.
        found: usize,
    },
    /// `data` is not hexadecimal.
    #[error("`data` is not a list of bytes, two hexadecimal digits each")]
    NotBytes,
    /// An instruction ends in one error at most.
    #[error("a record has one of `fault`, `refused` and `\"returned\":false`, and this one has several")]
    TwoErrors,
    /// It is longer than may be read.
    #[error("the line is longer than {limit} bytes: `TraceLimits::line` is the longest that is read")]
    LongLine {
        /// The longest line that is read.
        limit: usize,
    },
    /// There are more records than may be read.
    #[error("the file has more than {limit} records: `TraceLimits::records` is how many are read")]
    TooManyRecords {
        /// How many are read.
        limit: usize,
    },
    /// The file ends before its last line does.
    #[error("the file is cut off: a trace ends with a line such as {{\"records\":7}}")]
    CutOff,
    /// The file ends with an access that was about to be made: its record is not there.
    #[error(
        "the file is cut off: `{insn}` on port {port:#06x} was about to be executed, and what came of it is not there: \
         `Trace::read_partial` reads what is"
    )]
    DidNotReturn {
        /// The instruction.
        insn: IoInsn,
        /// The first port that it touches.
        port: u16,
    },
    /// The line before announced an access, and this line is not its record.
    #[error(
        "the line before says that `{insn}` was about to be executed on port {port:#06x}, and this is not its record"
    )]
    Mismatch {
        /// The instruction that was announced.
        insn: IoInsn,
        /// The first port that it touches.
        port: u16,
    },
    /// Records are missing or too many.
    #[error("the last line states {stated} records, and there are {found}")]
    Count {
        /// The number in the last line.
        stated: usize,
        /// Records before it.
        found: usize,
    },
    /// Something follows the last line.
    #[error("there is more after the line that ends the trace")]
    AfterTheEnd,
}
