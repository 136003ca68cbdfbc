//! As much of UEFI as is called here (UEFI specification 2.10, chapters 4, 7, 8 and 12).

use core::fmt;

/// `EFI_SYSTEM_TABLE`.
#[repr(C)]
pub struct SystemTable {
    header: [u64; 3],
    vendor: *const u16,
    revision: u64,
    console_in: [*const (); 2],
    console_out_handle: *const (),
    console_out: *mut TextOutput,
    standard_error: [*const (); 2],
    runtime: &'static RuntimeServices,
    boot: &'static BootServices,
    tables: usize,
    table: *const ConfigurationTable,
}

/// `EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL`.
#[repr(C)]
struct TextOutput {
    reset: *const (),
    output_string: extern "efiapi" fn(*mut TextOutput, *const u16) -> usize,
}

/// `EFI_BOOT_SERVICES`.
#[repr(C)]
struct BootServices {
    header: [u64; 3],
    raise_task_priority: extern "efiapi" fn(usize) -> usize,
    restore_task_priority: extern "efiapi" fn(usize),
    allocate_pages: extern "efiapi" fn(kind: u32, memory: u32, pages: usize, at: &mut u64) -> usize,
}

/// `EFI_RUNTIME_SERVICES`.
#[repr(C)]
struct RuntimeServices {
    header: [u64; 3],
    others: [*const (); 10],
    reset_system: extern "efiapi" fn(kind: u32, status: usize, size: usize, data: *const ()) -> !,
}

#[repr(C)]
struct ConfigurationTable {
    guid: [u8; 16],
    table: *const u8,
}

/// `SMBIOS3_TABLE_GUID` and `SMBIOS_TABLE_GUID`, as they lie in memory.
const SMBIOS: [[u8; 16]; 2] = [
    [0x44, 0x15, 0xfd, 0xf2, 0x94, 0x97, 0x2c, 0x4a, 0x99, 0x2e, 0xe5, 0xbb, 0xcf, 0x20, 0xe3, 0x94],
    [0x31, 0x2d, 0x9d, 0xeb, 0x88, 0x2d, 0xd3, 0x11, 0x9a, 0x16, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d],
];

impl BootServices {
    /// Masks interrupts. This program is compiled for Linux, and may keep something below RSP, where the firmware's handlers
    /// of interrupts write.
    fn interrupts_off(&self) {
        const HIGH_LEVEL: usize = 31;
        (self.raise_task_priority)(HIGH_LEVEL);
    }

    /// Calls the firmware as it wants to be called.
    fn call<T>(&self, f: impl FnOnce() -> T) -> T {
        const APPLICATION: usize = 4;
        (self.restore_task_priority)(APPLICATION);
        let result = f();
        self.interrupts_off();
        result
    }
}

impl SystemTable {
    /// Where text goes. Interrupts are masked from now on, but in calls of the firmware.
    pub fn console(&self) -> Console {
        self.boot.interrupts_off();
        Console { boot: self.boot, output: self.console_out }
    }

    /// The bytes at the address of the SMBIOS entry point: as many as one may have.
    pub fn smbios(&self) -> Option<&'static [u8]> {
        // SAFETY: the firmware says that so many are there.
        let tables = unsafe { core::slice::from_raw_parts(self.table, self.tables) };
        let found = SMBIOS.iter().find_map(|guid| tables.iter().find(|table| table.guid == *guid))?;
        // SAFETY: the firmware says that an entry point is there; firmware keeps it in a page of its own.
        Some(unsafe { core::slice::from_raw_parts(found.table, 0x20) })
    }

    /// Takes so many pages at an address; whether they were free.
    pub fn allocate_at(&self, mut address: u64, pages: usize) -> bool {
        const AT_ADDRESS: u32 = 2;
        const LOADER_DATA: u32 = 2;
        self.boot.call(|| (self.boot.allocate_pages)(AT_ADDRESS, LOADER_DATA, pages, &mut address)) == 0
    }

    /// Switches the machine off.
    pub fn shut_down(&self) -> ! {
        const SHUT_DOWN: u32 = 2;
        self.boot.call(|| (self.runtime.reset_system)(SHUT_DOWN, 0, 0, core::ptr::null()))
    }
}

/// The firmware's console.
pub struct Console {
    boot: &'static BootServices,
    output: *mut TextOutput,
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for unit in text.encode_utf16() {
            // SAFETY: the firmware's console, as long as boot services last.
            let output = unsafe { (*self.output).output_string };
            let text = [unit, 0];
            self.boot.call(|| output(self.output, text.as_ptr()));
        }
        Ok(())
    }
}
