//! One piece of memory at two addresses.

use std::ptr;

/// One piece of memory, mapped twice: written here, executed there.
pub struct Alias {
    writable: *mut u8,
    executable: *const u8,
    len: usize,
}

impl Alias {
    pub fn new(len: usize) -> Self {
        // SAFETY: creates a file without a name and maps it at two new addresses.
        unsafe {
            let file = libc::memfd_create(c"slots".as_ptr(), 0);
            assert!(file >= 0 && libc::ftruncate(file, len as libc::off_t) == 0);
            let map = |protection| {
                let at = libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file, 0);
                assert_ne!(at, libc::MAP_FAILED);
                at.cast::<u8>()
            };
            let alias = Self {
                writable: map(libc::PROT_READ | libc::PROT_WRITE),
                executable: map(libc::PROT_READ | libc::PROT_EXEC),
                len,
            };
            libc::close(file);
            alias
        }
    }

    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is there as long as this is.
        unsafe { std::slice::from_raw_parts_mut(self.writable, self.len) }
    }

    /// The same, where it is executed.
    pub fn code(&self) -> &[u8] {
        // SAFETY: as above; while this is borrowed, nobody writes.
        unsafe { std::slice::from_raw_parts(self.executable, self.len) }
    }

    pub fn va(&self) -> u64 {
        self.executable as u64
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        // SAFETY: both mappings are this one's own.
        unsafe {
            libc::munmap(self.writable.cast(), self.len);
            libc::munmap(self.executable.cast_mut().cast(), self.len);
        }
    }
}
