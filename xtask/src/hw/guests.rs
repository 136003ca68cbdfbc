//! Builds what runs inside the machines.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{host, initramfs};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The initramfs of the Linux guest: one static program.
pub fn linux() -> Result<PathBuf> {
    let target = host::scratch()?.join("guest");
    let mut cargo = cargo_build()?;
    cargo.args(["--package", "hw-guest", "--target-dir"]).arg(&target).env("RUSTFLAGS", "-C target-feature=+crt-static");
    host::build(&mut cargo)?;
    let init = fs::read(target.join(TARGET).join("release/hw-guest"))?;
    let archive = host::scratch()?.join("initramfs.cpio");
    fs::write(&archive, initramfs::pack(&init))?;
    Ok(archive)
}

/// The freestanding image: an ELF file that QEMU starts through PVH.
pub fn ring0() -> Result<PathBuf> {
    let target = host::scratch()?.join("ring0");
    let directory = host::workspace()?.join("hw/ring0");
    let mut cargo = cargo_build()?;
    // No C runtime, no dynamic loader, one position: 1 MiB.
    let flags = [
        "-Cpanic=abort",
        "-Crelocation-model=static",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-static",
        "-Clink-arg=-no-pie",
        "-Clink-arg=-Wl,--build-id=none",
        &format!("-Clink-arg=-Wl,-T,{}", directory.join("image.ld").display()),
    ];
    cargo.current_dir(&directory).arg("--target-dir").arg(&target);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    host::build(&mut cargo)?;
    Ok(target.join(TARGET).join("release/hw-ring0"))
}

/// `--target` keeps the flags of the guest away from build scripts and macros.
fn cargo_build() -> Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--target", TARGET]).current_dir(host::workspace()?);
    Ok(cargo)
}
