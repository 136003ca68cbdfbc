//! What `dynasm!` needs of the place it writes to, so that one emitter serves the JIT table and caller-owned memory.

/// A target of `dynasm!` for x86-64: bytes, local labels and global labels.
///
/// The emitters of this crate are generic over it, and so is the payload of a [`Quirk`](crate::Quirk): whoever
/// implements it decides where the bytes go and how labels are resolved. The methods are those that the macro calls (see
/// `dynasmrt::DynasmLabelApi`), less the ones that no emitter here uses. It is object-safe.
pub trait CodeSink {
    /// How many bytes have been emitted so far.
    fn offset(&self) -> usize;

    /// Appends bytes.
    fn extend(&mut self, bytes: &[u8]);

    /// Defines a local label, the target of `<name` behind it and `>name` before it.
    fn local_label(&mut self, name: &'static str);

    /// Defines a global label, the target of `->name`.
    fn global_label(&mut self, name: &'static str);

    /// The field that starts `field_offset` bytes before the current offset refers to the next local label `name`, plus
    /// `target_offset`, relative to the point `ref_offset` bytes before the current offset. `kind` is dynasm's encoding
    /// of the field's size.
    fn forward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8);

    /// As [`Self::forward_reloc`], for the last local label of that name.
    fn backward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8);

    /// As [`Self::forward_reloc`], for a global label, before or behind.
    fn global_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8);

    /// Appends one byte.
    fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }

    /// Appends a signed byte.
    fn push_i8(&mut self, value: i8) {
        self.extend(&value.to_le_bytes());
    }

    /// Appends a signed doubleword, little-endian.
    fn push_i32(&mut self, value: i32) {
        self.extend(&value.to_le_bytes());
    }
}
