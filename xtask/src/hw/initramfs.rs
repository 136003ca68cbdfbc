//! An initramfs, in the cpio format "newc".

use std::collections::BTreeSet;
use std::path::Path;

/// Packs programs, by their paths, behind the directories that they are in and that are mounted on.
pub fn pack(programs: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut directories: BTreeSet<_> = ["bin", "dev", "proc", "sys"].map(Path::new).into();
    directories.extend(programs.iter().flat_map(|(path, _)| Path::new(path).ancestors().skip(1)));
    // In this order each of them comes behind the one that it is in.
    for directory in directories.iter().filter_map(|path| path.to_str()).filter(|path| !path.is_empty()) {
        entry(&mut archive, directory, 0o040_755, &[]);
    }
    for (path, program) in programs {
        entry(&mut archive, path, 0o100_755, program);
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
    fn every_directory_comes_before_what_is_in_it() {
        let archive = super::pack(&[("usr/lib/x/y".to_owned(), Vec::new())]);
        let at = |name: &[u8]| archive.windows(name.len()).position(|window| window == name).unwrap();
        assert!(at(b"usr\0") < at(b"usr/lib\0") && at(b"usr/lib\0") < at(b"usr/lib/x\0"));
        assert!(at(b"usr/lib/x\0") < at(b"usr/lib/x/y\0"));
    }

    #[test]
    fn every_header_is_aligned_and_the_trailer_is_last() {
        let archive = super::pack(&[("init".to_owned(), b"12345".to_vec())]);
        assert!(archive.starts_with(b"070701"));
        assert_eq!(archive.len() % 4, 0);
        let init = archive.windows(5).position(|w| w == b"init\0").unwrap();
        assert_eq!((init - 110) % 4, 0, "a header is 110 bytes");
        assert!(archive.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
