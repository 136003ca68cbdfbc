//! From PVH's 32-bit entry to 64-bit Rust: page tables that map the first GiB as it lies, once more above that for what is
//! only executed there, and the local APIC; long mode, SSE, a stack.

core::arch::global_asm!(
    // XEN_ELFNOTE_PHYS32_ENTRY (18): where to start, in 32-bit protected mode with paging off and EBX = start info.
    ".pushsection .note.pvh, \"a\", @note",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long pvh_start",
    ".popsection",
    ".pushsection .text.boot, \"ax\"",
    ".code32",
    ".global pvh_start",
    "pvh_start:",
    "cld",
    "lea esp, [boot_stack_top]",
    // 512 pages of 2 MiB: present, writable, ring 3's as well, large.
    "mov ecx, 511",
    "2:",
    "mov eax, ecx",
    "shl eax, 21",
    "or eax, 0x87",
    "mov [boot_page_directory + ecx * 8], eax",
    "dec ecx",
    "jns 2b",
    "lea eax, [boot_page_directory + 7]",
    "mov [boot_pdpt], eax",
    // The same memory in the second GiB, not writable (with CR0.WP): `ALIAS`.
    "lea eax, [boot_page_directory + 5]",
    "mov [boot_pdpt + 8], eax",
    // And one for the local APIC at 0xFEE00000, in the fourth GiB: not cached.
    "mov dword ptr [boot_apic_directory + 0x1f7 * 8], 0xfee00093",
    "lea eax, [boot_apic_directory + 3]",
    "mov [boot_pdpt + 3 * 8], eax",
    "lea eax, [boot_pdpt + 7]",
    "mov [boot_pml4], eax",
    "lea eax, [boot_pml4]",
    "mov cr3, eax",
    "mov eax, 0x620", // CR4: PAE, OSFXSR, OSXMMEXCPT
    "mov cr4, eax",
    "mov ecx, 0xc0000080", // EFER.LME
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, 0x80010013", // CR0: PG, WP, ET, MP, PE
    "mov cr0, eax",
    "lgdt [boot_gdt_pointer]",
    // A far jump to the 64-bit code segment, through memory.
    "jmp fword ptr [boot_far_pointer]",
    ".code64",
    "boot_long_mode:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov edi, ebx",
    "call {main}",
    "ud2",
    // Where another processor starts, in real mode at 0x8000: a copy of this is put there. The same page tables, and long
    // mode at once.
    ".code16",
    ".global second_processor, second_processor_end",
    "second_processor:",
    "cli",
    "cld",
    "xor ax, ax",
    "mov ds, ax",
    ".byte 0x66, 0x0f, 0x01, 0x16", // lgdt, all 32 bits of the base
    ".word 0x8000 + 2f - second_processor",
    "mov eax, 0x620",
    "mov cr4, eax",
    ".byte 0x66, 0xb8", // mov eax
    ".long boot_pml4",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, 0x80010013",
    "mov cr0, eax",
    ".byte 0x66, 0xea", // a far jump
    ".long second_long_mode",
    ".word 8",
    "2:",
    ".word 23",
    ".long boot_gdt",
    "second_processor_end:",
    ".code64",
    "second_long_mode:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "lea rsp, [second_stack_top]",
    "call {second}",
    "ud2",
    ".popsection",
    ".pushsection .rodata.boot, \"a\"",
    ".balign 8",
    "boot_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff", // 8: code, 64 bits
    ".quad 0x00cf93000000ffff", // 16: data
    "boot_gdt_pointer:",
    ".word 23",
    ".long boot_gdt",
    "boot_far_pointer:",
    ".long boot_long_mode",
    ".word 8",
    ".popsection",
    ".pushsection .bss.boot, \"aw\", @nobits",
    ".balign 4096",
    "boot_pml4:",
    ".skip 4096",
    "boot_pdpt:",
    ".skip 4096",
    "boot_page_directory:",
    ".skip 4096",
    "boot_apic_directory:",
    ".skip 4096",
    ".skip 65536",
    "boot_stack_top:",
    ".skip 32768",
    "second_stack_top:",
    ".popsection",
    main = sym crate::main,
    second = sym crate::processors::second,
);

/// So far above where it lies, all memory is mapped once more: to be executed and read, not written.
pub const ALIAS: u64 = 1 << 30;

/// What PVH passes (Xen's public/arch-x86/hvm/start_info.h).
#[repr(C)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
}

impl StartInfo {
    /// The kernel's command line.
    pub fn command_line(&self) -> &'static str {
        let start = self.command_line as *const core::ffi::c_char;
        if start.is_null() {
            return "";
        }
        // SAFETY: PVH says that this is the address of a string, and nothing overwrites it.
        unsafe { core::ffi::CStr::from_ptr(start) }.to_str().unwrap_or("")
    }
}
