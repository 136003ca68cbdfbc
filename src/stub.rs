//! Everything that emits a stub: its layout and style, the sink that takes the bytes, what stands in place of `<io>`, one
//! stub, and all of them in one piece.

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
pub use {
    arena::Fixup,
    layout::StubLayout,
    payload::Payload,
    sink::{CodeSink, Helper},
    style::Ring,
};
pub(crate) use {
    arena::{Arena, QuirkStub, resolve},
    emit::{StubShape, emit_stub},
    style::{Backend, Returns, StubStyle},
};
