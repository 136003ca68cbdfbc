//! An initramfs, in the cpio format "newc".

use std::collections::BTreeSet;

/// Directories that are mounted on, or that a program expects.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "sys", "tmp"];

/// Packs files, by their paths, behind the directories that they are in. All of them can be executed.
pub fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    let parents = files.iter().flat_map(|(path, _)| path.match_indices('/').map(|(end, _)| &path[..end]));
    // In order, a directory comes before what is in it.
    for directory in DIRECTORIES.into_iter().chain(parents).collect::<BTreeSet<_>>() {
        entry(&mut archive, directory, 0o040_755, &[]);
    }
    for (path, content) in files {
        entry(&mut archive, path, 0o100_755, content);
    }
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let inode = archive.len() as u32; // unlike any other
    // inode, mode, uid, gid, nlink, mtime, size, device × 2, special device × 2, name size, checksum
    let fields = [inode, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(data);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_header_is_aligned_and_the_trailer_is_last() {
        let archive = super::pack(&[("init".to_owned(), b"12345".to_vec())]);
        assert!(archive.starts_with(b"070701"));
        assert_eq!(archive.len() % 4, 0);
        let init = archive.windows(5).position(|w| w == b"init\0").unwrap();
        assert_eq!((init - 110) % 4, 0, "a header is 110 bytes");
        assert!(archive.windows(10).any(|w| w == b"TRAILER!!!"));
    }

    #[test]
    fn every_directory_is_there_once_and_before_what_is_in_it() {
        let files = ["lib/x86/libc.so", "lib/x86/libm.so", "bin/sh"].map(|path| (path.to_owned(), Vec::new()));
        let archive = super::pack(&files);
        let at = |name: &str| -> Vec<usize> {
            let name = format!("{name}\0").into_bytes();
            // A name follows the eight digits of the checksum.
            let found = archive.windows(name.len() + 1).enumerate().filter(|(_, w)| w[0] == b'0' && w[1..] == *name);
            found.map(|(at, _)| at).collect()
        };
        for (parent, child) in [("lib", "lib/x86"), ("lib/x86", "lib/x86/libc.so"), ("bin", "bin/sh")] {
            assert_eq!((at(parent).len(), at(child).len()), (1, 1), "{parent}, {child}");
            assert!(at(parent) < at(child), "{parent}, {child}");
        }
    }
}
