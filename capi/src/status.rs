//! What a call says: 0, or why it did nothing.
#![allow(unsafe_code)] // a name that the linker sees

use core::ffi::{CStr, c_char, c_int};
use core::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ioemul_core::{DecodeError, EmitError};

macro_rules! statuses {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        /// Why a call did nothing. The numbers are those of `enum ioemul_error`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        pub(crate) enum Status { $($name = $value),* }

        impl Status {
            #[cfg(test)]
            pub const ALL: &[Status] = &[$(Status::$name),*];

            fn text(code: c_int) -> &'static CStr {
                match code {
                    0 => c"success",
                    $($value => $text,)*
                    _ => c"no error of ioemul's",
                }
            }
        }
    };
}

statuses! {
    Null = 1, c"a pointer is NULL";
    Misaligned = 2, c"a pointer is not aligned as its type asks for";
    Size = 3, c"a structure does not begin with a size that this library knows: set it to sizeof the structure, and \
        what a newer header added to 0";
    Value = 4, c"a number is not one of those that its enumeration has";
    NotEmitted = 5, c"nothing was emitted for this structure: ioemul_table_emit or ioemul_helpers_emit fills it";
    Truncated = 6, c"the instruction is cut off: fetch more of it and try again";
    TooLong = 7, c"the instruction is longer than 15 bytes";
    Lock = 8, c"a LOCK prefix (f0) is not allowed on port I/O";
    NotPortIo = 9, c"the instruction is not IN, OUT, INS or OUTS";
    TooSmall = 10, c"the memory for the result is too short";
    OutOfRange = 11, c"a helper or the return thunk is more than 2 GiB away from the code that branches to it";
    Address = 12, c"the code, or the return thunk, would not lie in one piece of canonical address space";
    RegisterFile = 13, c"two registers of the register file overlap: each needs 8 bytes of its own";
    TooManyQuirks = 14, c"more quirks than IOEMUL_MAX_QUIRKS: leave out those of other machines";
    Quirk = 15, c"a quirk cannot be emitted with these options";
    NoStub = 16, c"this form has no stub by this name: INS and OUTS are asked for by ioemul_table_string_entry, and only \
        those with addresses of 32 or 64 bits and without a segment override have one";
    NotFound = 17, c"there is none of that name, or at that address";
    Internal = 18, c"a defect in ioemul: please report it";
}

impl From<DecodeError> for Status {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Truncated { .. } => Self::Truncated,
            DecodeError::TooLong => Self::TooLong,
            DecodeError::Lock => Self::Lock,
            DecodeError::NotPortIo { .. } => Self::NotPortIo,
            _ => Self::Internal,
        }
    }
}

impl From<EmitError> for Status {
    fn from(error: EmitError) -> Self {
        match error {
            EmitError::SlotTooSmall { .. } => Self::TooSmall,
            EmitError::HelperOutOfRange { .. } => Self::OutOfRange,
            EmitError::AddressOverflow { .. } => Self::Address,
            EmitError::RegisterFile => Self::RegisterFile,
            EmitError::TooManyQuirks { .. } => Self::TooManyQuirks,
            _ => Self::Quirk,
        }
    }
}

/// The border: what `body` says as a number, and no panic beyond here.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Status>) -> c_int {
    // Nothing that a panic leaves half-done is looked at afterwards: results are written last.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(status)) => status as c_int,
        Err(payload) => {
            forget(payload); // whose destructor might panic
            Status::Internal as c_int
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn ioemul_error_text(code: c_int) -> *const c_char {
    Status::text(code).as_ptr()
}
