//! What the guest asks of Linux: file systems, I/O privilege, physical memory, the end.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use hw_shared::{Chipset, Engine, HANDLER_ADDRESS, Refused, handler};

/// Mounts a pseudo file system on a directory of the initramfs.
pub fn mount(kind: &str, at: &str) {
    let (kind, at) = (CString::new(kind).expect("no NUL"), CString::new(at).expect("no NUL"));
    // SAFETY: the strings outlive the call and the data pointer may be null.
    let result = unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    assert_eq!(result, 0, "mounting {at:?}: {}", io::Error::last_os_error());
}

/// Puts the handler into SMRAM; a deaf one answers some other command.
pub fn install_smm_handler(chipset: Chipset, engine: &mut dyn Engine, deaf: bool) -> io::Result<()> {
    chipset.enable_smi(engine).map_err(refused)?;
    let code: Vec<u8> = handler(deaf).collect();
    with_smram(chipset, engine, |memory| memory.write_all_at(&code, HANDLER_ADDRESS as u64))
}

/// Does something with physical memory while SMRAM, which is at 0xA0000, is open.
pub fn with_smram<T>(
    chipset: Chipset,
    engine: &mut dyn Engine,
    work: impl FnOnce(&File) -> io::Result<T>,
) -> io::Result<T> {
    let memory = File::options().read(true).write(true).open("/dev/mem")?;
    chipset.open_smram(engine, true).map_err(refused)?;
    let result = work(&memory);
    chipset.open_smram(engine, false).map_err(refused)?;
    result
}

fn refused(_: Refused) -> io::Error {
    io::Error::other("the chipset's ports fault")
}

/// Memory at an address of 32 bits, with nothing behind it: so many pages, and one that cannot be accessed.
pub fn low_memory(pages: usize) -> io::Result<&'static mut [u8]> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let len = pages * PAGE;
    // SAFETY: new memory, which stays; what is returned can be read and written, and nobody else knows of it.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), len + PAGE, protection, flags | libc::MAP_32BIT, -1, 0);
        if memory == libc::MAP_FAILED || libc::mprotect(memory.byte_add(len), PAGE, libc::PROT_NONE) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::slice::from_raw_parts_mut(memory.cast(), len))
    }
}

/// The size of a page.
pub const PAGE: usize = 4096;

/// Ends the machine: QEMU runs with `-no-reboot`.
pub fn power_off() -> ! {
    // SAFETY: nothing of this machine is worth keeping.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    unreachable!("the kernel refused to reboot: {}", io::Error::last_os_error());
}
