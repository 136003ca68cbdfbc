//! What KVM says of an exit: `struct kvm_run`, read and checked.
#![allow(unsafe_code)] // reads a union, and memory behind a structure, that the kernel has filled

use core::{ptr, slice};

use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, kvm_run};

use crate::{Direction, Width};

/// The accesses that a KVM_EXIT_IO asks for: `io` of `struct kvm_run` (Linux, Documentation/virt/kvm/api.rst, section 5).
///
/// ```
/// use ioemul::kvm::KvmIo;
/// use ioemul::{Direction, Width};
/// let io = KvmIo::new(0, 2, 0x1f0, 5)?; // REP INSW
/// assert_eq!((io.direction, io.width, io.port, io.count), (Direction::In, Width::Word, 0x1f0, 5));
/// # Ok::<(), ioemul::kvm::ExitError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct KvmIo {
    /// IN or OUT.
    pub direction: Direction,
    /// The width of one element.
    pub width: Width,
    /// The first port of each access.
    pub port: u16,
    /// How many accesses there are, one after the other: more than one only of INS and OUTS.
    pub count: u32,
    /// Whether the instruction is known to be INS or OUTS: see [`Self::of_string`].
    pub string: bool,
}

impl KvmIo {
    /// From the fields of `io`: `direction` is 0 for IN and 1 for OUT, `size` is that of one element in bytes.
    ///
    /// kvm-ioctls' `VcpuExit::IoIn` and `IoOut` have the port and the data alone, from which `size` is not to be had:
    /// two bytes are a word, or two elements of REP INSB. Take it from `kvm_run` ([`io_exit`]).
    ///
    /// # Errors
    ///
    /// [`ExitError::Direction`], [`ExitError::Size`], [`ExitError::Empty`].
    pub const fn new(direction: u8, size: u8, port: u16, count: u32) -> Result<Self, ExitError> {
        let direction = match direction as u32 {
            KVM_EXIT_IO_IN => Direction::In,
            KVM_EXIT_IO_OUT => Direction::Out,
            _ => return Err(ExitError::Direction { direction }),
        };
        let width = match size {
            1 => Width::Byte,
            2 => Width::Word,
            4 => Width::Dword,
            _ => return Err(ExitError::Size { size }),
        };
        if count == 0 {
            return Err(ExitError::Empty);
        }
        Ok(Self { direction, width, port, count, string: count > 1 })
    }

    /// Says that the guest's instruction is INS or OUTS. An exit of one element does not: without this it is taken for IN
    /// or OUT, unless its data shows that it is not.
    ///
    /// It matters where a device looks at [`PortAccess::insn`](crate::PortAccess::insn), or changes registers: an INS that is
    /// taken for IN then leaves its element in RAX too, and a REP OUTS that is taken for OUT goes on with the RCX and RSI that
    /// the device has left. (The guest is the only one to suffer.) A VMM with such a device decodes the guest's code at RIP
    /// ([`IoInsn::decode`](crate::IoInsn::decode)); RIP is at the instruction but for OUTS without REP.
    #[must_use]
    pub const fn of_string(self) -> Self {
        Self { string: true, ..self }
    }

    /// How many bytes of data there are.
    pub(super) const fn data_len(self) -> u64 {
        self.count as u64 * self.width.bytes() as u64
    }
}

/// The accesses that the last KVM_RUN asks for, and their data: of an OUT to be read, of an IN to be filled.
///
/// With kvm-ioctls, `run` is what `VcpuFd::get_kvm_run` gives.
///
/// # Errors
///
/// [`ExitError::NotIo`] after another exit, and those of [`KvmIo::new`].
///
/// # Safety
///
/// `run` is the start of a vCPU's shared memory, mapped as long as KVM_GET_VCPU_MMAP_SIZE says, as KVM_RUN has left it;
/// and nobody runs this vCPU, or has another reference to that memory, as long as the data is in use.
pub unsafe fn io_exit(run: &mut kvm_run) -> Result<(KvmIo, &mut [u8]), ExitError> {
    if run.exit_reason != KVM_EXIT_IO {
        return Err(ExitError::NotIo { exit_reason: run.exit_reason });
    }
    // SAFETY: the exit reason says that this is the member of the union that the kernel has filled.
    let io = unsafe { run.__bindgen_anon_1.io };
    let exit = KvmIo::new(io.direction, io.size, io.port, io.count)?;
    // The data is behind the structure, where a reference to the structure does not reach; the mapping does.
    let address = ptr::from_mut(run).expose_provenance() + io.data_offset as usize;
    // SAFETY: KVM keeps the data of an exit within the memory that it shares, and the caller keeps it mapped and to us.
    let data =
        unsafe { slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(address), exit.data_len() as usize) };
    Ok((exit, data))
}

/// Why an exit cannot be served: what is said of it does not fit together. A guest has no part in that; the VMM has mixed up
/// exits, registers or vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExitError {
    /// Another exit.
    #[error("the exit reason is {exit_reason}, and only {KVM_EXIT_IO}, KVM_EXIT_IO, asks for port accesses")]
    NotIo {
        /// `exit_reason` of `kvm_run`.
        exit_reason: u32,
    },

    /// Neither IN nor OUT.
    #[error(
        "direction {direction} is neither KVM_EXIT_IO_IN ({KVM_EXIT_IO_IN}) nor KVM_EXIT_IO_OUT ({KVM_EXIT_IO_OUT})"
    )]
    Direction {
        /// `direction` of `io`.
        direction: u8,
    },

    /// No port access has this width.
    #[error("an element of {size} bytes is no port access: there are those of 1, 2 and 4 bytes")]
    Size {
        /// `size` of `io`.
        size: u8,
    },

    /// No access at all.
    #[error("the count of accesses is 0, and KVM makes no exit for none")]
    Empty,

    /// The data is not that of the accesses.
    #[error(
        "{count} element{} of {} byte{} have {} bytes of data, and there are {len}: pass all of it, and no more",
        if *count == 1 { "" } else { "s" }, width.bytes(), if *width == Width::Byte { "" } else { "s" },
        *count as u64 * width.bytes() as u64
    )]
    Data {
        /// How many accesses there are.
        count: u32,
        /// The width of each.
        width: Width,
        /// Length of the data in bytes.
        len: usize,
    },

    /// The registers are not those of the exit.
    #[error(
        "the exit is for port {port:#06x}, which is not in DX ({dx:#06x}), and the instruction cannot have it from elsewhere: \
         pass the registers that KVM_GET_REGS gives at this exit"
    )]
    Registers {
        /// The port of the exit.
        port: u16,
        /// DX in the registers.
        dx: u16,
    },
}
