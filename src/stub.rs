//! Everything that emits a stub: its layout and style, the sink that takes the bytes, what stands in place of `<io>`,
//! one stub, and all of them in one piece.

mod arena;
mod emit;
mod layout;
mod payload;
mod sink;
mod style;
#[cfg(feature = "std")]
pub(crate) mod trampoline;

#[cfg(feature = "std")]
pub use sink::DynasmSink;
pub(crate) use {
    arena::{Arena, form_at, write_form},
    emit::{Body, StubShape, emit_endbr64, emit_stub},
    payload::{Accesses, Marks, PayloadProblem},
    sink::Counter,
    style::{Backend, Returns, StubStyle},
};
pub use {
    layout::StubLayout,
    payload::Payload,
    sink::{CodeSink, Helper},
    style::Ring,
};

/// As many of these as there is room for: unlike `collect`, it cannot panic.
pub(crate) fn as_many_as_fit<T, const N: usize>(items: impl IntoIterator<Item = T>) -> arrayvec::ArrayVec<T, N> {
    let mut room = arrayvec::ArrayVec::new();
    let _ = items.into_iter().try_for_each(|item| room.try_push(item));
    room
}
