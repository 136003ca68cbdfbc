//! `cargo xtask hw --uefi`: an application of the library in Debian's UEFI firmware (OVMF), which sends an SMI.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hw_shared::{Mode, Params};

use super::guests::{Image, build_freestanding};
use super::qemu::{self, Guest, Output, Setup};
use super::{host, pe};

/// The address that the application is linked for, less a page: see its `image.ld`.
const BASE: u64 = 0x1000_0000;

/// Builds the application and puts it where firmware looks for one on a disk without an entry of its own.
pub fn image() -> Result<Image> {
    let elf = fs::read(build_freestanding("hw/uefi", "hw-uefi")?)?;
    let disk = host::scratch()?.join("esp");
    let boot = disk.join("EFI/BOOT");
    fs::create_dir_all(&boot)?;
    fs::write(boot.join("BOOTX64.EFI"), pe::from_elf(&elf, BASE)?)?;
    Ok(Image::Uefi { firmware: firmware()?, disk })
}

/// One flash image of firmware that has no SMM of its own.
fn firmware() -> Result<PathBuf> {
    let package = host::unpacked_package("ovmf", None)?;
    let image = package.join("usr/share/ovmf/OVMF.fd");
    ensure!(image.exists(), "{} is not in the package ovmf", image.display());
    Ok(image)
}

/// Runs it on both machines; whether the handler had all registers, and no other handler had.
pub fn run(image: &Image, seed: u64) -> Result<bool> {
    let params = Params { mode: Mode::Record, seed, count: 0, seconds: 60, control: false, proliant: false };
    let guests = ["pc", "q35"].map(|machine| Guest { machine, setup: Setup::OtherMake, image, params });
    let mut good = true;
    for (guest, output) in guests.iter().zip(qemu::run_all(&guests)?) {
        good &= report(guest.machine, &output).with_context(|| format!("{}", output.log.display()))?;
    }
    Ok(good)
}

fn report(machine: &str, output: &Output) -> Result<bool> {
    println!("{machine}: UEFI application, {:.1} s", output.wall.as_secs_f64());
    if let Some(trouble) = output.trouble() {
        println!("  {trouble}");
        return Ok(false);
    }
    let lines = output.lines();
    lines.iter().filter(|line| line[0] == "shown").for_each(|line| println!("  {}", line[1..].join("|")));
    let results: Vec<_> = lines.iter().filter(|line| line[0] == "smi").map(|line| &line[1..]).collect();
    let good = results == [["control", "ok"], ["exchange", "ok"]];
    println!("  {}", if good { "all sixteen words are as the handler leaves them" } else { "FAILED" });
    if !good {
        println!("  {results:?}");
    }
    Ok(good)
}

/// How QEMU is told of it.
pub fn arguments(firmware: &Path, disk: &Path) -> Vec<String> {
    let drive = format!("format=raw,snapshot=on,file=fat:{}", disk.display().to_string().replace(',', ",,"));
    ["-bios", &firmware.display().to_string(), "-drive", &drive].map(str::to_owned).into()
}
