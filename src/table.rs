//! All stubs in memory that the caller owns.

use crate::slot::{SlotSink, Targets, check_payload, emit_checked, with_thunk};
use crate::stub::{Arena, Fixup, QuirkStub, StubLayout, resolve};
use crate::{EmitError, Gprs, IoInsn, SlotOptions};

/// Every form of a layout in memory that the caller owns: found by multiplication, never rewritten.
#[derive(Clone, Copy, Debug)]
pub struct CodeTable {
    va: u64,
    arena: Arena,
    quirk: Option<QuirkStub>,
}

impl CodeTable {
    /// How many bytes [`Self::emit`] needs.
    ///
    /// ```
    /// use ioemul::{CodeTable, StubLayout, SlotOptions};
    /// assert!(CodeTable::size(StubLayout::Compact, &SlotOptions::default()) < 32 * 1024);
    /// ```
    pub fn size(layout: StubLayout, options: &SlotOptions) -> usize {
        // Anywhere in the address space: the length does not depend on it.
        let mut sink = SlotSink::new(&mut [], 0, with_thunk(Targets::default(), options));
        Arena::emit(&mut sink, &options.style(layout), options.quirk.as_slice(), |_| ()).len
    }

    /// Emits the helpers, all [`IoInsn::COUNT`] stubs, and the quirk's stub where there is one, to be executed at `va`.
    ///
    /// # Errors
    ///
    /// See [`EmitError`]; the memory is then as it was.
    pub fn emit(buf: &mut [u8], va: u64, layout: StubLayout, options: &SlotOptions) -> Result<Self, EmitError> {
        let targets = with_thunk(Targets::default(), options);
        let ((arena, quirk), _) = emit_checked(buf, va, targets, |sink| {
            let mut placed = None;
            let arena = Arena::emit(sink, &options.style(layout), options.quirk.as_slice(), |stub| placed = Some(stub));
            if let Some(stub) = &placed {
                check_payload(&stub.quirk, &stub.shape)?;
            }
            Ok((arena, placed))
        })?;
        Ok(Self { va, arena, quirk })
    }

    /// The executable address of the plain stub of `insn`: an `extern "sysv64" fn(*mut Gprs)`.
    pub fn entry(&self, insn: IoInsn) -> u64 {
        self.va + self.arena.stub(insn).0 as u64
    }

    /// The executable address of the stub for this access: the quirk's where it applies, else the plain one.
    pub fn resolve(&self, insn: IoInsn, gprs: &Gprs) -> u64 {
        match resolve(self.quirk.as_slice(), insn, gprs) {
            Some(stub) => self.va + stub.at as u64,
            None => self.entry(insn),
        }
    }

    /// Where a fault at `rip` resumes. `None`: `rip` is not in the I/O sequence of a stub of this table.
    pub fn fixup(&self, rip: u64) -> Option<Fixup> {
        let offset = usize::try_from(rip.checked_sub(self.va)?).ok()?;
        let (resume, rsp_adjust) = self.arena.fixup(self.quirk.as_slice(), offset)?;
        Some(Fixup { resume: self.va + resume as u64, rsp_adjust })
    }
}
