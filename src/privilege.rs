//! The right to touch real ports from user space, held by guards: ask for it, do the I/O, drop the guard.
//!
//! [`IoPermission`] (ioperm) is the one to prefer: it opens the ports named and no others. [`IoPrivilegeLevel`] (iopl)
//! opens all of them. [`CpuAffinity`] keeps the thread on one CPU, for firmware that answers only there.
//!
//! Linux keeps all three *per thread*, so no guard can be sent to another thread. A thread started while a guard lives
//! inherits what the guard gave, and keeps it when the guard is dropped: start threads first.
#![allow(unsafe_code)] // four system calls that take integers and a pointer to a local array

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;
use std::{fmt, fs, io};

use crate::PortSet;

thread_local! {
    /// What each live [`IoPermission`] of this thread holds.
    static PERMISSIONS: RefCell<Vec<Rc<PortSet>>> = const { RefCell::new(Vec::new()) };
    /// How many [`IoPrivilegeLevel`]s this thread holds.
    static LEVELS: Cell<usize> = const { Cell::new(0) };
}

/// Permission for this thread to access some ports, until dropped (`ioperm`).
///
/// Permissions may overlap: a port stays open until the last guard for it is dropped. Only guards are counted. Ports
/// opened by other means (before `execve`, or by a direct call of `ioperm`) are closed along with a guard that names
/// them.
///
/// ```no_run
/// use ioemul::IoPermission;
/// let _rtc = IoPermission::acquire(0x70..=0x71)?;
/// # Ok::<(), ioemul::PrivilegeError>(())
/// ```
///
/// ```compile_fail,E0277
/// fn another_thread<T: Send>() {}
/// another_thread::<ioemul::IoPermission>(); // permissions are those of one thread
/// ```
#[derive(Debug)]
#[must_use = "the permission ends when the guard is dropped"]
#[doc(alias = "ioperm")]
pub struct IoPermission {
    ports: Rc<PortSet>,
}

impl IoPermission {
    /// Opens `ports`, a range or a [`PortSet`], to this thread. All of them or, on an error, none.
    ///
    /// # Errors
    ///
    /// [`PrivilegeError::NoPorts`] for an empty range or set; [`PrivilegeError::Unsupported`] where the kernel has no
    /// ioperm; [`PrivilegeError::Refused`] without the right to it; [`PrivilegeError::Os`] otherwise.
    pub fn acquire(ports: impl Into<PortSet>) -> Result<Self, PrivilegeError> {
        let ports = Rc::new(ports.into());
        if ports.is_empty() {
            return Err(PrivilegeError::NoPorts);
        }
        PERMISSIONS.with_borrow_mut(|live| live.push(ports.clone()));
        let guard = Self { ports }; // from here on, an error closes again what was opened
        ioperm(&guard.ports, true)?;
        Ok(guard)
    }

    /// The ports that this guard holds open.
    pub fn ports(&self) -> &PortSet {
        &self.ports
    }
}

impl Drop for IoPermission {
    fn drop(&mut self) {
        let unshared = PERMISSIONS.try_with(|live| {
            let mut live = live.borrow_mut();
            live.retain(|other| !Rc::ptr_eq(other, &self.ports));
            live.iter().fold((*self.ports).clone(), |rest, other| rest - &**other)
        });
        // Without the list the thread is ending, and its permissions with it. To close ports takes no privilege.
        if let Ok(unshared) = unshared {
            let _ = ioperm(&unshared, false);
        }
    }
}

/// Opens or closes every port of the set. Every port number is in range: the bitmap has 65,536 bits since Linux 2.6.8.
fn ioperm(ports: &PortSet, open: bool) -> Result<(), PrivilegeError> {
    for range in ports.ranges() {
        let (from, count) = (u64::from(*range.start()), range.len() as u64);
        // SAFETY: takes integers only. It touches no memory of this process.
        check(unsafe { libc::ioperm(from, count, open.into()) }).map_err(|error| denied("ioperm", error))?;
    }
    Ok(())
}

/// Permission for this thread to access *every* port, until dropped (`iopl(3)`). Prefer [`IoPermission`].
///
/// Guards may nest: the last one dropped sets level 0, whatever the level was before the first. Since Linux 5.5 the
/// level opens ports and does no more: CLI and STI stay without effect.
///
/// ```compile_fail,E0277
/// fn another_thread<T: Send>() {}
/// another_thread::<ioemul::IoPrivilegeLevel>(); // the level is that of one thread
/// ```
#[derive(Debug)]
#[must_use = "the permission ends when the guard is dropped"]
#[doc(alias("iopl", "IOPL"))]
pub struct IoPrivilegeLevel {
    this_thread: PhantomData<*const ()>,
}

impl IoPrivilegeLevel {
    /// Raises the I/O privilege level of this thread to 3.
    ///
    /// # Errors
    ///
    /// [`PrivilegeError::Unsupported`] where the kernel has no iopl; [`PrivilegeError::Refused`] without the right to
    /// it; [`PrivilegeError::Os`] otherwise.
    pub fn acquire() -> Result<Self, PrivilegeError> {
        iopl(3)?;
        LEVELS.set(LEVELS.get() + 1);
        Ok(Self { this_thread: PhantomData })
    }
}

impl Drop for IoPrivilegeLevel {
    fn drop(&mut self) {
        LEVELS.set(LEVELS.get() - 1);
        if LEVELS.get() == 0 {
            let _ = iopl(0); // to lower the level takes no privilege
        }
    }
}

fn iopl(level: i32) -> Result<(), PrivilegeError> {
    // SAFETY: takes an integer only. It touches no memory of this process.
    check(unsafe { libc::iopl(level) }).map_err(|error| denied("iopl", error))
}

/// Keeps this thread on one CPU until dropped, which gives back the CPUs that it had before.
///
/// Some firmware (Dell's SMM fan control, for one) answers only on CPU 0. Drop nested guards in reverse order, as
/// scopes do: each gives back what it found.
///
/// ```no_run
/// use ioemul::CpuAffinity;
/// let _on_cpu_0 = CpuAffinity::pin(0)?;
/// # Ok::<(), ioemul::PrivilegeError>(())
/// ```
///
/// ```compile_fail,E0277
/// fn another_thread<T: Send>() {}
/// another_thread::<ioemul::CpuAffinity>(); // affinity is that of one thread
/// ```
#[derive(Debug)]
#[must_use = "the thread may move again when the guard is dropped"]
#[doc(alias("sched_setaffinity", "taskset"))]
pub struct CpuAffinity {
    previous: CpuMask,
    this_thread: PhantomData<*const ()>,
}

/// A bit per CPU: 8,192, the most that an x86 kernel can be built for, where `cpu_set_t` has 1,024.
type CpuMask = [u64; 128];

impl CpuAffinity {
    /// Moves this thread to `cpu`, numbered from 0, and keeps it there. It is there when the call returns.
    ///
    /// # Errors
    ///
    /// [`PrivilegeError::NoSuchCpu`] for a CPU that this thread cannot run on; [`PrivilegeError::Os`] otherwise.
    pub fn pin(cpu: usize) -> Result<Self, PrivilegeError> {
        let previous = affinity().map_err(|source| PrivilegeError::Os { call: "sched_getaffinity", source })?;
        let mut only: CpuMask = [0; 128];
        *only.get_mut(cpu / 64).ok_or(PrivilegeError::NoSuchCpu { cpu })? = 1 << (cpu % 64);
        set_affinity(&only).map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) => PrivilegeError::NoSuchCpu { cpu },
            _ => PrivilegeError::Os { call: "sched_setaffinity", source },
        })?;
        Ok(Self { previous, this_thread: PhantomData })
    }
}

impl Drop for CpuAffinity {
    fn drop(&mut self) {
        let _ = set_affinity(&self.previous); // fails only if all those CPUs have gone offline meanwhile
    }
}

fn affinity() -> io::Result<CpuMask> {
    let mut mask: CpuMask = [0; 128];
    // SAFETY: the kernel writes at most the size given, which is that of the array; any bits make a valid array.
    check(unsafe { libc::sched_getaffinity(0, size_of::<CpuMask>(), (&raw mut mask).cast()) })?;
    Ok(mask)
}

fn set_affinity(mask: &CpuMask) -> io::Result<()> {
    // SAFETY: the kernel reads the size given, which is that of the array.
    check(unsafe { libc::sched_setaffinity(0, size_of::<CpuMask>(), (&raw const *mask).cast()) })
}

/// Why a guard was not given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegeError {
    /// The range or the set of ports is empty, such as `0x71..=0x70`.
    #[error("no ports to open: the range or set is empty")]
    NoPorts,
    /// The kernel has no such call (`ENOSYS`). No privilege helps; another kernel does.
    #[error("this kernel has no {call} (ENOSYS): it was built without CONFIG_X86_IOPL_IOPERM")]
    Unsupported {
        /// `ioperm` or `iopl`.
        call: &'static str,
    },
    /// The kernel has the call and refused it (`EPERM`).
    #[error("{call} was refused (EPERM): {reason}")]
    Refused {
        /// `ioperm` or `iopl`.
        call: &'static str,
        /// What could be found out about why.
        reason: Refusal,
    },
    /// The CPU does not exist, is offline, or is outside the thread's cpuset.
    #[error("this thread cannot run on CPU {cpu}: there is none, or it is offline or outside the cpuset")]
    NoSuchCpu {
        /// Number of the CPU.
        cpu: usize,
    },
    /// Any other failure of a system call.
    #[error("{call} failed")]
    Os {
        /// Name of the call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// What a failure of ioperm or iopl means.
fn denied(call: &'static str, source: io::Error) -> PrivilegeError {
    match source.raw_os_error() {
        Some(libc::ENOSYS) => PrivilegeError::Unsupported { call },
        Some(libc::EPERM) => PrivilegeError::Refused { call, reason: Refusal::find() },
        _ => PrivilegeError::Os { call, source },
    }
}

/// The two things that a kernel asks for before it opens a port, as far as this thread can see them.
///
/// The message states both, and how to look for oneself where one could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// Whether the thread has CAP_SYS_RAWIO in effect (`CapEff` in `/proc/thread-self/status`).
    pub capable: Option<bool>,
    /// Whether the kernel is locked down, as it often is under Secure Boot (`/sys/kernel/security/lockdown`, which may
    /// be readable by root alone, and shows `[integrity]` or `[confidentiality]` if so).
    pub locked_down: Option<bool>,
}

impl Refusal {
    fn find() -> Self {
        let read = |path| fs::read_to_string(path).ok();
        Self {
            capable: read("/proc/thread-self/status").as_deref().and_then(has_rawio),
            locked_down: read("/sys/kernel/security/lockdown").as_deref().and_then(is_locked_down),
        }
    }
}

/// Reads CAP_SYS_RAWIO, capability 17, from the text of a `status` file.
fn has_rawio(status: &str) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(mask.trim(), 16).ok()? >> 17 & 1 == 1)
}

/// Reads the mode in brackets: `none [integrity] confidentiality`. Both modes beyond `none` close the ports.
fn is_locked_down(lockdown: &str) -> Option<bool> {
    let mode = lockdown.split_once('[')?.1.split_once(']')?.0;
    Some(mode != "none")
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.capable {
            Some(true) => "this thread has CAP_SYS_RAWIO, ",
            Some(false) => "this thread lacks CAP_SYS_RAWIO (run as root or grant it with setcap), ",
            None => "this thread may lack CAP_SYS_RAWIO (see CapEff in /proc/thread-self/status), ",
        })?;
        f.write_str(match (self.capable, self.locked_down) {
            (Some(true), Some(true)) => "but the kernel is locked down (turn off Secure Boot or the lockdown= option)",
            (_, Some(true)) => "and the kernel is locked down (turn off Secure Boot or the lockdown= option)",
            (Some(true), Some(false)) => {
                "and the kernel is not locked down: look for a seccomp filter, a security module or a user namespace"
            }
            (_, Some(false)) => "and the kernel is not locked down",
            (_, None) => "and the kernel may be locked down (see /sys/kernel/security/lockdown)",
        })
    }
}

/// A system call's result, with `errno` still as the call left it, as a `Result`.
fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::arch::asm;
    use std::error::Error;

    use super::*;

    /// Whether this thread may read `port`; the access itself decides, since Linux does not tell.
    fn may_read(port: u16) -> bool {
        // In a child process, which inherits the permissions and may die of #GP.
        // SAFETY: the child only executes one IN and exits.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                asm!("in al, dx", in("dx") port, out("al") _, options(nomem, nostack));
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            status == 0
        }
    }

    /// Whether this is a machine for the test: one whose kernel gives the guard. One that refuses must do so in order.
    fn granted<T>(guard: Result<T, PrivilegeError>, call: &str) -> Option<T> {
        match guard {
            Ok(guard) => Some(guard),
            Err(error @ PrivilegeError::Unsupported { .. }) => {
                let expected =
                    format!("this kernel has no {call} (ENOSYS): it was built without CONFIG_X86_IOPL_IOPERM");
                assert_eq!(error.to_string(), expected);
                None
            }
            Err(error @ PrivilegeError::Refused { .. }) => {
                assert!(error.to_string().starts_with(&format!("{call} was refused (EPERM): this thread ")), "{error}");
                None
            }
            Err(error) => panic!("{error}: {:?}", error.source()),
        }
    }

    #[test]
    fn a_port_stays_open_until_its_last_guard_is_dropped() {
        let Some(low) = granted(IoPermission::acquire(0x80..=0x81), "ioperm") else { return };
        assert!(may_read(0x80) && may_read(0x81) && !may_read(0x82));
        let high = IoPermission::acquire("0x81-0x82,0x84".parse::<PortSet>().unwrap()).unwrap();
        assert!(may_read(0x80) && may_read(0x81) && may_read(0x82) && !may_read(0x83) && may_read(0x84));
        drop(low);
        assert!(!may_read(0x80) && may_read(0x81) && may_read(0x82));
        drop(high);
        assert!(!may_read(0x81) && !may_read(0x82) && !may_read(0x84));
        let _last = IoPermission::acquire(0xffff..=0xffff).unwrap();
        assert!(may_read(0xffff));
    }

    #[test]
    fn the_level_lasts_until_its_last_guard_is_dropped() {
        let Some(outer) = granted(IoPrivilegeLevel::acquire(), "iopl") else { return };
        let inner = IoPrivilegeLevel::acquire().unwrap();
        drop(outer);
        assert!(may_read(0x80));
        drop(inner);
        assert!(!may_read(0x80));
    }

    #[test]
    fn nothing_is_left_behind_by_a_refusal() {
        let _ = IoPermission::acquire(0x80..=0x80);
        assert!(PERMISSIONS.with_borrow(Vec::is_empty));
        let _ = IoPrivilegeLevel::acquire();
        assert_eq!(LEVELS.get(), 0);
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)] // the point of the test
    fn no_ports() {
        let message = "no ports to open: the range or set is empty";
        assert_eq!(IoPermission::acquire(0x71..=0x70).unwrap_err().to_string(), message);
        assert_eq!(IoPermission::acquire(PortSet::none()).unwrap_err().to_string(), message);
    }

    #[test]
    fn pinned_and_released() {
        let before = affinity().unwrap();
        let allowed = |cpu: usize| before[cpu / 64] >> (cpu % 64) & 1 == 1;
        let cpu = (0..8192).rfind(|&cpu| allowed(cpu)).unwrap();
        {
            let _pinned = CpuAffinity::pin(cpu).unwrap();
            // SAFETY: takes nothing and touches no memory.
            assert_eq!(unsafe { libc::sched_getcpu() }, cpu as i32);
            assert_eq!(affinity().unwrap().iter().map(|word| word.count_ones()).sum::<u32>(), 1);
        }
        assert_eq!(affinity().unwrap(), before);
    }

    #[test]
    fn a_cpu_that_is_not_there() {
        let before = affinity().unwrap();
        for cpu in [8191, 8192, usize::MAX] {
            assert_eq!(
                CpuAffinity::pin(cpu).unwrap_err().to_string(),
                format!("this thread cannot run on CPU {cpu}: there is none, or it is offline or outside the cpuset")
            );
        }
        assert_eq!(affinity().unwrap(), before);
    }

    #[test]
    fn errno_tells_the_cases_apart() {
        let error = |errno| denied("ioperm", io::Error::from_raw_os_error(errno));
        assert!(matches!(error(libc::ENOSYS), PrivilegeError::Unsupported { call: "ioperm" }));
        assert!(matches!(error(libc::EPERM), PrivilegeError::Refused { call: "ioperm", .. }));
        let other = error(libc::ENOMEM);
        assert_eq!(other.to_string(), "ioperm failed");
        let text = io::Error::from_raw_os_error(libc::ENOMEM).to_string(); // the C library's
        assert_eq!(other.source().unwrap().to_string(), text);
    }

    #[test]
    fn a_refusal_says_what_is_known() {
        let message = |capable, locked_down| {
            PrivilegeError::Refused { call: "iopl", reason: Refusal { capable, locked_down } }.to_string()
        };
        assert_eq!(
            message(Some(false), Some(false)),
            "iopl was refused (EPERM): this thread lacks CAP_SYS_RAWIO (run as root or grant it with setcap), and the \
             kernel is not locked down"
        );
        assert_eq!(
            message(Some(false), None),
            "iopl was refused (EPERM): this thread lacks CAP_SYS_RAWIO (run as root or grant it with setcap), and the \
             kernel may be locked down (see /sys/kernel/security/lockdown)"
        );
        assert_eq!(
            message(Some(false), Some(true)),
            "iopl was refused (EPERM): this thread lacks CAP_SYS_RAWIO (run as root or grant it with setcap), and the \
             kernel is locked down (turn off Secure Boot or the lockdown= option)"
        );
        assert_eq!(
            message(Some(true), Some(true)),
            "iopl was refused (EPERM): this thread has CAP_SYS_RAWIO, but the kernel is locked down (turn off Secure Boot \
             or the lockdown= option)"
        );
        assert_eq!(
            message(Some(true), Some(false)),
            "iopl was refused (EPERM): this thread has CAP_SYS_RAWIO, and the kernel is not locked down: look for a \
             seccomp filter, a security module or a user namespace"
        );
        assert_eq!(
            message(None, None),
            "iopl was refused (EPERM): this thread may lack CAP_SYS_RAWIO (see CapEff in /proc/thread-self/status), and \
             the kernel may be locked down (see /sys/kernel/security/lockdown)"
        );
    }

    #[test]
    fn capability_and_lockdown_files() {
        assert_eq!(has_rawio("Name:\tx\nCapEff:\t0000000000020000\nCapBnd:\t0\n"), Some(true));
        assert_eq!(has_rawio("CapEff:\t000001fffffdffff\n"), Some(false));
        assert_eq!(has_rawio("CapBnd:\t0000000000020000\n"), None);
        assert_eq!(is_locked_down("[none] integrity confidentiality\n"), Some(false));
        assert_eq!(is_locked_down("none [integrity] confidentiality\n"), Some(true));
        assert_eq!(is_locked_down("none integrity [confidentiality]\n"), Some(true));
        assert_eq!(is_locked_down(""), None);
        assert!(Refusal::find().capable.is_some());
    }
}
