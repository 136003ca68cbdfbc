//! Debian's kernels as ELF files. QEMU boots Linux that way through PVH and skips two seconds of decompression.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::host;

/// Fetches the kernel, once, and returns its vmlinux.
pub fn vmlinux() -> Result<PathBuf> {
    let package = host::unpacked_package("linux-image-amd64", Some("linux-image-"))?;
    let vmlinux = package.join("vmlinux");
    if vmlinux.exists() {
        return Ok(vmlinux);
    }
    let image = fs::read(boot_file(&package, "vmlinuz-", "")?)?;
    let payload = package.join("vmlinux.xz");
    fs::write(&payload, xz_payload(&image)?)?;
    let elf = Command::new("xz").args(["-dc", "--single-stream"]).arg(&payload).output()?;
    ensure!(
        elf.status.success() && elf.stdout.starts_with(b"\x7fELF"),
        "the kernel's payload is not an ELF file in xz"
    );
    fs::remove_file(payload)?;
    fs::write(&vmlinux, elf.stdout)?;
    Ok(vmlinux)
}

/// Fetches Xen, once, and returns the hypervisor.
pub fn xen() -> Result<PathBuf> {
    let package = host::unpacked_package("xen-system-amd64", Some("xen-hypervisor-4"))?;
    let elf = package.join("xen.elf");
    if !elf.exists() {
        let output = Command::new("gzip").arg("-dc").arg(boot_file(&package, "xen-", ".gz")?).output()?;
        ensure!(output.status.success() && output.stdout.starts_with(b"\x7fELF"), "Xen is not an ELF file in gzip");
        fs::write(&elf, output.stdout)?;
    }
    Ok(elf)
}

fn boot_file(package: &Path, prefix: &str, suffix: &str) -> Result<PathBuf> {
    let mut files = fs::read_dir(package.join("boot"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let wanted = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with(prefix) && n.ends_with(suffix))
    };
    files.find(wanted).with_context(|| format!("{} holds no boot/{prefix}*{suffix}", package.display()))
}

/// The compressed kernel within a bzImage, as its header describes it (Documentation/x86/boot.rst).
fn xz_payload(image: &[u8]) -> Result<&[u8]> {
    let field = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel image is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "the kernel image is no bzImage");
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + field(0x248)?;
    // Four bytes of uncompressed size follow the stream.
    let payload = image.get(start..start + field(0x24c)? - 4).context("the kernel image is cut off")?;
    ensure!(payload.starts_with(b"\xfd7zXZ\0"), "the kernel is not compressed with xz");
    Ok(payload)
}
