//! An initramfs, in the cpio format "newc".

/// Packs programs, by their paths, behind the directories that they are in and that are mounted on.
pub fn pack(programs: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for directory in ["bin", "dev", "proc", "sys"] {
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
    fn every_header_is_aligned_and_the_trailer_is_last() {
        let archive = super::pack(&[("init".to_owned(), b"12345".to_vec())]);
        assert!(archive.starts_with(b"070701"));
        assert_eq!(archive.len() % 4, 0);
        let init = archive.windows(5).position(|w| w == b"init\0").unwrap();
        assert_eq!((init - 110) % 4, 0, "a header is 110 bytes");
        assert!(archive.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
