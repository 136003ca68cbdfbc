//! Pointers from C: looked at, read once, and written last.
//!
//! The promise behind every block here is the C caller's, and `ioemul.h` asks for it: a pointer that is not NULL leads to
//! as much memory as its type, or the length beside it, says, which nobody else writes during the call. What can be
//! checked is checked: NULL, alignment, and the size at the head of a structure.
#![allow(unsafe_code)] // pointers from C

use core::mem::{ManuallyDrop, MaybeUninit};
use core::{ptr, slice};

use crate::status::Status;

/// A structure that begins with its size, and can grow at its end.
///
/// # Safety
///
/// It is `repr(C)`, its first field is a `usize`, and any bytes are a value of it.
pub(crate) unsafe trait Growing: Copy {
    /// How long it was in the first version of the interface.
    const FIRST: usize;
}

/// No structure will be longer. A size beyond is one that nobody has set.
const LONGEST: usize = 4096;

pub(crate) fn check<T>(at: *const T) -> Result<(), Status> {
    if at.is_null() {
        Err(Status::Null)
    } else if !at.is_aligned() {
        Err(Status::Misaligned)
    } else {
        Ok(())
    }
}

/// The size that a structure begins with.
unsafe fn size<T: Growing>(at: *const T) -> Result<usize, Status> {
    check(at)?;
    // SAFETY: the caller's structure begins with its size (`Growing`).
    let size = unsafe { at.cast::<usize>().read() };
    if (T::FIRST..=LONGEST).contains(&size) { Ok(size) } else { Err(Status::Size) }
}

/// Reads a structure of an older, the same or a newer version. What an older one does not have is 0; what a newer one
/// has besides must be 0, as nothing is known of it.
pub(crate) unsafe fn read<T: Growing>(at: *const T) -> Result<T, Status> {
    // SAFETY: the caller's promise is passed on.
    let size = unsafe { size(at)? };
    let (known, mut value) = (size.min(size_of::<T>()), MaybeUninit::<T>::zeroed());
    // SAFETY: so much memory is the caller's structure, as it says, and so long at least is `value`.
    let unknown = unsafe {
        ptr::copy_nonoverlapping(at.cast::<u8>(), value.as_mut_ptr().cast(), known);
        slice::from_raw_parts(at.cast::<u8>().add(known), size - known)
    };
    if unknown.iter().any(|byte| *byte != 0) {
        return Err(Status::Size);
    }
    // SAFETY: any bytes are a value (`Growing`), and all are set.
    Ok(unsafe { value.assume_init() })
}

/// Where a result goes: it was looked at, and is written to when nothing can fail any more.
pub(crate) struct Place<T>(*mut T);

impl<T: Copy> Place<T> {
    pub unsafe fn new(at: *mut T) -> Result<Self, Status> {
        check(at).map(|()| Self(at))
    }

    pub fn write(self, value: T) {
        // SAFETY: neither NULL nor misaligned (`new`); that it may be written is the caller's promise.
        unsafe { self.0.write(value) }
    }

    /// What the caller has written there.
    pub fn read(&self) -> T {
        // SAFETY: as above, and that it is initialized.
        unsafe { self.0.read() }
    }
}

/// Where a structure that begins with its size goes.
pub(crate) struct GrowingPlace<T> {
    at: *mut T,
    size: usize,
}

impl<T: Growing> GrowingPlace<T> {
    pub unsafe fn new(at: *mut T) -> Result<Self, Status> {
        // SAFETY: the caller's promise is passed on.
        Ok(Self { at, size: unsafe { size(at)? } })
    }

    /// Writes as much as the caller's version has; its size stays, and what is not known here becomes 0.
    pub fn write(self, value: T) {
        let Self { at, size } = self;
        let known = size.min(size_of::<T>());
        // SAFETY: so much memory is the caller's structure, as it says; `value` is as long as what is copied.
        unsafe {
            ptr::copy_nonoverlapping(ptr::from_ref(&value).cast::<u8>(), at.cast(), known);
            ptr::write_bytes(at.cast::<u8>().add(known), 0, size - known);
            at.cast::<usize>().write(size);
        }
    }
}

/// Elements of an array; NULL is the empty one.
pub(crate) unsafe fn elements<'a, T>(at: *const T, count: usize) -> Result<&'a [T], Status> {
    if count == 0 {
        return Ok(&[]);
    }
    check(at)?;
    bounded::<T>(count)?;
    // SAFETY: neither NULL nor misaligned, not longer than memory can be; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(at, count) })
}

/// The same, to be written to.
pub(crate) unsafe fn elements_mut<'a, T>(at: *mut T, count: usize) -> Result<&'a mut [T], Status> {
    if count == 0 {
        return Ok(&mut []);
    }
    check(at)?;
    bounded::<T>(count)?;
    // SAFETY: as above; that nobody else uses it during the call is the caller's promise as well.
    Ok(unsafe { slice::from_raw_parts_mut(at, count) })
}

fn bounded<T>(count: usize) -> Result<(), Status> {
    let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
    bytes.map(|_| ()).ok_or(Status::Value)
}

/// Writes the items to the caller's array, of which `count` says the length and then how many there were: all or none.
pub(crate) unsafe fn write_all<T: Copy>(
    items: impl Iterator<Item = T> + Clone,
    at: *mut T,
    count: *mut usize,
) -> Result<(), Status> {
    // SAFETY: the caller's promise is passed on.
    let (count, needed) = (unsafe { Place::new(count)? }, items.clone().count());
    if needed > count.read() {
        return Err(Status::TooSmall);
    }
    // SAFETY: as many elements, at least, are there.
    let room = unsafe { elements_mut(at, needed)? };
    room.iter_mut().zip(items).for_each(|(place, item)| *place = item);
    count.write(needed);
    Ok(())
}

/// A value of Rust's in a structure of the caller's, of which C knows nothing but how long it is.
#[repr(C)]
pub(crate) struct Opaque<T, const WORDS: usize> {
    size: usize,
    words: [u64; WORDS],
    value: [ManuallyDrop<T>; 0], // no room of its own: which type this is for
}

/// What is in the words: the mark first, then the value.
#[repr(C)]
struct Stored<T> {
    mark: u64,
    value: ManuallyDrop<T>,
}

impl<T: Marked, const WORDS: usize> Opaque<T, WORDS> {
    const FITS: () = assert!(
        size_of::<Stored<T>>() <= 8 * WORDS
            && align_of::<Stored<T>>() == 8
            && size_of::<Self>() == 8 * (WORDS + 1)
            && align_of::<Self>() == 8
    );

    /// Whether a value can be written there.
    pub unsafe fn room(at: *mut Self) -> Result<OpaquePlace<T, WORDS>, Status> {
        const { Self::FITS };
        check(at)?;
        // SAFETY: the caller's structure begins with its size.
        let size = unsafe { (&raw const (*at).size).read() };
        if (size_of::<Self>()..=LONGEST).contains(&size) { Ok(OpaquePlace(at)) } else { Err(Status::Size) }
    }

    /// The value, if there is one.
    pub unsafe fn get<'a>(at: *const Self) -> Result<&'a T, Status> {
        // SAFETY: the caller's promise is passed on; nothing is written.
        let OpaquePlace(at) = unsafe { Self::room(at.cast_mut())? };
        // SAFETY: so long is the structure at least, as it says; `FITS`. The mark is there since `write` has put it there,
        // with the value behind it, and it is the caller's promise that nobody else has written to the structure.
        unsafe {
            let stored = (&raw const (*at).words).cast::<Stored<T>>();
            if (&raw const (*stored).mark).read() == T::MARK { Ok(&*(*stored).value) } else { Err(Status::NotEmitted) }
        }
    }
}

/// A type whose values are marked, in memory of the caller's.
pub(crate) trait Marked {
    /// What uninitialized memory, or a structure of another kind, does not begin with.
    const MARK: u64;
}

/// Where such a value goes.
pub(crate) struct OpaquePlace<T, const WORDS: usize>(*mut Opaque<T, WORDS>);

impl<T: Marked, const WORDS: usize> OpaquePlace<T, WORDS> {
    /// Writes it. It is never dropped: the part of the crate that this library is made of owns nothing that would have to
    /// be given back, being without an allocator.
    pub fn write(self, value: T) {
        let stored = Stored { mark: T::MARK, value: ManuallyDrop::new(value) };
        // SAFETY: so long is the structure (`room`); `FITS`.
        unsafe { (&raw mut (*self.0).words).cast::<Stored<T>>().write(stored) }
    }
}
