//! The shared object that the handler is in must not be unmapped while it is installed.
#![allow(unsafe_code)] // asks the dynamic linker

use core::ffi::c_void;
use core::mem::MaybeUninit;

/// A reference to a shared object, as `dlopen` counts them.
#[derive(Debug)]
pub(super) struct Pin {
    handle: *mut c_void,
}

// SAFETY: a handle of the dynamic linker, which any thread may use.
unsafe impl Send for Pin {}

impl Pin {
    /// To the object that has `address` in it. None for the program itself, which is never closed.
    pub fn new(address: *const c_void) -> Option<Self> {
        // SAFETY: asks for a number.
        let program = object_at(unsafe { libc::getauxval(libc::AT_PHDR) } as *const c_void);
        let object = object_at(address)?;
        if program.is_some_and(|program| program.dli_fbase == object.dli_fbase) || object.dli_fname.is_null() {
            return None;
        }
        // SAFETY: the dynamic linker's own name of an object that it has; with RTLD_NOLOAD nothing is opened.
        let handle = unsafe { libc::dlopen(object.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        (!handle.is_null()).then_some(Self { handle })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // SAFETY: opened in `new`.
        unsafe { libc::dlclose(self.handle) };
    }
}

fn object_at(address: *const c_void) -> Option<libc::Dl_info> {
    let mut info = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: any address may be asked for; `info` is room for the answer, and filled in if that is not 0.
    unsafe { (libc::dladdr(address, info.as_mut_ptr()) != 0).then(|| info.assume_init()) }
}
