//! Logs of scans: cut off, killed, resumed.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ioemul::trace::{RecordedError, Trace};

use crate::common::{Dir, Run, words};

/// A code and a data byte.
type Smi = (u8, u8);

/// How often each SMI was sent, and which of them did not return.
fn sent(text: &str) -> (BTreeMap<Smi, usize>, Vec<Smi>) {
    let trace = Trace::read(text.as_bytes()).unwrap();
    let (mut counts, mut lost, mut data) = (BTreeMap::new(), Vec::new(), None);
    for record in trace.records() {
        let al = record.before.rax as u8;
        if record.port() == 0xb3 {
            data = Some(al);
            continue;
        }
        let smi = (al, data.expect("the status port comes first"));
        *counts.entry(smi).or_default() += 1;
        if record.error == Some(RecordedError::DidNotReturn) {
            lost.push(smi);
        }
    }
    (counts, lost)
}

#[track_caller]
fn resume(dir: &Dir, scan: &str) -> Run {
    dir.bus(&format!("smi scan --log l {scan} --resume --json"))
}

/// Each code with each data byte, once.
#[track_caller]
fn is_complete(dir: &Dir, codes: std::ops::RangeInclusive<u8>, data: std::ops::RangeInclusive<u8>) -> Vec<Smi> {
    let (counts, lost) = sent(&dir.read("l"));
    let all: BTreeMap<_, _> = codes.flat_map(|code| data.clone().map(move |data| ((code, data), 1))).collect();
    assert_eq!(counts, all);
    lost
}

#[test]
fn a_log_that_is_there_is_not_overwritten() {
    let dir = Dir::new();
    dir.write("l", "precious");
    dir.bus("smi scan --log l").exits(2).complains("--resume");
    assert_eq!(dir.read("l"), "precious");
}

#[test]
fn the_log_and_the_recording_are_two_files() {
    let dir = Dir::new();
    dir.bus("--record l smi scan --log l --codes 0x42").exits(2).complains("--record");
    dir.bus("--record ./l smi scan --log l --codes 0x42").exits(2).complains("--record");
    assert_eq!(dir.files(), [""; 0]);
}

#[test]
fn a_finished_log_says_so_and_nothing_is_sent() {
    let dir = Dir::new();
    let scan = "smi scan --log l --codes 0x40-0x47";
    dir.bus(scan).ok();
    let text = dir.read("l");
    let run = dir.bus(&format!("{scan} --resume")).ok();
    assert!(run.stderr.contains("nothing is left to send"), "{run:#?}");
    assert!(run.stdout.contains("8 sent, 1 changed registers or flags: 0x42"), "{run:#?}");
    let summary = resume(&dir, "--codes 0x40-0x47").ok().object();
    assert_eq!(summary["scan"]["sent"], 8);
    assert_eq!(dir.read("l"), text);
}

#[test]
fn a_scan_goes_on_with_its_own_arguments_only() {
    let dir = Dir::new();
    let scan = "--codes 0x40-0x47 --data 0x01-0x02 --fill random:7 rbx=5";
    dir.bus(&format!("smi scan --log l {scan}")).ok();
    let cut: Vec<_> = dir.read("l").lines().take(10).map(|line| format!("{line}\n")).collect();
    let cut = cut.concat();
    for other in [
        "--codes 0x41-0x47 --data 0x01-0x02 --fill random:7 rbx=5",
        "--codes 0x40-0x47 --data 0x02-0x03 --fill random:7 rbx=5",
        "--codes 0x40-0x47 --data 0x01-0x02 --fill random:8 rbx=5",
        "--codes 0x40-0x47 --data 0x01-0x02 --fill zero rbx=5",
        "--codes 0x40-0x47 --data 0x01-0x02 rbx=5",
        "--codes 0x40-0x47 --data 0x01-0x02 --fill random:7 rbx=6",
        "--codes 0x40-0x47 --data 0x01-0x02 --fill random:7",
        "--codes 0x40 --data 0x01 --fill random:7 rbx=5",
    ] {
        dir.write("l", &cut);
        let error = resume(&dir, other).exits(2).error("usage");
        assert!(error["message"].as_str().unwrap().contains("same codes, data, registers and fill"), "{error}");
        assert_eq!(dir.read("l"), cut, "{other}");
    }
    resume(&dir, scan).ok();
    is_complete(&dir, 0x40..=0x47, 1..=2);
}

/// Half of a scan on one machine and half on another would be a log of neither.
#[test]
fn a_scan_goes_on_where_it_began_only() {
    let dir = Dir::new();
    dir.bus("smi scan --log l --codes 0x40-0x47").ok();
    let cut = dir.read("l").lines().take(9).map(|line| format!("{line}\n")).collect::<String>();
    dir.write("l", &cut);
    dir.write("fadt", ioemul::Fadt::new(0xb2, 0xf0, 0xf1).to_table());
    let line = "--on hardware --cpu 9999 --fadt fadt smi scan --log l --codes 0x40-0x47 --resume --yes";
    dir.run(line).exits(2).complains("bus:pc");
    dir.write("l", cut.replacen("\"on\":\"bus:pc\"", "\"on\":\"hardware\"", 1));
    resume(&dir, "--codes 0x40-0x47").exits(2);
}

#[test]
fn what_is_no_log_is_not_resumed_and_left_as_it_is() {
    let dir = Dir::new();
    dir.bus("--record other in 0x71").ok();
    let other = dir.read("other");
    for text in ["", "precious", &other, "{\"ioemul-trace\":3}\n", "{\"ioemul-trace\":1}\n"] {
        dir.write("l", text);
        let run = resume(&dir, "");
        assert!(matches!(run.code, Some(1 | 2)), "{run:#?}");
        assert_eq!(dir.read("l"), text);
    }
}

#[test]
fn a_log_that_is_cut_anywhere_is_resumed_to_its_end() {
    let dir = Dir::new();
    let scan = "--codes 0x58-0x5b --data 0x00-0x01";
    dir.bus(&format!("smi scan --log l {scan}")).ok();
    let whole = dir.read("l");
    let header = whole.find('\n').unwrap() + 1;
    let ends = whole.match_indices('\n').flat_map(|(at, _)| [at, at + 1]);
    let cuts: Vec<_> = (0..=whole.len()).step_by(37).chain(ends).collect();
    for cut in cuts {
        dir.write("l", &whole[..cut]);
        let run = resume(&dir, scan);
        if cut < header {
            // Nothing was sent: the header is synced with the first access.
            let run = if cut == header - 1 && run.code == Some(0) { continue } else { run };
            run.exits(1);
            continue;
        }
        let summary = run.ok().objects().pop().unwrap();
        assert_eq!(summary["scan"]["sent"], 8, "cut at {cut}");
        let lost = is_complete(&dir, 0x58..=0x5b, 0..=1);
        // What was announced and has no whole record did not return.
        let kept = &whole[..cut];
        let kept = &kept[..kept.rfind('\n').unwrap() + 1];
        let last = kept.lines().last().unwrap();
        let is_lost = last.contains("about_to") && last.contains("0xb2");
        assert_eq!(lost.len(), usize::from(is_lost), "cut at {cut}, behind {last}");
        assert_eq!(summary["scan"]["did_not_return"].as_array().unwrap().len(), lost.len());
        dir.run("trace show l").ok();
    }
}

/// Kills a scan once its log has so many bytes; false if it had ended by then.
fn killed_behind(dir: &Dir, scan: &str, bytes: u64) -> bool {
    let mut command = dir.command();
    command.args(words(&format!("--on bus:pc smi scan --log l {scan}"))).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let length = || std::fs::metadata(dir.path("l")).map_or(0, |file| file.len());
    let patience = Instant::now() + Duration::from_secs(60);
    while length() < bytes && child.try_wait().unwrap().is_none() && Instant::now() < patience {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()).is_some()
}

#[test]
fn a_scan_that_is_killed_is_resumed_to_its_end() {
    let scan = "--codes 0x00-0xef --data 0x00-0x01";
    let mut kills = 0;
    let mut random = u64::from(std::process::id());
    for round in 0..20 {
        let dir = Dir::new();
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let bytes = 1000 + (random >> 33) % 600_000;
        let is_killed = killed_behind(&dir, scan, bytes);
        kills += usize::from(is_killed);
        let shown = dir.run("trace show l").ok();
        assert_eq!(shown.stdout.contains("cut off"), is_killed, "round {round}, {bytes} bytes");
        let summary = resume(&dir, scan).ok().objects().pop().unwrap();
        let lost = is_complete(&dir, 0..=0xef, 0..=1);
        assert!(lost.len() <= 1, "{lost:?}");
        assert_eq!(summary["scan"]["did_not_return"].as_array().unwrap().len(), lost.len());
        assert_eq!(shown.stdout.contains("did not return, SMI code"), !lost.is_empty());
    }
    assert!(kills >= 10, "of 20 scans only {kills} were killed before they ended");
}

#[test]
fn a_scan_is_resumed_as_often_as_it_is_killed() {
    let dir = Dir::new();
    let scan = "--codes 0x00-0x3f";
    assert!(killed_behind(&dir, scan, 20_000), "the scan had ended");
    let mut rounds = 0;
    // Cut off by hand from here on: behind each announcement of an SMI, one more is lost.
    while rounds < 5 {
        resume(&dir, scan).ok();
        let text = dir.read("l");
        let (_, lost) = sent(&text);
        let at = text.match_indices("{\"about_to\":\"out 0xb2").nth(20 + 5 * rounds).unwrap().0;
        let end = at + text[at..].find('\n').unwrap() + 1;
        dir.write("l", &text[..end]);
        assert!(lost.len() <= rounds + 1, "{lost:?}");
        rounds += 1;
    }
    resume(&dir, scan).ok();
    assert!(is_complete(&dir, 0..=0x3f, 0..=0).len() >= 5);
}

/// Of two scans on one log, the second one is sent away, whether it begins or goes on.
#[test]
fn a_log_has_one_writer() {
    let dir = Dir::new();
    dir.bus("smi scan --log l --codes 0x40").ok();
    let log = std::fs::File::open(dir.path("l")).unwrap();
    rustix::fs::flock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let before = dir.read("l");
    dir.bus("smi scan --log l --codes 0x40-0x41 --resume").exits(2).complains("another program is writing");
    assert_eq!(dir.read("l"), before);
    drop(log);
    dir.bus("smi scan --log l --codes 0x40-0x41 --resume").ok();
}
