//! How many SMIs a CPU has taken: MSR_SMI_COUNT, by Linux's `/dev/cpu/N/msr`.
//!
//! The register is Intel's, from Nehalem on (SDM vol. 4, "MSR_SMI_COUNT"): bits 31:0 count from reset. Other vendors'
//! CPUs have nothing at that number, or something else.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The only vendor whose CPUs have the register.
const INTEL: &str = "GenuineIntel";

/// The SMI count of one CPU.
///
/// An SMI that a write to the command port raises is taken by all CPUs, and counted by each. Others, such as those of a timer,
/// come at any time: a count that has risen says that there were SMIs, and one that has not says that there was none.
///
/// ```no_run
/// use ioemul::SmiCounter;
/// let counter = SmiCounter::open(0)?;
/// let before = counter.read()?;
/// // … an access that may raise an SMI …
/// println!("SMI count +{}", SmiCounter::since(before, counter.read()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[doc(alias("MSR_SMI_COUNT", "MSR 0x34"))]
pub struct SmiCounter {
    device: File,
    path: PathBuf,
    cpu: usize,
}

impl SmiCounter {
    /// Number of the register, MSR_SMI_COUNT.
    pub const MSR: u32 = 0x34;

    /// Opens the counter of `cpu`, numbered from 0, and reads it once to see that it is there.
    ///
    /// # Errors
    ///
    /// [`SmiCounterError`]; each of its cases leaves something else to do.
    pub fn open(cpu: usize) -> Result<Self, SmiCounterError> {
        Machine { cpuinfo: "/proc/cpuinfo", devices: "/dev/cpu", cpus: "/sys/devices/system/cpu" }.open(cpu)
    }

    /// The CPU whose count this is.
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// SMIs that the CPU has taken since reset, modulo 2³².
    ///
    /// # Errors
    ///
    /// That of the read, such as that of a CPU that has gone offline meanwhile. The message names the register.
    pub fn read(&self) -> io::Result<u32> {
        self.value().map_err(|error| {
            let (msr, path) = (Self::MSR, self.path.display());
            io::Error::new(error.kind(), format!("MSR {msr:#x} cannot be read from {path}: {error}"))
        })
    }

    /// SMIs between two values of [`read`](Self::read), of which the second may have started again at 0.
    pub const fn since(before: u32, after: u32) -> u32 {
        after.wrapping_sub(before)
    }

    fn value(&self) -> io::Result<u32> {
        let mut value = [0; 8]; // one register: the device takes its number as the offset
        self.device.read_exact_at(&mut value, Self::MSR.into())?;
        Ok(u64::from_le_bytes(value) as u32) // bits 63:32 are reserved
    }
}

/// The files in which Linux shows its CPUs.
struct Machine<'a> {
    cpuinfo: &'a str,
    devices: &'a str,
    cpus: &'a str,
}

impl Machine<'_> {
    fn open(&self, cpu: usize) -> Result<SmiCounter, SmiCounterError> {
        // Where the vendor is not to be found out, the register tells: without it the read fails.
        if let Some(vendor) = vendor(self.cpuinfo).filter(|vendor| vendor != INTEL) {
            return Err(SmiCounterError::NotIntel { vendor });
        }
        let path = Path::new(self.devices).join(cpu.to_string()).join("msr");
        let device = File::open(&path).map_err(|source| self.error(cpu, &path, source))?;
        let counter = SmiCounter { device, path, cpu };
        counter.value().map_err(|source| self.error(cpu, &counter.path, source))?;
        Ok(counter)
    }

    /// What a failure to open or to read the device means.
    fn error(&self, cpu: usize, path: &Path, source: io::Error) -> SmiCounterError {
        let path = path.to_owned();
        match (source.kind(), source.raw_os_error()) {
            (ErrorKind::NotFound, _) if self.is_missing(cpu) => SmiCounterError::NoSuchCpu { cpu },
            (ErrorKind::NotFound, _) => SmiCounterError::NoDevice { path },
            (ErrorKind::PermissionDenied, _) => SmiCounterError::NotPermitted { path, source },
            (_, Some(libc::ENXIO)) => SmiCounterError::NoSuchCpu { cpu },
            (_, Some(libc::EIO)) => SmiCounterError::NoRegister { cpu },
            _ => SmiCounterError::Os { path, source },
        }
    }

    /// Whether it is known that there is no such CPU.
    fn is_missing(&self, cpu: usize) -> bool {
        let cpus = Path::new(self.cpus);
        cpus.is_dir() && !cpus.join(format!("cpu{cpu}")).exists()
    }
}

/// The vendor of the first CPU, from a text like `/proc/cpuinfo`: the second line of a long file.
fn vendor(cpuinfo: &str) -> Option<String> {
    let mut start = Vec::new();
    File::open(cpuinfo).and_then(|file| file.take(4096).read_to_end(&mut start)).ok()?;
    let start = String::from_utf8_lossy(&start);
    let vendor = start.lines().find_map(|line| line.strip_prefix("vendor_id")?.split_once(':'))?.1;
    Some(crate::quote::quoted(vendor.trim()))
}

/// Why there is no count of SMIs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SmiCounterError {
    /// The CPU is not Intel's, and has no such register.
    #[error(
        "only Intel's CPUs have a register that counts SMIs (MSR 0x34), and this one is {vendor}'s (AMD's since Zen count \
         them in a performance event: `perf stat -e ls_smi_rx`)"
    )]
    NotIntel {
        /// The vendor as CPUID has it, such as `AuthenticAMD`.
        vendor: String,
    },
    /// There is no such CPU, or it is offline.
    #[error("there is no CPU {cpu}, or it is offline")]
    NoSuchCpu {
        /// Number of the CPU.
        cpu: usize,
    },
    /// The CPU is there, and no device for its registers.
    #[error("there is no {}: load the kernel's module for it (modprobe msr), or bring the CPU online", path.display())]
    NoDevice {
        /// The device.
        path: PathBuf,
    },
    /// This process may not open the device.
    #[error(
        "{} may not be read by this process: that takes root's rights to the file and CAP_SYS_RAWIO (run as root; some \
         kernels that are locked down refuse root as well)",
        path.display()
    )]
    NotPermitted {
        /// The device.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The CPU raised #GP at the register (EIO): it is older than Nehalem, or a hypervisor does not show it.
    #[error("CPU {cpu} has no MSR 0x34 (EIO): it is older than Nehalem, or its hypervisor does not show the register")]
    NoRegister {
        /// Number of the CPU.
        cpu: usize,
    },
    /// Any other failure.
    #[error("{} cannot be read", path.display())]
    Os {
        /// The device.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
