//! Stubs in memory that the caller owns: a hypervisor's per-CPU slot, or its table of all forms.
//!
//! Nothing here allocates, maps or executes: bytes are written to a slice, for the address `va` at which they will
//! execute (which may be another mapping than the one written through). Everything is emitted twice, first without
//! memory, so that the size, every displacement and the quirk are checked before the first byte is written: an error
//! leaves the memory as it was. (The plain stub, which a hypervisor may write for every access, is emitted once with the
//! helpers, and checked and copied from then on.)
//!
//! The memory is borrowed while it is written, not while its code runs: make the slice from a raw pointer for each call, and
//! keep none across a call of the stub.
//!
//! ```
//! use ioemul::{Helpers, IoInsn, StubLayout, Width, emit_stub};
//! let (mut helpers, mut slot) = ([0; Helpers::MAX_LEN], [0; StubLayout::CallRet.stub_len()]);
//! let helpers = Helpers::emit(&mut helpers, 0xffff_8000_0010_0000, StubLayout::CallRet)?;
//! let len = emit_stub(&mut slot, 0xffff_8000_0020_0000, IoInsn::out_dx(Width::Byte), &helpers)?;
//! assert_eq!((len, &slot[16..19]), (36, &[0x90, 0xee, 0x90][..]));
//! # Ok::<(), ioemul::EmitError>(())
//! ```

use crate::helpers::emit_helpers;
use crate::stub::{Backend, Fixup, Helper, Returns, Ring, StubLayout, StubShape, StubStyle, emit_stub as emit};
use crate::{IoInsn, Quirk};

mod sink;
mod template;

pub(crate) use sink::{SlotSink, Targets, with_thunk};
use template::Template;

/// What a hardened host wants of the code, and the quirk to apply.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotOptions {
    /// Start each stub with ENDBR64, for indirect-branch tracking (CET-IBT).
    pub endbr64: bool,
    /// The executable address of a return thunk: every RET becomes a JMP to it.
    pub return_thunk: Option<u64>,
    /// INT3 after every final RET or JMP, against straight-line speculation.
    pub int3: bool,
    /// The quirk whose payload replaces the I/O instruction ([`emit_stub_with`]: always; [`CodeTable`]: where it
    /// [applies](Quirk::applies)).
    pub quirk: Option<Quirk>,
    /// The privilege level that the code will run at: decides between the variants of a quirk. Ring 0 by default.
    pub ring: Ring,
}

impl SlotOptions {
    pub(crate) fn style(&self, layout: StubLayout) -> StubStyle {
        StubStyle {
            layout,
            backend: Backend::Hardware,
            endbr64: self.endbr64,
            returns: Returns { thunk: self.return_thunk.is_some(), int3: self.int3 },
            ring: self.ring,
        }
    }
}

/// Why code could not be emitted. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The memory is too short.
    #[error("the code needs {needed} bytes and the slot has {available}")]
    SlotTooSmall {
        /// Length of the code in bytes.
        needed: usize,
        /// Length of the memory in bytes.
        available: usize,
    },
    /// A helper or return thunk is more than ±2 GiB away from the call to it.
    #[error(
        "the displacement {}{:#x} to a helper or thunk does not fit the signed 32 bits of a near branch",
        if *displacement < 0 { "-" } else { "" },
        displacement.unsigned_abs()
    )]
    HelperOutOfRange {
        /// Target minus the address behind the branch, in bytes.
        displacement: i64,
    },
    /// The code would end past the end of the address space.
    #[error("code of {len} bytes at {va:#x} runs past the end of the address space")]
    AddressOverflow {
        /// Where the code was to execute.
        va: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// A quirk's payload pushes and pops different amounts, or more than can be recorded.
    #[error("the payload of the quirk {quirk:?} does not balance its pushes and pops")]
    UnbalancedPayload {
        /// Name of the quirk.
        quirk: &'static str,
    },
    /// A quirk's payload uses a label that is not defined, or too many of them.
    #[error("the label {label:?} is undefined, too far away, or one too many")]
    Label {
        /// Name of the label.
        label: &'static str,
    },
}

/// The helpers of a layout, emitted by the caller, shared by any number of stubs.
#[derive(Clone, Debug)]
pub struct Helpers {
    layout: StubLayout,
    va: u64,
    len: usize,
    targets: Targets,
    /// Address of the epilogue that stubs without one of their own share.
    epilogue: Option<u64>,
    /// The stub that all forms of IN and OUT have in common.
    template: Option<Template>,
}

impl Helpers {
    /// As many bytes are enough for the helpers of any layout, hardened or not.
    pub const MAX_LEN: usize = 256;

    /// Emits the helpers of `layout` into `buf`, to be executed at `va`.
    ///
    /// # Errors
    ///
    /// [`EmitError::SlotTooSmall`] with the size that is needed.
    pub fn emit(buf: &mut [u8], va: u64, layout: StubLayout) -> Result<Self, EmitError> {
        Self::emit_with(buf, va, layout, &SlotOptions::default())
    }

    /// As [`Self::emit`], with the host's hardening. `endbr64`, `quirk` and `ring` make no difference: the helpers are
    /// never branched to indirectly, and no quirk is in them.
    ///
    /// # Errors
    ///
    /// [`EmitError::SlotTooSmall`], or [`EmitError::HelperOutOfRange`] for the return thunk.
    pub fn emit_with(buf: &mut [u8], va: u64, layout: StubLayout, options: &SlotOptions) -> Result<Self, EmitError> {
        let returns = options.style(layout).returns;
        let ((epilogue, targets), len) = emit_checked(buf, va, with_thunk(Targets::default(), options), |sink| {
            let epilogue = emit_helpers(sink, layout, returns).map(|at| va.wrapping_add(at as u64));
            Ok((epilogue, sink.helpers))
        })?;
        let template = Template::new(&options.style(layout), va, targets);
        Ok(Self { layout, va, len, targets, epilogue, template })
    }

    /// The layout that these helpers are for.
    pub fn layout(&self) -> StubLayout {
        self.layout
    }

    /// The address at which they execute.
    pub fn va(&self) -> u64 {
        self.va
    }

    /// Their length in bytes; 0 for [`StubLayout::Inline`].
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Name and address of each helper, for a symbol table.
    pub fn symbols(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let own = Helper::ALL.into_iter().filter(|helper| *helper != Helper::ReturnThunk);
        own.filter_map(|helper| Some((helper.name(), self.targets[helper as usize]?)))
    }
}

/// Emits the stub of `insn` into `slot`, to be executed at `va` as `extern "sysv64" fn(*mut Gprs)`. Returns its length:
/// 36 bytes for [`StubLayout::CallRet`], 13 for [`StubLayout::Compact`], 9 for [`StubLayout::Rop`].
///
/// # Errors
///
/// See [`EmitError`]; the slot is then as it was.
pub fn emit_stub(slot: &mut [u8], va: u64, insn: IoInsn, helpers: &Helpers) -> Result<usize, EmitError> {
    emit_stub_with(slot, va, insn, helpers, &SlotOptions::default())
}

/// As [`emit_stub`], with the host's hardening and a quirk.
///
/// # Errors
///
/// See [`EmitError`]; the slot is then as it was.
pub fn emit_stub_with(
    slot: &mut [u8],
    va: u64,
    insn: IoInsn,
    helpers: &Helpers,
    options: &SlotOptions,
) -> Result<usize, EmitError> {
    // What a hypervisor with a slot for each CPU does for every access.
    if let (None, false, Some(template)) = (&options.quirk, insn.is_string(), &helpers.template)
        && template.is_for(&options.style(helpers.layout), options.return_thunk)
    {
        return template.write(slot, va, insn);
    }
    let ((), len) = emit_checked(slot, va, with_thunk(helpers.targets, options), |sink| {
        checked_stub(sink, insn, helpers, options).map(|_| ())
    })?;
    Ok(len)
}

/// Where a fault at `rip` resumes, for a stub that [`emit_stub_with`] emitted with these arguments. `None`: `rip` is not
/// in the I/O sequence of that stub.
pub fn stub_fixup(va: u64, insn: IoInsn, helpers: &Helpers, options: &SlotOptions, rip: u64) -> Option<Fixup> {
    let mut sink = SlotSink::new(&mut [], va, with_thunk(helpers.targets, options));
    let shape = checked_stub(&mut sink, insn, helpers, options).ok()?;
    let offset = usize::try_from(rip.checked_sub(va)?).ok()?;
    let rsp_adjust = shape.rsp_adjust(helpers.layout, offset)?;
    let resume = shape.epilogue.map(|epilogue| va + epilogue as u64).or(helpers.epilogue)?;
    Some(Fixup { resume, rsp_adjust })
}

fn checked_stub(
    sink: &mut SlotSink<'_>,
    insn: IoInsn,
    helpers: &Helpers,
    options: &SlotOptions,
) -> Result<StubShape, EmitError> {
    let shape = emit(sink, &options.style(helpers.layout), insn, options.quirk.as_ref());
    if let Some(quirk) = &options.quirk {
        check_payload(quirk, &shape)?;
    }
    Ok(shape)
}

pub(crate) fn check_payload(quirk: &Quirk, shape: &StubShape) -> Result<(), EmitError> {
    match shape.stack.is_balanced() {
        true => Ok(()),
        false => Err(EmitError::UnbalancedPayload { quirk: quirk.name() }),
    }
}

/// Runs `emit` without memory, checks everything, and then once more to write. Returns its result and the number of bytes.
pub(crate) fn emit_checked<T>(
    buf: &mut [u8],
    va: u64,
    targets: Targets,
    emit: impl Fn(&mut SlotSink<'_>) -> Result<T, EmitError>,
) -> Result<(T, usize), EmitError> {
    let mut dry = SlotSink::new(&mut [], va, targets);
    emit(&mut dry)?;
    let len = dry.finish()?;
    let mut sink = SlotSink::new(room(buf, va, len)?, va, targets);
    let result = emit(&mut sink)?;
    sink.finish()?;
    Ok((result, len))
}

/// The memory for `len` bytes of code.
fn room(buf: &mut [u8], va: u64, len: usize) -> Result<&mut [u8], EmitError> {
    let available = buf.len();
    let room = buf.get_mut(..len).ok_or(EmitError::SlotTooSmall { needed: len, available })?;
    va.checked_add(len as u64).map(|_| room).ok_or(EmitError::AddressOverflow { va, len })
}
