//! Signals at short intervals, for which the tick of a profiling timer is too coarse.

use std::ffi::c_int;
use std::time::Duration;
use std::{mem, ptr};

/// Installs `handler` and sends the process its signal at intervals of `period`: any thread gets it, at any instruction.
pub fn send_every(period: Duration, signal: c_int, handler: extern "C" fn(c_int)) {
    let period = libc::timespec { tv_sec: 0, tv_nsec: period.subsec_nanos().into() };
    let times = libc::itimerspec { it_interval: period, it_value: period };
    // SAFETY: a handler of that signature, and structures that are valid when they are all zero.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        (action.sa_sigaction, action.sa_flags) = (handler as *const () as usize, libc::SA_RESTART);
        assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
        let (mut event, mut timer): (libc::sigevent, libc::timer_t) = (mem::zeroed(), mem::zeroed());
        (event.sigev_notify, event.sigev_signo) = (libc::SIGEV_SIGNAL, signal);
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
        assert_eq!(libc::timer_settime(timer, 0, &times, ptr::null_mut()), 0);
    }
}
