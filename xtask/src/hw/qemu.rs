//! Starts a machine, waits for its end or its deadline, and returns what it wrote to its serial port.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hw_shared::{DMI_PRODUCT, DMI_VENDOR};

/// What QEMU boots.
pub struct Image {
    pub kernel: PathBuf,
    pub initramfs: Option<PathBuf>,
}

/// Arguments of every machine.
const COMMON: &str = "-accel tcg -smp 1 -m 256 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
                      -chardev null,id=null";

/// The devices that the checks look for.
fn devices(machine: &str) -> Vec<String> {
    let arguments = format!(
        "-M {machine},vmport=on -uuid 00112233-4455-6677-8899-aabbccddeeff -rtc base=2031-05-06T07:08:09 \
         -device pc-testdev -device pci-testdev,addr=1d.0 \
         -device isa-debugcon,iobase=0xcd4,readback=0x51,chardev=null"
    );
    let mut arguments = words(&arguments);
    arguments.extend(dmi(DMI_VENDOR, DMI_PRODUCT));
    arguments
}

/// A machine on which every check must fail: the devices are missing, or answer differently; the machine is no ProLiant.
fn no_devices(machine: &str) -> Vec<String> {
    let arguments = format!("-M {machine},vmport=off -device isa-debugcon,iobase=0xcd4,readback=0x15,chardev=null");
    let mut arguments = words(&arguments);
    arguments.extend(match machine {
        "q35" => dmi(DMI_VENDOR, "Compaq dc7900"),
        _ => dmi("Contoso", DMI_PRODUCT),
    });
    arguments
}

fn dmi(vendor: &str, product: &str) -> [String; 4] {
    let smbios = || "-smbios".to_owned();
    [smbios(), format!("type=0,vendor={vendor}"), smbios(), format!("type=1,product={product}")]
}

fn words(arguments: &str) -> Vec<String> {
    arguments.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Runs `image` on a machine (`pc` or `q35`), or on its negative control, until it ends; at most until `deadline`.
pub fn run(
    machine: &str,
    control: bool,
    image: &Image,
    command_line: &str,
    log: &Path,
    deadline: Duration,
) -> Result<String> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(words(COMMON)).args(if control { no_devices(machine) } else { devices(machine) });
    qemu.arg("-kernel").arg(&image.kernel).args(["-append", command_line]);
    if let Some(initramfs) = &image.initramfs {
        qemu.arg("-initrd").arg(initramfs);
    }
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting QEMU")?;
    let mut serial = child.stdout.take().context("QEMU has an output")?;
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        serial.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    let start = Instant::now();
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
    let output = reader.join().expect("the reader does not panic")?;
    std::fs::write(log, &output)?;
    if !in_time {
        bail!("QEMU was stopped after {deadline:?}; see {}", log.display());
    }
    Ok(output)
}
