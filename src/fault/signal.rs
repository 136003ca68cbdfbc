//! The signal handler, and its place among those of others (Linux).
#![allow(unsafe_code)] // a signal handler, and the machine context it is given

use core::ffi::{c_int, c_void};
use core::mem::{offset_of, zeroed};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::io;
use std::sync::Mutex;

use super::index;
use super::pin::Pin;

/// The signals in which faults of an I/O instruction arrive: #GP and #PF as the first, #SS, #AC and a file cut short
/// under a mapping as the second.
const SIGNALS: [Signal; 2] = [Signal(0), Signal(1)];

#[derive(Clone, Copy, PartialEq, Eq)]
struct Signal(usize);

impl Signal {
    fn of(number: c_int) -> Option<Self> {
        SIGNALS.into_iter().find(|signal| signal.number() == number)
    }

    fn number(self) -> c_int {
        [libc::SIGSEGV, libc::SIGBUS][self.0]
    }

    fn name(self) -> &'static str {
        ["SIGSEGV", "SIGBUS"][self.0]
    }

    /// Whether the signal is the CPU's exception at the instruction that RIP is at. One that was sent is not, wherever
    /// the thread happens to be, nor is a machine check: of those the program has to know, and not only the stub.
    fn is_fault(self, si_code: c_int) -> bool {
        const SI_KERNEL: c_int = 0x80;
        const SEGV: [c_int; 5] = [1, 2, 3, 4, SI_KERNEL]; // MAPERR, ACCERR, BNDERR, PKUERR; #GP
        const BUS: [c_int; 4] = [1, 2, 3, SI_KERNEL]; // ADRALN, ADRERR, OBJERR; #SS
        match self.number() {
            libc::SIGSEGV => SEGV.contains(&si_code),
            _ => BUS.contains(&si_code),
        }
    }
}

/// So many handlers of others can be installed on top of this crate's and be put below it again.
const LEVELS: usize = 4;

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// The handler, once for each level. When another handler has displaced one of these, the next level is installed on
/// top of that: it passes on to the other handler, which may pass on to the one that it found, which passes on to its
/// own predecessor. With one handler for all, the two would call each other for ever.
static HANDLERS: [Handler; LEVELS] = [handler::<0>, handler::<1>, handler::<2>, handler::<3>];

/// Whom each level has replaced. What these point to is never freed: a handler may be looking at it at any time.
static PREVIOUS: [[AtomicPtr<Previous>; LEVELS]; SIGNALS.len()] =
    [const { [const { AtomicPtr::new(ptr::null_mut()) }; LEVELS] }; SIGNALS.len()];

struct Previous {
    action: libc::sigaction,
    /// It asked for SA_RESETHAND, and has had its signal.
    spent: AtomicBool,
}

/// Who installs and uninstalls.
struct Installed {
    /// How many levels are in use, for each signal.
    levels: [usize; SIGNALS.len()],
    /// All that [`PREVIOUS`] has pointed to: a leak checker finds them here.
    replaced: Vec<&'static Previous>,
    /// The shared object that the handler is in must not be unmapped meanwhile.
    pin: Option<Pin>,
}

static INSTALLED: Mutex<Installed> =
    Mutex::new(Installed { levels: [0; SIGNALS.len()], replaced: Vec::new(), pin: None });

/// Why the fault handler is not where it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandlerError {
    /// The system refused to change or to tell the action of a signal.
    #[error("sigaction of {signal}: {source}")]
    System {
        /// SIGSEGV or SIGBUS.
        signal: &'static str,
        /// What it says.
        source: io::Error,
    },
    /// Other handlers have been installed on top of this crate's too often.
    #[error(
        "handlers of {signal} have been installed on top of this crate's {LEVELS} times: install them before the first table is \
         built, or build tables without fault recovery and call `fault::recover` from your handler"
    )]
    Displaced {
        /// SIGSEGV or SIGBUS.
        signal: &'static str,
    },
    /// Another handler was installed on top of this crate's, and may call it.
    #[error(
        "another handler of {signal} was installed on top of this crate's and may call it: put back first what that one has \
         replaced"
    )]
    InUse {
        /// SIGSEGV or SIGBUS.
        signal: &'static str,
    },
}

/// Installs the handler; puts it on top again if another one has displaced it. What building a table with
/// [recovery](crate::StubTableBuilder::fault_recovery) does, where the table touches hardware.
///
/// # Errors
///
/// [`HandlerError`]; the handlers are then as they were, or one of the two signals has ours.
pub fn install() -> Result<(), HandlerError> {
    let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if installed.levels == [0; SIGNALS.len()] {
        installed.pin = Pin::new(HANDLERS[0] as *const c_void);
    }
    SIGNALS.into_iter().try_for_each(|signal| install_for(signal, &mut installed))
}

fn install_for(signal: Signal, installed: &mut Installed) -> Result<(), HandlerError> {
    let found = action(signal)?;
    if level_of(&found).is_some() {
        return Ok(());
    }
    let level = installed.levels[signal.0];
    if level == LEVELS {
        return Err(HandlerError::Displaced { signal: signal.name() });
    }
    installed.has_replaced(signal, level, found);
    // SAFETY: all-zero is a valid sigaction; sigfillset completes it.
    let mut ours = unsafe {
        let mut action: libc::sigaction = zeroed();
        // Nothing else runs on the stack that this one runs on until it has returned.
        libc::sigfillset(&mut action.sa_mask);
        action
    };
    ours.sa_sigaction = HANDLERS[level] as usize;
    ours.sa_flags = libc::SA_SIGINFO
        | match found.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => libc::SA_ONSTACK | libc::SA_RESTART,
            // On the stack on which the other would have run, since it is called from here.
            _ => found.sa_flags & (libc::SA_ONSTACK | libc::SA_RESTART),
        };
    let found = exchange(signal, &ours)?;
    installed.levels[signal.0] += 1;
    // Whoever was installed in between is the one that was really replaced.
    installed.has_replaced(signal, level, found);
    Ok(())
}

/// Whether the handler is in place, on top of all others, for SIGSEGV and SIGBUS.
pub fn is_installed() -> bool {
    SIGNALS.into_iter().all(|signal| action(signal).is_ok_and(|action| level_of(&action).is_some()))
}

/// Takes the handler out again: the actions of before it are in force. Tables stay usable, but a fault in one goes to
/// those; the next table that is built with recovery, or [`install`], puts the handler back.
///
/// For a library that is about to be unloaded. (One that is closed without this stays in memory: the handler holds a
/// reference to the shared object that it is in.) No thread may be in one of its stubs by then.
///
/// # Errors
///
/// [`HandlerError::InUse`] when another handler lies on top, which may call this crate's: that one has to be taken out
/// first.
pub fn uninstall() -> Result<(), HandlerError> {
    let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    SIGNALS.into_iter().try_for_each(|signal| uninstall_for(signal, &mut installed.levels[signal.0]))?;
    installed.pin = None;
    Ok(())
}

fn uninstall_for(signal: Signal, levels: &mut usize) -> Result<(), HandlerError> {
    let in_use = Err(HandlerError::InUse { signal: signal.name() });
    let found = action(signal)?;
    let Some(level) = level_of(&found) else {
        return if *levels == 0 { Ok(()) } else { in_use };
    };
    let replaced = exchange(signal, &previous(signal, level).map_or(DEFAULT, Previous::action))?;
    if level_of(&replaced) != Some(level) {
        exchange(signal, &replaced)?; // somebody was faster
        return in_use;
    }
    *levels = level;
    if level == 0 { Ok(()) } else { in_use }
}

/// The action in force.
fn action(signal: Signal) -> Result<libc::sigaction, HandlerError> {
    change(signal, ptr::null())
}

/// Puts an action in force, and gives the one of before, in one step.
fn exchange(signal: Signal, action: &libc::sigaction) -> Result<libc::sigaction, HandlerError> {
    change(signal, action)
}

fn change(signal: Signal, new: *const libc::sigaction) -> Result<libc::sigaction, HandlerError> {
    let mut old = DEFAULT;
    // SAFETY: null, or an action whose handler has the signature that its flags say; `old` is room for one.
    match unsafe { libc::sigaction(signal.number(), new, &mut old) } {
        0 => Ok(old),
        _ => Err(HandlerError::System { signal: signal.name(), source: io::Error::last_os_error() }),
    }
}

/// The default action, without flags.
// SAFETY: all-zero is a valid sigaction, and SIG_DFL is 0.
const DEFAULT: libc::sigaction = unsafe { zeroed() };

fn level_of(action: &libc::sigaction) -> Option<usize> {
    HANDLERS.iter().position(|handler| *handler as usize == action.sa_sigaction)
}

fn previous(signal: Signal, level: usize) -> Option<&'static Previous> {
    // SAFETY: null, or a leaked box.
    unsafe { PREVIOUS.get(signal.0)?.get(level)?.load(Ordering::Acquire).as_ref() }
}

impl Installed {
    /// Writes down whom a level has replaced.
    fn has_replaced(&mut self, signal: Signal, level: usize, action: libc::sigaction) {
        let same = |previous: &Previous| {
            let other = &previous.action;
            (other.sa_sigaction, other.sa_flags) == (action.sa_sigaction, action.sa_flags)
                && kernel_mask(&other.sa_mask) == kernel_mask(&action.sa_mask)
                && !previous.spent.load(Ordering::Relaxed)
        };
        if !previous(signal, level).is_some_and(same) {
            let previous: &Previous = Box::leak(Box::new(Previous { action, spent: AtomicBool::new(false) }));
            PREVIOUS[signal.0][level].store(ptr::from_ref(previous).cast_mut(), Ordering::Release);
            self.replaced.push(previous);
        }
    }
}

impl Previous {
    /// What is to be put back: as the kernel has reset it, if it was to be reset.
    fn action(&self) -> libc::sigaction {
        if self.spent.load(Ordering::Relaxed) { DEFAULT } else { self.action }
    }
}

extern "C" fn handler<const LEVEL: usize>(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo and machine context to an SA_SIGINFO handler.
    if !unsafe { recover(info, context) } {
        // SAFETY: as above.
        unsafe { chain(LEVEL, signal, info, context) }
    }
}

/// Resumes a fault in a stub's I/O sequence: the core of the handler, for programs that have one of their own. Returns
/// false, having changed nothing, if the fault is not a stub's.
///
/// Async-signal-safe; tables built without [recovery](crate::StubTableBuilder::fault_recovery) are known here too.
///
/// # Safety
///
/// To be called from a handler of SIGSEGV or SIGBUS with SA_SIGINFO, with the arguments it was given.
pub unsafe fn recover(info: *const libc::siginfo_t, context: *mut c_void) -> bool {
    // SAFETY: the caller passes on what the kernel gave it.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    if !Signal::of(info.si_signo).is_some_and(|signal| signal.is_fault(info.si_code)) {
        return false;
    }
    let registers = &mut context.uc_mcontext.gregs;
    let rip = registers[libc::REG_RIP as usize] as usize;
    let Some((start, map)) = index::find(rip) else {
        return false;
    };
    // SAFETY: this thread executes in the arena, whose table is therefore alive, and its map with it.
    let map = unsafe { &*map };
    let Some(pad) = map.fixup(rip - start) else {
        return false;
    };
    let vector = registers[libc::REG_TRAPNO as usize] as u8;
    let error_code = registers[libc::REG_ERR as usize] as u16;
    // The pads leave these two alone.
    registers[libc::REG_RDX as usize] = i64::from(vector) | i64::from(error_code) << 8;
    registers[libc::REG_R8 as usize] = if vector == 14 { registers[libc::REG_CR2 as usize] } else { 0 };
    registers[libc::REG_RIP as usize] = (start + pad) as i64;
    true
}

/// Hands the signal to whoever handled it before, as the kernel would have.
///
/// # Safety
///
/// As for [`recover`].
unsafe fn chain(level: usize, number: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(signal) = Signal::of(number) else { return };
    // SAFETY: `info` is the kernel's.
    let is_fault = signal.is_fault(unsafe { (*info).si_code });
    let resets = |previous: &Previous| {
        previous.action.sa_flags & libc::SA_RESETHAND != 0 && previous.spent.swap(true, Ordering::Relaxed)
    };
    let action = match previous(signal, level) {
        Some(previous) if is_handler(&previous.action) && !resets(previous) => previous.action,
        Some(previous) if !is_handler(&previous.action) => previous.action,
        _ => DEFAULT,
    };
    match action.sa_sigaction {
        libc::SIG_IGN if !is_fault => {}
        // A fault cannot be ignored.
        // SAFETY: as for this function.
        libc::SIG_DFL | libc::SIG_IGN => unsafe { default(signal, info) },
        // SAFETY: as for this function.
        _ => unsafe { call(&action, number, info, context) },
    }
}

fn is_handler(action: &libc::sigaction) -> bool {
    !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
}

/// The default action: the instruction runs again without us; a signal that the instruction does not raise is sent
/// again, and arrives when this handler has returned.
///
/// # Safety
///
/// As for [`recover`].
unsafe fn default(signal: Signal, info: *const libc::siginfo_t) {
    // SAFETY: sigaction and raise are async-signal-safe; `info` is the kernel's.
    unsafe {
        libc::sigaction(signal.number(), &DEFAULT, ptr::null_mut());
        if !signal.is_fault((*info).si_code) {
            libc::raise(signal.number());
        }
    }
}

/// Calls a handler with the signals blocked that the kernel would have blocked: those of the interrupted code, those
/// that the handler asked for, and its own unless SA_NODEFER is set. The interrupted code's come back with its context.
///
/// # Safety
///
/// As for [`recover`]; `action` has a handler.
unsafe fn call(action: &libc::sigaction, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's context; of the mask in it, the kernel has written the first eight bytes.
    let interrupted = unsafe {
        let mask = context.byte_add(offset_of!(libc::ucontext_t, uc_sigmask));
        mask.cast::<u64>().read_unaligned()
    };
    let own = if action.sa_flags & libc::SA_NODEFER == 0 { 1 << (signal - 1) } else { 0 };
    let mask = set(interrupted | kernel_mask(&action.sa_mask) | own);
    // SAFETY: async-signal-safe, on a valid set; nobody asks for the old one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &mask, ptr::null_mut()) };
    if action.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: an action with SA_SIGINFO is a function of this signature.
        let action: Handler = unsafe { core::mem::transmute(action.sa_sigaction) };
        action(signal, info, context);
    } else {
        // SAFETY: an action without SA_SIGINFO is a function of this signature.
        let action: extern "C" fn(c_int) = unsafe { core::mem::transmute(action.sa_sigaction) };
        action(signal);
    }
}

/// The 64 signals that there are, of a set that has room for more.
fn kernel_mask(set: &libc::sigset_t) -> u64 {
    // SAFETY: the set is longer than that, and its first word has signals 1 to 64.
    unsafe { ptr::from_ref(set).cast::<u64>().read_unaligned() }
}

/// The inverse.
fn set(signals: u64) -> libc::sigset_t {
    // SAFETY: all-zero is a valid set, and its first word has signals 1 to 64.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        ptr::from_mut(&mut set).cast::<u64>().write_unaligned(signals);
        set
    }
}
