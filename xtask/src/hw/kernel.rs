//! Debian's kernel as an ELF file: QEMU boots that through PVH and skips two seconds of decompression.

use std::fs;
use std::path::PathBuf;
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
    let mut files = fs::read_dir(package.join("boot"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_kernel = |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"vmlinuz-"));
    let image = fs::read(files.find(is_kernel).context("the kernel package holds no /boot/vmlinuz-*")?)?;
    let payload = package.join("vmlinux.xz");
    fs::write(&payload, xz_payload(&image)?)?;
    let elf = Command::new("xz").args(["-dc", "--single-stream"]).arg(&payload).output()?;
    ensure!(elf.status.success() && elf.stdout.starts_with(b"\x7fELF"), "the kernel's payload is not an ELF file in xz");
    fs::remove_file(payload)?;
    fs::write(&vmlinux, elf.stdout)?;
    Ok(vmlinux)
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
