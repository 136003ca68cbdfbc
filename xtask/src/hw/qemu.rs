//! Starts a machine, waits for its end or its deadline, and returns what it wrote to its serial port.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hw_shared::{DMI_PRODUCT, DMI_VENDOR, Mode, Params};

use super::guests::Image;
use super::{cli, host};

/// What QEMU is told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// An HP ProLiant with all the devices that the checks look for.
    ProLiant,
    /// The same devices in a machine of another make.
    OtherMake,
    /// A ProLiant with two processors at the same time.
    TwoProcessors,
    /// A ProLiant whose clocks count instructions: a nanosecond each.
    Counted,
    /// A ProLiant whose mailbox stays busy.
    Busy,
    /// The devices of a ProLiant but for the VMware backdoor, with an Intel processor that does not say that it is virtual.
    Physical,
    /// Two processors, no devices.
    LockedDown,
    /// No devices, or such as answer differently, in a machine of another make: every check must fail.
    Bare,
}

/// One run of one machine.
#[derive(Clone)]
pub struct Guest<'a> {
    /// `pc` or `q35`.
    pub machine: &'static str,
    pub setup: Setup,
    pub image: &'a Image,
    pub params: Params,
}

/// What came of it.
pub struct Output {
    /// What the guest wrote.
    serial: String,
    in_time: bool,
    /// Where that is kept.
    pub log: PathBuf,
    pub wall: Duration,
}

impl Guest<'_> {
    fn arguments(&self) -> Vec<String> {
        let Self { machine, setup, image, .. } = self;
        let memory = hw_shared::model::MEMORY >> 20;
        // In ring 0 two processors share a table; to the bare machine there is no second one to come.
        let two = matches!(setup, Setup::LockedDown | Setup::TwoProcessors)
            || (*setup == Setup::ProLiant && matches!(image, Image::Ring0 { .. }));
        let processors = if two { 2 } else { 1 };
        // In ring 0 they run at the same time, and not by turns.
        let threads = if two && *setup != Setup::LockedDown { "multi" } else { "single" };
        let mut arguments = words(&format!(
            "-accel tcg,thread={threads} -smp {processors} -m {memory} -nodefaults -no-user-config -display none -serial stdio -no-reboot \
             -chardev null,id=null"
        ));
        let vmport = if *setup == Setup::Physical { "off" } else { "on" };
        arguments.extend(words(&match setup {
            Setup::ProLiant | Setup::OtherMake | Setup::TwoProcessors | Setup::Counted | Setup::Physical => format!(
                "-M {machine},vmport={vmport} -uuid 00112233-4455-6677-8899-aabbccddeeff -rtc base=2031-05-06T07:08:09 \
                 -device pc-testdev -device pci-testdev,addr=1d.0 -chardev null,id=com2 -device isa-serial,iobase=0x2f8,irq=3,chardev=com2 \
                 -device isa-debugcon,iobase=0xcd4,readback=0x51,chardev=null"
            ),
            Setup::Busy => {
                format!("-M {machine},vmport=off -device isa-debugcon,iobase=0xcd4,readback=0xd1,chardev=null")
            }
            Setup::LockedDown => format!("-M {machine},vmport=off"),
            Setup::Bare => {
                format!("-M {machine},vmport=off -device isa-debugcon,iobase=0xcd4,readback=0x15,chardev=null")
            }
        }));
        if *setup == Setup::Physical {
            arguments.extend(words(&format!("-cpu {}", cli::PHYSICAL_CPU)));
        }
        if *setup == Setup::Counted {
            arguments.extend(words("-icount shift=0,sleep=off"));
        }
        // The quirk wants vendor and product: a machine of another make lacks one of them.
        let (vendor, product) = match (setup, *machine) {
            (Setup::ProLiant | Setup::TwoProcessors | Setup::Counted | Setup::Physical | Setup::Busy, _) => {
                (DMI_VENDOR, DMI_PRODUCT)
            }
            (_, "q35") => (DMI_VENDOR, "Compaq dc7900"),
            _ => ("Contoso", DMI_PRODUCT),
        };
        let smbios = || "-smbios".to_owned();
        arguments.extend([smbios(), format!("type=0,vendor={vendor}")]);
        arguments.extend([smbios(), format!("type=1,product={product}")]);
        arguments.extend(image.arguments(&self.params));
        arguments
    }

    fn name(&self) -> String {
        let Self { machine, setup, image, params } = self;
        let control = if params.control { "-control" } else { "" };
        let mode = match params.mode {
            Mode::Checks(_) => "checks".to_owned(),
            Mode::Cli(script) => format!("cli-{}", script.name()),
            mode => format!("{mode:?}"),
        };
        format!("{machine}-{setup:?}-{image:?}-{mode}{control}").to_lowercase()
    }

    /// Runs the machine until it ends; a minute longer than it was told to, at most.
    pub fn run(&self) -> Result<Output> {
        let log = host::scratch()?.join(format!("{}.log", self.name()));
        let start = Instant::now();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(self.arguments()).current_dir(host::scratch()?);
        let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting QEMU")?;
        let mut pipe = child.stdout.take().context("QEMU has an output")?;
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
        });
        let deadline = Duration::from_secs(60 + self.params.seconds);
        let in_time = loop {
            if child.try_wait()?.is_some() {
                break true;
            }
            if start.elapsed() > deadline {
                child.kill()?;
                child.wait()?;
                break false;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let serial = reader.join().expect("the reader does not panic")?;
        fs::write(&log, &serial)?;
        Ok(Output { serial, in_time, log, wall: start.elapsed() })
    }
}

impl Output {
    /// The lines of the report, split into their fields.
    pub fn lines(&self) -> Vec<Vec<&str>> {
        // Firmware's console puts sequences of its own before a line.
        let lines = self.serial.lines().filter_map(|line| Some(line.trim_end().split_once("ioemul|")?.1));
        lines.map(|line| line.split('|').collect()).collect()
    }

    /// Whether the guest wrote this, anywhere.
    pub fn says(&self, text: &str) -> bool {
        self.serial.contains(text)
    }

    /// What went wrong with the guest as a whole.
    pub fn trouble(&self) -> Option<String> {
        let lines = self.lines();
        let ended = lines.last().is_some_and(|line| line[..] == ["end"]);
        let trouble = match lines.iter().find(|line| line[0] == "error") {
            Some(error) => format!("the guest says: {}", error[1..].join("|")),
            None if !self.in_time => "QEMU had to be stopped".to_owned(),
            None if !ended => "the guest did not come to its end".to_owned(),
            None => return None,
        };
        Some(format!("{trouble} ({})", self.log.display()))
    }

    /// [`Self::lines`] without the last, which says that it is; unless there is trouble.
    pub fn good_lines(&self) -> Result<Vec<Vec<&str>>> {
        match self.trouble() {
            Some(trouble) => bail!(trouble),
            None => {
                let mut lines = self.lines();
                lines.pop();
                Ok(lines)
            }
        }
    }
}

/// Runs machines, as many at a time as there are processors; the results are in the machines' order.
pub fn run_all(guests: &[Guest]) -> Result<Vec<Output>> {
    let waiting = Mutex::new(guests.iter().enumerate());
    let work = || -> Result<Vec<(usize, Output)>> {
        let mut done = Vec::new();
        loop {
            let next = waiting.lock().expect("no worker panics with the lock").next();
            let Some((index, guest)) = next else { return Ok(done) };
            done.push((index, guest.run()?));
        }
    };
    let workers = thread::available_parallelism()?.get().min(guests.len());
    let mut outputs = thread::scope(|scope| -> Result<Vec<(usize, Output)>> {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|worker| worker.join().expect("no worker panics"));
        Ok(results.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })?;
    outputs.sort_by_key(|(index, _)| *index);
    Ok(outputs.into_iter().map(|(_, output)| output).collect())
}

fn words(arguments: &str) -> Vec<String> {
    arguments.split_ascii_whitespace().map(str::to_owned).collect()
}
