//! A plugin: a shared object that runs stubs in somebody else's process, and can be unloaded again.
//!
//! A stub that faults takes a handler of SIGSEGV and SIGBUS, and a handler must not be called when it has been unmapped.
//! So the plugin takes its handler out before it is closed. (Should its host forget to ask for that, the shared object stays
//! in memory: the handler holds a reference to it.)
//!
//! ```text
//! cargo build --example plugin     # target/debug/examples/libplugin.so
//! ```
#![allow(unsafe_code)] // exported functions, and an access to the hardware

use ioemul::{Gprs, IoInsn, StubLayout, StubTable, Width, fault};

/// Writes 0 to port 0x80, the POST code port. Returns 0 when it was written, 1 when the CPU refused, and -1 when there is
/// no stub to run.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_post_code() -> i32 {
    let Ok(table) = StubTable::new(StubLayout::CallRet) else { return -1 };
    // SAFETY: a POST code is for whoever looks at the board.
    match unsafe { table.stub(IoInsn::out_imm8(Width::Byte, 0x80)).run(&mut Gprs::default()) } {
        Ok(()) => 0,
        Err(_fault) => 1,
    }
}

/// To be called before the plugin is closed, when none of its functions is being run. Returns 0 when nothing refers to the
/// plugin any more.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_unload() -> i32 {
    if fault::uninstall().is_ok() { 0 } else { -1 }
}
