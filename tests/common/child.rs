//! Scenarios that change or end the process: run in one of their own, this test binary started again.

use std::env;
use std::process::{Command, Output};

const VARIABLE: &str = "IOEMUL_TEST_SCENARIO";

/// Runs `scenario` in a new process: the ignored test named `scenario`, which calls [`requested`].
pub fn run(scenario: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "scenario", "--nocapture", "--test-threads=1"]);
    command.env(VARIABLE, scenario).output().unwrap()
}

/// The scenario that this process was started for.
pub fn requested() -> Option<String> {
    let scenario = env::var(VARIABLE).ok()?;
    let no_core_file = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: sets a limit from a valid structure.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &no_core_file) };
    Some(scenario)
}
