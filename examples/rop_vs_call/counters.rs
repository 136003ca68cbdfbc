//! Mispredicted branches, as the CPU itself counts them, where the system lets a program ask.

#[cfg(target_os = "linux")]
use perf_event::{Builder, Counter, events::Hardware};

/// Counts the mispredicted branches of this thread in user space.
#[cfg(target_os = "linux")]
pub struct BranchMisses(Counter);

#[cfg(target_os = "linux")]
impl BranchMisses {
    /// Or in plain words why not.
    pub fn new() -> Result<Self, String> {
        let counter = Builder::new(Hardware::BRANCH_MISSES).exclude_kernel(true).exclude_hv(true).build();
        counter.map(Self).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                "not available here: /proc/sys/kernel/perf_event_paranoid or a sandbox forbids them".to_owned()
            }
            Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => {
                "not available here: this CPU, or the virtual machine around it, has none".to_owned()
            }
            _ => format!("not available here: {error}"),
        })
    }

    /// How many there were while `work` ran.
    pub fn during(&mut self, work: impl FnOnce()) -> std::io::Result<u64> {
        self.0.reset()?;
        self.0.enable()?;
        work();
        self.0.disable()?;
        self.0.read()
    }
}

/// There are none.
#[cfg(not(target_os = "linux"))]
pub struct BranchMisses(core::convert::Infallible);

#[cfg(not(target_os = "linux"))]
impl BranchMisses {
    pub fn new() -> Result<Self, String> {
        Err("not available here: they are read through Linux's perf events".to_owned())
    }

    pub fn during(&mut self, _: impl FnOnce()) -> std::io::Result<u64> {
        match self.0 {}
    }
}
