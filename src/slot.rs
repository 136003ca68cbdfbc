//! Stubs in memory that the caller owns, one at a time: a hypervisor's slot for each CPU.
//!
//! Nothing here allocates, maps or executes: bytes are written to a slice, for the address `va` at which they will
//! execute (which may be another mapping than the one written through). Everything is emitted twice, first without
//! memory, so that the size, every displacement and the quirks are checked before the first byte is written: an error
//! leaves the memory as it was. (The plain stub, which a hypervisor may write for every access, is emitted once with
//! the helpers, and checked and copied from then on.)
//!
//! The memory is borrowed while it is written, not while its code runs: make the slice from a raw pointer for each
//! call, and keep none across a call of the stub.
//!
//! # A slot that is rewritten
//!
//! A CPU that fetches what it has just written through another address may execute older bytes speculatively
//! (speculative code store bypass): where that matters, LFENCE stands between the write and the call (AMD APM vol. 2,
//! 7.6; Intel's advisory on CVE-2021-0089). On the CPU that wrote, any jump then is enough; on another one that is to
//! run the slot, an instruction that serializes (CPUID, IRET, SERIALIZE) has to come between (SDM vol. 3, 9.1.3; APM
//! vol. 2, 7.6.1). A [`CodeTable`](crate::CodeTable), written once, wants none of it, and is faster.
//!
//! ```
//! use ioemul::{EmitOptions, Helpers, IoInsn, StubLayout, Width, emit_stub};
//! let (mut helpers, mut slot) = ([0; Helpers::MAX_LEN], [0; StubLayout::CallRet.stub_len()]);
//! let helpers = Helpers::emit(&mut helpers, 0xffff_8000_0010_0000, &EmitOptions::new())?;
//! let len = emit_stub(&mut slot, 0xffff_8000_0020_0000, IoInsn::out_dx(Width::Byte), &helpers)?;
//! assert_eq!((len, &slot[16..19]), (36, &[0x90, 0xee, 0x90][..]));
//! # Ok::<(), ioemul::EmitError>(())
//! ```

use arrayvec::ArrayVec;
use dynasm::dynasm;

use crate::helpers::{Pads, emit_helpers, emit_pads};
use crate::stub::{CodeSink, StubLayout, StubShape, StubStyle, emit_endbr64, emit_stub as emit};
use crate::{EmitError, EmitOptions, IoInsn, PortOperand, Quirk, quirk_table};

mod place;
mod sink;
mod template;

pub(crate) use place::room;
pub(crate) use sink::{SlotSink, Targets, emit_checked, with_thunk};
use template::Template;

/// The helpers of a layout, emitted by the caller, shared by any number of stubs, and the options that these are
/// emitted with.
#[derive(Clone, Debug)]
pub struct Helpers {
    style: StubStyle,
    va: u64,
    len: usize,
    targets: Targets,
    pads: Pads,
    quirks: ArrayVec<Quirk, { EmitOptions::MAX_QUIRKS }>,
    /// The stub that all forms of IN and OUT have in common.
    template: Template,
}

impl Helpers {
    /// As many bytes are enough for the helpers of any layout and register file, hardened or not, with any quirks.
    pub const MAX_LEN: usize = 512;

    /// Emits the helpers into `buf`, to be executed at `va`.
    ///
    /// # Errors
    ///
    /// See [`EmitError`]; the memory is then as it was.
    pub fn emit(buf: &mut [u8], va: u64, options: &EmitOptions<'_>) -> Result<Self, EmitError> {
        let style = options.style();
        options.check()?;
        let (mut targets, mut template) = (with_thunk(options.return_thunk), Template::new(style, va));
        let (len, pads) = emit_all(buf, va, options, &mut targets)?;
        template.fill(&targets);
        let mut quirks = ArrayVec::new_const();
        let _ = options.quirks.iter().try_for_each(|quirk| quirks.try_push(*quirk)); // as many as there may be
        Ok(Self { style, va, len, targets, pads, quirks, template })
    }

    /// The layout that these helpers are for.
    pub fn layout(&self) -> StubLayout {
        self.style.layout
    }

    /// The address at which they execute.
    pub fn va(&self) -> u64 {
        self.va
    }

    /// Their length in bytes.
    #[allow(clippy::len_without_is_empty)] // the landing pads are always there
    pub fn len(&self) -> usize {
        self.len
    }

    /// Name and address of each helper, for a symbol table.
    pub fn symbols(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.targets.helpers().map(|(helper, address)| (helper.name(), address))
    }

    /// The quirks that stubs of this form have to look out for.
    fn quirks_of(&self, insn: IoInsn) -> impl Iterator<Item = &Quirk> {
        self.quirks.iter().filter(move |quirk| quirk.trigger().has_form(insn))
    }
}

/// Emits helpers and landing pads; `targets` are told. (On a frame of its own, as a kernel's stack is small.)
#[inline(never)]
fn emit_all(
    buf: &mut [u8],
    va: u64,
    options: &EmitOptions<'_>,
    targets: &mut Targets,
) -> Result<(usize, Pads), EmitError> {
    let style = options.style();
    let depths = quirk_table::depths(&style, options.quirks);
    let (given, mut pads) = (*targets, Pads::default());
    let len = emit_checked(buf, va, given, |sink| {
        emit_helpers(sink, &style);
        pads = emit_pads(sink, &style, depths);
        *targets = sink.helpers;
        Ok(())
    })?;
    Ok((len, pads))
}

/// Emits the stub of `insn` into `slot`, to be executed at `va` as a [`StubFn`](crate::StubFn), with the options of the
/// helpers. Returns its length. Without quirks and hardening that is 36 bytes for [`StubLayout::CallRet`], 13 for
/// [`StubLayout::Compact`], 9 for [`StubLayout::Rop`]; a stub with a quirk may take 200. [`EmitError::SlotTooSmall`] says how
/// many are needed.
///
/// If a quirk of the options has this form, the stub looks at the register file when it is called, and does what the
/// first quirk does that takes the access, or else the plain access: what
/// [`CodeTable::resolve`](crate::CodeTable::resolve) decides before the call.
///
/// The pointers that INS and OUTS follow are the register file's: whoever emits one has bounded and translated them. The forms
/// are those of [`IoInsn::strings`]: a guest's segment override would be a base of the host's.
///
/// The stub asks nobody for permission. Whoever calls it has looked that what it is going to do is permitted: every access
/// that [`Quirk::accesses`] names, of the first quirk that [applies](Quirk::applies), or else the plain access.
///
/// # Errors
///
/// See [`EmitError`]; the slot is then as it was.
pub fn emit_stub(slot: &mut [u8], va: u64, insn: IoInsn, helpers: &Helpers) -> Result<usize, EmitError> {
    // What a hypervisor with a slot for each CPU does for every access.
    if helpers.template.is_there() && !insn.is_string() && helpers.quirks_of(insn).next().is_none() {
        return helpers.template.write(slot, va, insn);
    }
    if !insn.has_stub() {
        return Err(EmitError::NoStub { insn });
    }
    emit_checked(slot, va, helpers.targets, |sink| emit_stubs(sink, insn, helpers, |_, _| ()))
}

/// Where a fault at `rip` resumes, for a stub that [`emit_stub`] emitted with these arguments: the address of a landing
/// pad, to be set as RIP and nothing else. `None`: `rip` is not in an I/O sequence of that stub.
///
/// The stub then returns 1 in RAX, the register file being as it was given, and IF as it was before a quirk masked
/// interrupts. (After a fault in INS or OUTS, RCX, RSI and
/// RDI of the register file say how far it got.)
pub fn stub_fixup(va: u64, insn: IoInsn, helpers: &Helpers, rip: u64) -> Option<u64> {
    let offset = usize::try_from(rip.checked_sub(va)?).ok()?;
    let mut landing = None;
    let mut sink = SlotSink::new(&mut [], va, helpers.targets);
    let emitted = emit_stubs(&mut sink, insn, helpers, |at, shape| {
        landing = landing.or(offset.checked_sub(at).and_then(|offset| shape.landing(offset)));
    });
    emitted.ok()?;
    helpers.va.checked_add(helpers.pads.at(landing?).into())
}

/// Emits the stub of a form; in front of it, those of the quirks that may have to stand for it. `placed` is told where
/// each is.
fn emit_stubs(
    sink: &mut SlotSink<'_>,
    insn: IoInsn,
    helpers: &Helpers,
    mut placed: impl FnMut(usize, &StubShape),
) -> Result<(), EmitError> {
    let mut style = helpers.style;
    for quirk in helpers.quirks_of(insn) {
        if style.endbr64 {
            emit_endbr64(sink);
            style.endbr64 = false; // nobody comes indirectly any more
        }
        emit_trigger(sink, &style, quirk, insn);
        let at = sink.offset();
        let shape = emit(sink, &style, insn, Some(quirk));
        if let Some(problem) = shape.problem {
            return Err(EmitError::payload(quirk, problem));
        }
        placed(at, &shape);
        dynasm!(sink ; .arch x64 ; ioemul_other_access:);
    }
    let at = sink.offset();
    placed(at, &emit(sink, &style, insn, None));
    Ok(())
}

/// Goes on to the next label `ioemul_other_access` unless the quirk takes the access that the register file describes.
fn emit_trigger(sink: &mut SlotSink<'_>, style: &StubStyle, quirk: &Quirk, insn: IoInsn) {
    let trigger = quirk.trigger();
    if insn.operand == PortOperand::Dx {
        let (rdx_at, port) = (i32::from(style.registers.rdx()), trigger.port as i16);
        dynasm!(sink ; .arch x64
            ; cmp WORD [DWORD rdi + rdx_at], WORD port
            ; jne DWORD >ioemul_other_access
        );
    }
    if trigger.mask != 0 {
        let (rax_at, mask, value) = (i32::from(style.registers.rax()), trigger.mask as i32, trigger.value as i32);
        dynasm!(sink ; .arch x64
            ; mov eax, [DWORD rdi + rax_at]
            ; and eax, DWORD mask
            ; cmp eax, DWORD value
            ; jne DWORD >ioemul_other_access
        );
    }
}
