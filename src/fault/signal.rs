//! The list of arenas, and the signal handler that looks faults up in it (Linux).
#![allow(unsafe_code)] // a signal handler, and the machine context it is given

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};
use std::io;
use std::sync::Mutex;

use once_cell::sync::OnceCell;

use super::FaultMap;

/// One table in the list that the handler walks. Nodes are never freed, since a handler may be looking at one at any
/// time, but used again; `sequence` is odd while one changes.
struct Node {
    sequence: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    map: AtomicPtr<FaultMap>,
    next: *const Node,
}

// SAFETY: `next` is written before the node is published and never again; all else is atomic.
unsafe impl Sync for Node {}

static NODES: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());
static WRITERS: Mutex<()> = Mutex::new(());

/// Keeps a table known to the handler.
#[derive(Debug)]
pub(crate) struct Registration(&'static Node);

impl core::fmt::Debug for Node {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Node({:#x}..{:#x})", self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed))
    }
}

impl Registration {
    /// Makes `code` known to [`recover`], and, if `handle`, installs the handler that calls it.
    ///
    /// # Safety
    ///
    /// `map` stays valid and in place until the registration is dropped.
    pub unsafe fn new(code: &[u8], map: &FaultMap, handle: bool) -> io::Result<Self> {
        if handle {
            install()?;
        }
        let _one_writer = WRITERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let node = nodes().find(|node| node.map.load(Ordering::Relaxed).is_null()).unwrap_or_else(|| {
            let node: &'static Node = Box::leak(Box::new(Node {
                sequence: AtomicUsize::new(0),
                start: AtomicUsize::new(0),
                end: AtomicUsize::new(0),
                map: AtomicPtr::new(ptr::null_mut()),
                next: NODES.load(Ordering::Relaxed),
            }));
            NODES.store(ptr::from_ref(node).cast_mut(), Ordering::Release);
            node
        });
        let range = code.as_ptr_range();
        node.write(range.start as usize, range.end as usize, ptr::from_ref(map).cast_mut());
        Ok(Self(node))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _one_writer = WRITERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.0.write(0, 0, ptr::null_mut());
    }
}

impl Node {
    fn write(&self, start: usize, end: usize, map: *mut FaultMap) {
        self.sequence.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.map.store(map, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }

    /// The start of the arena and its map, if `rip` is in it. A node that changes meanwhile is not the one: the arena
    /// that this thread executes in stays registered.
    fn covers(&self, rip: usize) -> Option<(usize, *const FaultMap)> {
        let before = self.sequence.load(Ordering::Acquire);
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        let map = self.map.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let stable = before.is_multiple_of(2) && before == self.sequence.load(Ordering::Relaxed);
        (stable && (start..end).contains(&rip)).then_some((start, map.cast_const()))
    }
}

fn nodes() -> impl Iterator<Item = &'static Node> {
    let mut next = NODES.load(Ordering::Acquire).cast_const();
    core::iter::from_fn(move || {
        // SAFETY: nodes are leaked: the pointer is null or good for ever.
        let node: &'static Node = unsafe { next.as_ref() }?;
        next = node.next;
        Some(node)
    })
}

/// The signals in which faults of an I/O sequence arrive: #GP and #PF as the first, #SS, #AC and a file cut short under
/// a mapping as the second.
const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Who handled [`SIGNALS`] before.
static PREVIOUS: OnceCell<[libc::sigaction; SIGNALS.len()]> = OnceCell::new();

/// Installs the handler, once in the life of the process.
fn install() -> io::Result<()> {
    PREVIOUS
        .get_or_try_init(|| {
            let check = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
            let mut previous = [MaybeUninit::<libc::sigaction>::uninit(); SIGNALS.len()];
            for (signal, previous) in SIGNALS.into_iter().zip(&mut previous) {
                // SAFETY: asks for the action in force; the pointer is to room for one.
                check(unsafe { libc::sigaction(signal, ptr::null(), previous.as_mut_ptr()) })?;
            }
            // SAFETY: sigaction succeeded for each and filled it in.
            Ok(previous.map(|action| unsafe { action.assume_init() }))
        })
        .and_then(|_| {
            static INSTALLED: OnceCell<()> = OnceCell::new();
            INSTALLED.get_or_try_init(|| {
                for signal in SIGNALS {
                    // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
                    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
                    action.sa_sigaction = handler as *const () as usize;
                    // NODEFER: a handler of another signal may interrupt this one, and run stubs that fault.
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                    // SAFETY: the handler is a function of the signature that SA_SIGINFO asks for, and
                    // async-signal-safe.
                    if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            })
        })
        .copied()
}

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo and machine context to an SA_SIGINFO handler.
    if !unsafe { recover(info, context) } {
        // SAFETY: as above.
        unsafe { chain(signal, info, context) }
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
    if info.si_code <= 0 {
        return false; // sent by kill() or the like: not a fault, wherever the thread happens to be
    }
    let registers = &mut context.uc_mcontext.gregs;
    let rip = registers[libc::REG_RIP as usize] as usize;
    let Some((start, map)) = nodes().find_map(|node| node.covers(rip)) else {
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

/// Hands the signal to whoever handled it before.
///
/// # Safety
///
/// As for [`recover`].
unsafe fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.get().and_then(|all| all.iter().zip(SIGNALS).find(|(_, s)| *s == signal)).map(|(a, _)| a);
    let (action, flags) = previous.map_or((libc::SIG_DFL, 0), |previous| (previous.sa_sigaction, previous.sa_flags));
    // SAFETY: `info` is the kernel's.
    let is_fault = unsafe { (*info).si_code } > 0;
    if let Some(previous) = previous {
        // What the kernel would block while it runs. The mask of before comes back with the interrupted context.
        // SAFETY: async-signal-safe, on valid sets; nobody asks for the old one.
        unsafe {
            let mut mask = previous.sa_mask;
            if flags & libc::SA_NODEFER == 0 {
                libc::sigaddset(&mut mask, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &mask, ptr::null_mut());
        }
    }
    match action {
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // The default action, as for a fault that nobody handles: the instruction runs again without us, or, for a
            // signal that was sent, it is sent again.
            // SAFETY: sigaction and raise are async-signal-safe; all-zero is the default action.
            unsafe {
                let default: libc::sigaction = core::mem::zeroed();
                libc::sigaction(signal, &default, ptr::null_mut());
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
        action if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: an action with SA_SIGINFO is a function of this signature.
            let action: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { core::mem::transmute(action) };
            action(signal, info, context);
        }
        action => {
            // SAFETY: an action without SA_SIGINFO is a function of this signature.
            let action: extern "C" fn(c_int) = unsafe { core::mem::transmute(action) };
            action(signal);
        }
    }
}
