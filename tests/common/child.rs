//! Scenarios that change or end the process: run in one of their own, this test binary started again.

use std::ffi::c_int;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

const VARIABLE: &str = "IOEMUL_TEST_SCENARIO";

/// Runs `scenario` in a new process: the ignored test named `scenario`, which calls [`requested`].
pub fn run(scenario: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "scenario", "--nocapture", "--test-threads=1"]);
    let mut child = command.env(VARIABLE, scenario).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + duration() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill(); // one that hangs; for any other it is too late
    child.wait_with_output().unwrap()
}

/// Runs `scenario`, which a signal is to end.
#[track_caller]
pub fn killed_by(signal: c_int, scenario: &str) -> Output {
    let output = run(scenario);
    assert_eq!(output.status.signal(), Some(signal), "{scenario}: {output:?}");
    output
}

/// Runs `scenario`, which is to end with this code, and repeats what it has printed.
#[track_caller]
pub fn exits_with(code: c_int, scenario: &str) {
    let output = run(scenario);
    assert_eq!(output.status.code(), Some(code), "{scenario}: {output:?}");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
}

/// For how long tests run that could run for ever: IOEMUL_TEST_SECONDS, 2 unless told otherwise.
pub fn duration() -> Duration {
    let seconds = env::var("IOEMUL_TEST_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// The scenario that this process was started for.
pub fn requested() -> Option<String> {
    let scenario = env::var(VARIABLE).ok()?;
    let no_core_file = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: sets a limit from a valid structure.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &no_core_file) };
    Some(scenario)
}
