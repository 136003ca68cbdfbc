//! What `dynasm!` needs of the place it writes to, so that one emitter serves the JIT table and caller-owned memory.

/// A target of `dynasm!` for x86-64: bytes, local labels and global labels.
///
/// The emitters of this crate are generic over it, and so is the payload of a [`Quirk`](crate::Quirk): whoever
/// implements it decides where the bytes go and how labels are resolved. The methods are those that the macro calls
/// (see
/// `dynasmrt::DynasmLabelApi`), less the ones that no emitter here uses. It is object-safe.
pub trait CodeSink {
    /// How many bytes have been emitted so far.
    fn offset(&self) -> usize;

    /// Appends bytes.
    fn extend(&mut self, bytes: &[u8]);

    /// Defines a local label, the target of `<name` behind it and `>name` before it.
    fn local_label(&mut self, name: &'static str);

    /// Defines a helper's label, the target of `=>helper`.
    fn dynamic_label(&mut self, helper: Helper);

    /// The field that starts `field_offset` bytes before the current offset refers to the next local label `name`, plus
    /// `target_offset`, relative to the point `ref_offset` bytes before the current offset. `kind` is dynasm's encoding
    /// of the field's size.
    fn forward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8);

    /// As [`Self::forward_reloc`], for the last local label of that name.
    fn backward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8);

    /// As [`Self::forward_reloc`], for a helper's label, before or behind.
    fn dynamic_reloc(&mut self, helper: Helper, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8);

    /// Appends one byte.
    fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }

    /// Appends a signed byte.
    fn push_i8(&mut self, value: i8) {
        self.extend(&value.to_le_bytes());
    }

    /// Appends a signed word, little-endian.
    fn push_i16(&mut self, value: i16) {
        self.extend(&value.to_le_bytes());
    }

    /// Appends a signed doubleword, little-endian.
    fn push_i32(&mut self, value: i32) {
        self.extend(&value.to_le_bytes());
    }
}

/// The helpers that stubs branch to. They are not functions, and nothing but a stub may call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Helper {
    /// Host to guest ([`StubLayout::CallRet`](crate::StubLayout::CallRet)).
    LoadGuestGprs,
    /// Guest to host ([`StubLayout::CallRet`](crate::StubLayout::CallRet)).
    SaveGuestGprs,
    /// Prologue and host to guest ([`StubLayout::Compact`](crate::StubLayout::Compact)).
    EnterGuest,
    /// Guest to host and epilogue ([`StubLayout::Compact`](crate::StubLayout::Compact)).
    LeaveGuest,
    /// The first of the historic pair ([`StubLayout::Rop`](crate::StubLayout::Rop)).
    HostToGuest,
    /// The second one, which the stub's RET returns into.
    GuestToHost,
    /// Where a stub goes on whose access faulted.
    LandingPads,
    /// From a stub to a device model ([`SoftwareBus`](crate::SoftwareBus)).
    Trampoline,
    /// The host's return thunk, which is not of this crate.
    ReturnThunk,
}

impl Helper {
    /// All of them, in the order of their discriminants.
    pub(crate) const ALL: [Helper; 9] = [
        Helper::LoadGuestGprs,
        Helper::SaveGuestGprs,
        Helper::EnterGuest,
        Helper::LeaveGuest,
        Helper::HostToGuest,
        Helper::GuestToHost,
        Helper::LandingPads,
        Helper::Trampoline,
        Helper::ReturnThunk,
    ];

    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The name under which the helper stands in a symbol table.
    pub const fn name(self) -> &'static str {
        match self {
            Helper::LoadGuestGprs => "load_guest_gprs",
            Helper::SaveGuestGprs => "save_guest_gprs",
            Helper::EnterGuest => "enter_guest",
            Helper::LeaveGuest => "leave_guest",
            Helper::HostToGuest => "host_to_guest",
            Helper::GuestToHost => "guest_to_host",
            Helper::LandingPads => "landing_pads",
            Helper::Trampoline => "trampoline",
            Helper::ReturnThunk => "return_thunk",
        }
    }
}

/// Counts bytes, and resolves nothing.
#[derive(Debug, Default)]
pub(crate) struct Counter(usize);

impl CodeSink for Counter {
    fn offset(&self) -> usize {
        self.0
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn local_label(&mut self, _: &'static str) {}
    fn dynamic_label(&mut self, _: Helper) {}
    fn forward_reloc(&mut self, _: &'static str, _: isize, _: u8, _: u8, _: u8) {}
    fn backward_reloc(&mut self, _: &'static str, _: isize, _: u8, _: u8, _: u8) {}
    fn dynamic_reloc(&mut self, _: Helper, _: isize, _: u8, _: u8, _: u8) {}
}

/// Any of dynasmrt's assemblers as a [`CodeSink`].
#[cfg(feature = "std")]
#[derive(Debug)]
pub struct DynasmSink<'a, A> {
    assembler: &'a mut A,
    helpers: [dynasmrt::DynamicLabel; Helper::COUNT],
}

#[cfg(feature = "std")]
impl<'a, A: dynasmrt::DynasmLabelApi> DynasmSink<'a, A> {
    /// `new_label` makes a dynamic label of the assembler: a method that each of them has, and no trait.
    pub fn new(assembler: &'a mut A, new_label: impl Fn(&mut A) -> dynasmrt::DynamicLabel) -> Self {
        let helpers = core::array::from_fn(|_| new_label(assembler));
        Self { assembler, helpers }
    }
}

#[cfg(feature = "std")]
impl<A: dynasmrt::DynasmLabelApi> CodeSink for DynasmSink<'_, A> {
    #[inline]
    fn offset(&self) -> usize {
        self.assembler.offset().0
    }

    #[inline(always)]
    fn extend(&mut self, bytes: &[u8]) {
        self.assembler.extend(bytes);
    }

    fn local_label(&mut self, name: &'static str) {
        self.assembler.local_label(name);
    }

    fn dynamic_label(&mut self, helper: Helper) {
        self.assembler.dynamic_label(self.helpers[helper as usize]);
    }

    fn forward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        self.assembler.forward_reloc(name, target_offset, field_offset, ref_offset, kind);
    }

    fn backward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        self.assembler.backward_reloc(name, target_offset, field_offset, ref_offset, kind);
    }

    #[inline]
    fn dynamic_reloc(&mut self, helper: Helper, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        let label = self.helpers[helper as usize];
        self.assembler.dynamic_reloc(label, target_offset, field_offset, ref_offset, kind);
    }
}
