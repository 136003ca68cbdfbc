//! Runs the command on a terminal: one end of a pseudoterminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// What is at the end of the question that the command asks.
const QUESTION: &str = "[y/N] ";

/// Runs a command on a terminal of so many columns, and answers when it asks. Returns the exit status and all that the terminal
/// showed.
pub fn on_terminal(command: &mut Command, columns: u16, answer: &str) -> (Option<i32>, String) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    tcsetwinsize(&terminal, Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let end: OwnedFd = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let stdio = || Stdio::from(end.try_clone().unwrap());
    let mut child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
    // No end of the terminal is left here: what the child leaves is the end of what is read.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(end);
    let mut terminal = File::from(terminal);
    let (mut shown, mut is_answered) = (Vec::new(), false);
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = terminal.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..length]);
        if !is_answered && String::from_utf8_lossy(&shown).ends_with(QUESTION) {
            terminal.write_all(answer.as_bytes()).unwrap();
            is_answered = true;
        }
    }
    let status = child.wait().unwrap();
    (status.code(), String::from_utf8_lossy(&shown).replace("\r\n", "\n"))
}
