use std::os::unix::fs::symlink;
use std::{env, fs, process};

use super::*;

/// A machine of files, gone at the end of the test.
struct Files(PathBuf);

impl Files {
    fn new(test: &str, vendor: &str) -> Self {
        let path = env::temp_dir().join(format!("ioemul-smi-count-{test}-{}", process::id()));
        for directory in ["dev/0", "dev/1", "sys/cpu0", "sys/cpu1", "sys/cpu2"] {
            fs::create_dir_all(path.join(directory)).unwrap();
        }
        let cpuinfo = format!("processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\n");
        fs::write(path.join("cpuinfo"), cpuinfo).unwrap();
        Self(path)
    }

    fn device(&self, cpu: usize) -> PathBuf {
        self.0.join(format!("dev/{cpu}/msr"))
    }

    /// A device in which the register has this value, and those next to it others.
    fn set(&self, cpu: usize, value: u64) {
        let mut registers = vec![0x55; SmiCounter::MSR as usize];
        registers.extend(value.to_le_bytes());
        registers.extend([0xaa; 64]);
        fs::write(self.device(cpu), registers).unwrap();
    }

    fn open(&self, cpu: usize) -> Result<SmiCounter, SmiCounterError> {
        let path = |name| self.0.join(name).to_str().unwrap().to_owned();
        let (cpuinfo, devices, cpus) = (path("cpuinfo"), path("dev"), path("sys"));
        Machine { cpuinfo: &cpuinfo, devices: &devices, cpus: &cpus }.open(cpu)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn the_low_half_of_the_register() {
    let files = Files::new("value", INTEL);
    files.set(0, 0x5555_5555_0000_002a);
    files.set(1, 7);
    let counter = files.open(0).unwrap();
    assert_eq!((counter.read().unwrap(), counter.cpu()), (0x2a, 0));
    assert_eq!(files.open(1).unwrap().read().unwrap(), 7);
    files.set(0, 0x2b);
    assert_eq!(counter.read().unwrap(), 0x2b);
}

#[test]
fn a_count_that_wraps() {
    assert_eq!(SmiCounter::since(5, 7), 2);
    assert_eq!(SmiCounter::since(7, 7), 0);
    assert_eq!(SmiCounter::since(u32::MAX, 1), 2);
}

/// Whatever the register is on such a CPU, it is not asked for.
#[test]
fn a_cpu_that_is_not_intels() {
    for vendor in ["AuthenticAMD", "HygonGenuine", "CentaurHauls", "GenuineIntel2", ""] {
        let files = Files::new("vendor", vendor);
        files.set(0, 1);
        let error = files.open(0).unwrap_err();
        assert!(matches!(&error, SmiCounterError::NotIntel { vendor: is } if is == vendor), "{error:?}");
    }
    let files = Files::new("vendor", "AuthenticAMD");
    assert_eq!(
        files.open(0).unwrap_err().to_string(),
        "only Intel's CPUs have a register that counts SMIs (MSR 0x34), and this one is AuthenticAMD's (AMD's since Zen \
         count them in a performance event: `perf stat -e ls_smi_rx`)"
    );
}

/// Then the register tells.
#[test]
fn a_vendor_that_is_not_known() {
    let files = Files::new("unknown", INTEL);
    files.set(0, 3);
    for cpuinfo in ["", "processor\t: 0\n", "vendor_id\n"] {
        fs::write(files.0.join("cpuinfo"), cpuinfo).unwrap();
        assert_eq!(files.open(0).unwrap().read().unwrap(), 3, "{cpuinfo:?}");
    }
    fs::remove_file(files.0.join("cpuinfo")).unwrap();
    assert_eq!(files.open(0).unwrap().read().unwrap(), 3);
}

#[test]
fn no_device_and_no_cpu() {
    let files = Files::new("missing", INTEL);
    let error = files.open(2).unwrap_err(); // a CPU without a device
    assert!(matches!(error, SmiCounterError::NoDevice { .. }), "{error:?}");
    assert!(error.to_string().contains("dev/2/msr: load the kernel's module for it (modprobe msr)"), "{error}");
    let error = files.open(3).unwrap_err();
    assert!(matches!(error, SmiCounterError::NoSuchCpu { cpu: 3 }), "{error:?}");
    assert_eq!(error.to_string(), "there is no CPU 3, or it is offline");
    // Where the CPUs are not to be seen, nothing is said of them.
    fs::remove_dir_all(files.0.join("sys")).unwrap();
    assert!(matches!(files.open(3).unwrap_err(), SmiCounterError::NoDevice { .. }));
}

/// A read that fails with EIO, as that of the device does: nothing is mapped at so low an address of a process.
#[test]
fn a_register_that_is_not_there() {
    let files = Files::new("eio", INTEL);
    symlink("/proc/self/mem", files.device(0)).unwrap();
    let error = files.open(0).unwrap_err();
    assert!(matches!(error, SmiCounterError::NoRegister { cpu: 0 }), "{error:?}");
    assert!(error.to_string().starts_with("CPU 0 has no MSR 0x34 (EIO)"), "{error}");
}

#[test]
fn a_device_that_is_none() {
    let files = Files::new("short", INTEL);
    fs::write(files.device(0), [0; 0x3b]).unwrap(); // the register's last byte is not there
    let Err(SmiCounterError::Os { source, .. }) = files.open(0) else { panic!("opened") };
    assert_eq!(source.kind(), ErrorKind::UnexpectedEof);
    fs::create_dir(files.device(1)).unwrap();
    assert!(matches!(files.open(1), Err(SmiCounterError::Os { .. })));
}

/// The kinds of refusal, by the errors that the kernel has for them (arch/x86/kernel/msr.c).
#[test]
fn errno_tells_the_cases_apart() {
    let machine = Machine { cpuinfo: "/nonexistent", devices: "/nonexistent", cpus: "/nonexistent" };
    let error = |errno| machine.error(5, Path::new("/dev/cpu/5/msr"), io::Error::from_raw_os_error(errno));
    for errno in [libc::EPERM, libc::EACCES] {
        let error = error(errno);
        assert!(matches!(error, SmiCounterError::NotPermitted { .. }), "{error:?}");
        assert!(error.to_string().starts_with("/dev/cpu/5/msr may not be read by this process: "), "{error}");
    }
    assert!(matches!(error(libc::ENXIO), SmiCounterError::NoSuchCpu { cpu: 5 }));
    assert!(matches!(error(libc::EIO), SmiCounterError::NoRegister { cpu: 5 }));
    assert!(matches!(error(libc::ENOENT), SmiCounterError::NoDevice { .. }));
    let other = error(libc::ENOMEM);
    assert!(matches!(other, SmiCounterError::Os { .. }));
    assert_eq!(other.to_string(), "/dev/cpu/5/msr cannot be read");
}

/// A device that goes away under an open counter is named.
#[test]
fn a_read_that_fails_later() {
    let files = Files::new("later", INTEL);
    files.set(0, 1);
    let counter = files.open(0).unwrap();
    fs::write(files.device(0), []).unwrap();
    let error = counter.read().unwrap_err();
    let start = format!("MSR 0x34 cannot be read from {}: ", files.device(0).display());
    assert!(error.to_string().starts_with(&start), "{error}");
}

/// Whatever this machine has, it is told in order, and the count does not fall.
#[test]
fn this_machine() {
    match SmiCounter::open(0) {
        Ok(counter) => {
            let before = counter.read().unwrap();
            assert!(SmiCounter::since(before, counter.read().unwrap()) < 1 << 31);
        }
        Err(SmiCounterError::Os { path, source }) => panic!("{}: {source}", path.display()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
