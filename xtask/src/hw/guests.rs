//! What runs inside the machines: built, fetched and packed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use hw_shared::{EXAMPLES, Machine, Mode, Params, Script};

use super::{host, initramfs, kernel, uefi};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Something for QEMU to boot.
pub enum Image {
    /// Debian's kernel, and ours as its first process.
    Linux { kernel: PathBuf, initramfs: PathBuf },
    /// The freestanding image.
    Ring0 { kernel: PathBuf },
    /// A Xen, by a name for the logs, with the Linux above as dom0.
    Xen { name: &'static str, hypervisor: PathBuf, kernel: PathBuf, initramfs: PathBuf },
    /// Debian's firmware, and a disk with our application on it.
    Uefi { firmware: PathBuf, disk: PathBuf },
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Image::Linux { .. } => "linux",
            Image::Ring0 { .. } => "ring0",
            Image::Xen { name, .. } => name,
            Image::Uefi { .. } => "uefi",
        })
    }
}

impl Image {
    /// Debian's kernel with an initramfs of static programs: ours, and the library's examples.
    pub fn linux() -> Result<Self> {
        let programs = build_static("hw-guest")?;
        let mut files = vec![("init".to_owned(), fs::read(programs.join("hw-guest"))?)];
        for example in EXAMPLES {
            files.push((format!("bin/{}", example.name), fs::read(programs.join(example.name))?));
        }
        Self::linux_with("initramfs", &files)
    }

    /// Debian's kernel with these files, one of which is `init`, in an initramfs of this name.
    pub fn linux_with(name: &str, files: &[(String, Vec<u8>)]) -> Result<Self> {
        let initramfs = host::scratch()?.join(format!("{name}.cpio"));
        fs::write(&initramfs, initramfs::pack(files))?;
        Ok(Image::Linux { kernel: kernel::vmlinux()?, initramfs })
    }

    /// An ELF file that QEMU starts through PVH.
    pub fn ring0() -> Result<Self> {
        Ok(Image::Ring0 { kernel: build_freestanding("hw/ring0", "hw-ring0")? })
    }

    /// Debian's Xen, under what [`Image::linux`] made.
    pub fn xen(linux: &Image) -> Result<Self> {
        Ok(linux.under("xen", &kernel::xen()?))
    }

    /// What [`Image::linux`] made, as dom0 of this hypervisor.
    pub fn under(&self, name: &'static str, hypervisor: &Path) -> Self {
        let Image::Linux { kernel, initramfs } = self else { unreachable!("dom0 is a Linux") };
        let (hypervisor, kernel, initramfs) = (hypervisor.to_owned(), kernel.clone(), initramfs.clone());
        Image::Xen { name, hypervisor, kernel, initramfs }
    }

    /// The part of QEMU's command line that boots this.
    pub fn arguments(&self, params: &Params) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let lockdown = match params.mode {
            Mode::Checks(Machine::LockedDown) => "lockdown=integrity ",
            Mode::Cli(Script::LockedDown) if !params.control => "lockdown=integrity ",
            _ => "",
        };
        let linux = |console| format!("console={console} quiet panic=-1 {lockdown}{params}");
        let arguments: [(&str, String); 3] = match self {
            Image::Linux { kernel, initramfs } => {
                [("-kernel", path(kernel)), ("-append", linux("ttyS0")), ("-initrd", path(initramfs))]
            }
            Image::Ring0 { kernel } => {
                return ["-kernel".to_owned(), path(kernel), "-append".to_owned(), params.to_string()].into();
            }
            Image::Uefi { firmware, disk } => return uefi::arguments(firmware, disk),
            Image::Xen { hypervisor, kernel, initramfs, .. } => {
                // Multiboot modules: each path may be followed by a command line, commas are doubled.
                let module = |file: &Path| path(file).replace(',', ",,");
                let modules = format!("{} {},{}", module(kernel), linux("hvc0"), module(initramfs));
                let own = "com1=115200,8n1 console=com1 loglvl=error guest_loglvl=error".to_owned();
                [("-kernel", path(hypervisor)), ("-append", own), ("-initrd", modules)]
            }
        };
        arguments.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
    }
}

/// Builds the programs of a package for a guest, which has no libraries; returns the directory in which they are.
pub fn build_static(package: &str) -> Result<PathBuf> {
    let target = host::scratch()?.join("guest");
    let mut cargo = cargo_build(&host::workspace()?);
    cargo.args(["--package", package, "--target-dir"]).arg(&target);
    // Stripped: unpacking them takes the guest longer than running them.
    host::build(cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Cstrip=symbols"))?;
    Ok(target.join(TARGET).join("release"))
}

/// Builds a package that is a program without an operating system, by the linker script in its directory; returns where it is.
pub fn build_freestanding(package: &str, program: &str) -> Result<PathBuf> {
    let directory = host::workspace()?.join(package);
    let target = host::scratch()?.join(directory.file_name().context("the package has a name")?);
    let script = format!("-Clink-arg=-Wl,-T,{}", directory.join("image.ld").display());
    // No C runtime, no dynamic loader, one position.
    let flags = [
        "-Cpanic=abort",
        "-Crelocation-model=static",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-static",
        "-Clink-arg=-no-pie",
        "-Clink-arg=-Wl,--build-id=none",
        &script,
    ];
    let mut cargo = cargo_build(&directory);
    cargo.arg("--target-dir").arg(&target).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    host::build(&mut cargo)?;
    Ok(target.join(TARGET).join("release").join(program))
}

/// `--target` keeps the flags of the guest away from build scripts and macros.
fn cargo_build(directory: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--target", TARGET]).current_dir(directory);
    cargo
}
