//! `cargo xtask hw --cli`: the command `ioemul` as its users start it, from a shell, row by row.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use hw_shared::{Mode, Params, Row, Script};

use super::guests::{self, Image};
use super::host;
use super::qemu::{self, Guest, Output, Setup};

/// The processor of [`Setup::Physical`]: an Intel processor, whose SMIs are counted in a register of its own.
pub const PHYSICAL_CPU: &str = "qemu64,vendor=GenuineIntel,family=6,model=26,-hypervisor";

/// Debian's packages, and what of them goes to the guest: the file, and where it is put.
const PACKAGES: &[(&str, &[(&str, &str)])] = &[
    ("busybox-static", &[("bin/busybox", "bin/busybox")]),
    ("bash-static", &[("bin/bash-static", "bin/bash")]),
    (
        "ioport",
        &[
            ("usr/bin/inb", "bin/inb"),
            ("usr/bin/inb", "bin/inw"),
            ("usr/bin/inb", "bin/inl"),
            ("usr/bin/inb", "bin/outb"),
            ("usr/bin/inb", "bin/outw"),
            ("usr/bin/inb", "bin/outl"),
        ],
    ),
    ("util-linux", &[("usr/bin/setpriv", "bin/setpriv")]),
    ("bsdutils", &[("usr/bin/script", "bin/script")]),
    // What ioport, setpriv and script are linked with.
    (
        "libc6",
        &[
            ("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"),
            ("lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libc.so.6"),
        ],
    ),
    ("libcap-ng0", &[("lib/x86_64-linux-gnu/libcap-ng.so.0", "lib/x86_64-linux-gnu/libcap-ng.so.0")]),
];

const PASSWD: &str = "root:x:0:0:root:/:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/bash\n";

/// What boots for a script: where its rows have to hold, and a machine on which those that say `here` have to fail.
struct Machines {
    script: Script,
    here: (&'static str, Setup),
    control: (&'static str, Setup),
}

const MACHINES: [Machines; 3] = [
    Machines { script: Script::Usual, here: ("pc", Setup::TwoProcessors), control: ("pc", Setup::Bare) },
    Machines { script: Script::Physical, here: ("q35", Setup::Physical), control: ("pc", Setup::TwoProcessors) },
    Machines { script: Script::LockedDown, here: ("pc", Setup::LockedDown), control: ("pc", Setup::Bare) },
];

/// Debian's kernel, with the command and what a shell script wants in its initramfs.
pub fn image() -> Result<Image> {
    let mut files = vec![
        ("init".to_owned(), fs::read(guests::build_static("hw-guest")?.join("hw-guest"))?),
        ("bin/ioemul".to_owned(), fs::read(guests::build_static("ioemul-cli")?.join("ioemul"))?),
        ("etc/passwd".to_owned(), PASSWD.into()),
        ("lib/msr.ko".to_owned(), fs::read(msr_module()?)?),
    ];
    // By this name it prints which SMIs there were.
    files.push(("bin/smis".to_owned(), files[0].1.clone()));
    for (package, contents) in PACKAGES {
        let root = host::unpacked_package(package, None)?;
        for (from, to) in *contents {
            // Debian has moved /lib and /bin to /usr, package by package.
            let found = [root.join(from), root.join("usr").join(from)].into_iter().find(|path| path.exists());
            let content = fs::read(found.with_context(|| format!("{package} holds no {from}"))?)?;
            files.push(((*to).to_owned(), content));
        }
    }
    for file in fs::read_dir(scripts()?)? {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a script has a name")?;
        files.push((format!("cli/{name}"), fs::read(&path)?));
    }
    Image::linux_with("initramfs-cli", &files)
}

fn scripts() -> Result<std::path::PathBuf> {
    Ok(host::workspace()?.join("hw/guest/cli"))
}

/// The driver of /dev/cpu/*/msr, which Debian's kernel has as a module.
fn msr_module() -> Result<std::path::PathBuf> {
    let modules = host::unpacked_package("linux-image-amd64", Some("linux-image-"))?.join("lib/modules");
    let version = fs::read_dir(&modules)?.next().context("the kernel's package holds no modules")??;
    Ok(version.path().join("kernel/arch/x86/kernel/msr.ko"))
}

/// Runs every script on its two machines and prints a table of each; whether all is good.
pub fn run(linux: &Image, seed: u64) -> Result<bool> {
    let guests = MACHINES.map(|Machines { script, here, control }| {
        [(here, false), (control, true)].map(|((machine, setup), control)| {
            let mode = Mode::Cli(script);
            // Not for the guest: a hundred processes take their time on a host that has other things to do.
            let seconds = 60;
            Guest {
                machine,
                setup,
                image: linux,
                params: Params { mode, seed, count: 0, seconds, control, proliant: true },
            }
        })
    });
    let outputs = qemu::run_all(guests.as_flattened())?;
    let mut good = true;
    for ((machines, guests), outputs) in MACHINES.iter().zip(&guests).zip(outputs.chunks(2)) {
        let text = fs::read_to_string(scripts()?.join(format!("{}.sh", machines.script.name())))?;
        let rows = Row::of(&text).map(|row| row.map_err(|line| anyhow!("not a row: {line}")));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        ensure!(!rows.is_empty(), "{} has no rows", machines.script.name());
        let [here, control] = [&outputs[0], &outputs[1]].map(Results::of);
        for (output, results) in outputs.iter().zip([&here, &control]) {
            fs::write(output.log.with_extension("txt"), results.transcript(&rows))?;
        }
        good &= report(&rows, guests, outputs, [&here, &control]);
    }
    Ok(good)
}

/// What a machine reported: by row, counted from 1, the exit codes (one, if all is well) and the lines that were printed.
struct Results<'a> {
    codes: HashMap<&'a str, Vec<&'a str>>,
    said: HashMap<&'a str, Vec<String>>,
}

impl<'a> Results<'a> {
    fn of(output: &'a Output) -> Self {
        let (mut codes, mut said) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for line in output.lines() {
            match line[..] {
                ["row", row, code] => codes.entry(row).or_default().push(code),
                ["said", row, ref text @ ..] => said.entry(row).or_default().push(text.join("|")),
                _ => {}
            }
        }
        Self { codes, said }
    }

    /// The one exit code of a row; None: there is none, or more than one, or it is no number.
    fn code(&self, number: usize) -> Option<i32> {
        match self.codes.get(&*number.to_string()).map(Vec::as_slice) {
            Some([code]) => code.parse().ok(),
            _ => None,
        }
    }

    fn said(&self, number: usize) -> &[String] {
        self.said.get(&*number.to_string()).map_or(&[], Vec::as_slice)
    }

    /// As a user would have seen it.
    fn transcript(&self, rows: &[Row]) -> String {
        let mut text = String::new();
        for (number, row) in (1..).zip(rows) {
            let code = self.code(number).map_or("no exit code".to_owned(), |code| format!("exit code {code}"));
            let said: String = self.said(number).iter().map(|line| format!("{line}\n")).collect();
            let _ = write!(text, "# {}\n{said}[{code}]\n\n", row.command);
        }
        text
    }
}

/// Whether a row's exit codes are right, on its own machine and on that of the control.
fn judge(row: &Row, found: Option<i32>, controlled: Option<i32>) -> [bool; 2] {
    // Silence fails a row, and does not make a negative control work.
    [found == Some(row.code), controlled.is_some_and(|code| (code == row.code) != row.here)]
}

/// Prints a table of one script; whether it is as it should be.
fn report(rows: &[Row], guests: &[Guest], outputs: &[Output], [here, control]: [&Results; 2]) -> bool {
    let mut good = true;
    let name = |guest: &Guest| format!("{} {:?}", guest.machine, guest.setup);
    println!("\n{}; control: {}\n", name(&guests[0]), name(&guests[1]));
    println!("exit | found | control | command");
    let shown = |code: Option<i32>| code.map_or("none".to_owned(), |code| code.to_string());
    let mut details = String::new();
    for (number, row) in (1..).zip(rows) {
        let (found, controlled) = (here.code(number), control.code(number));
        let [right, control_right] = judge(row, found, controlled);
        let mark = |right| if right { "" } else { " BAD" };
        let found = format!("{}{}", shown(found), mark(right));
        let controlled = match row.here {
            true => format!("{}{}", shown(controlled), mark(control_right)),
            false if control_right => "same".to_owned(),
            false => format!("{} BAD", shown(controlled)),
        };
        println!("{:4} | {found:5} | {controlled:7} | {}", row.code, row.command);
        for (right, results, guest) in [(right, here, &guests[0]), (control_right, control, &guests[1])] {
            if !right {
                good = false;
                let _ = writeln!(details, "\n{}: {}", name(guest), row.command);
                results.said(number).iter().for_each(|line| details.push_str(&format!("  {line}\n")));
            }
        }
    }
    // What is not a row of the script was reported by something else.
    for (results, guest) in [(here, &guests[0]), (control, &guests[1])] {
        let known = results.codes.keys().all(|row| row.parse().is_ok_and(|row: usize| (1..=rows.len()).contains(&row)));
        if !known {
            good = false;
            let _ = writeln!(details, "\n{}: there are results of more rows than the script has", name(guest));
        }
    }
    print!("{details}");
    for (output, guest) in outputs.iter().zip(guests) {
        if let Some(trouble) = output.trouble() {
            good = false;
            println!("\n{}: {trouble}", name(guest));
        }
        println!(
            "{}: {:.2} s, {}",
            name(guest),
            output.wall.as_secs_f64(),
            relative(&output.log.with_extension("txt"))
        );
    }
    good
}

fn relative(path: &Path) -> String {
    let shown = host::workspace().ok().and_then(|root| Some(path.strip_prefix(root).ok()?.to_owned()));
    shown.unwrap_or(path.to_owned()).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_a_control_that_passes_are_failures() {
        let row = |here| Row { here, code: 3, command: "" };
        for (here, found, controlled, right) in [
            (false, Some(3), Some(3), [true, true]),
            (false, Some(3), Some(0), [true, false]),
            (true, Some(3), Some(0), [true, true]),
            (true, Some(3), Some(3), [true, false]),
            (true, Some(0), Some(0), [false, true]),
            (true, None, None, [false, false]),
            (false, None, None, [false, false]),
        ] {
            assert_eq!(judge(&row(here), found, controlled), right, "{here}, {found:?}, {controlled:?}");
        }
    }

    #[test]
    fn every_line_of_a_script_that_looks_like_a_row_is_one() {
        for script in Script::ALL {
            let text = fs::read_to_string(scripts().unwrap().join(format!("{}.sh", script.name()))).unwrap();
            assert!(Row::of(&text).count() > 5, "{script:?}");
            for row in Row::of(&text) {
                row.unwrap();
            }
        }
    }
}
