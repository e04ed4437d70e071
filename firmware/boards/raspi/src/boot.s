// The first instructions, at whichever exception level a core begins: on to level 1, and from there core 0 to `entry`, and
// the others, once `other_cores.rs` has called them, to `helper`. Keeps x0-x3, what the boot loader said.

.section .boot, "ax"
.global boot
boot:
    mrs     x9, mpidr_el1
    tst     x9, #0xff
    b.eq    2f
1:  wfi                             // the emulator starts all cores here; the boot loader keeps them until they are called
    b       1b

2:  adr     x19, primary
    b       3f

.global boot_helper
boot_helper:
    adr     x19, helper

3:  mrs     x9, CurrentEL
    cmp     x9, #(3 << 2)
    b.ne    4f
    mov     x9, #0x5b1              // below is AArch64, not secure, may call the hypervisor
    msr     scr_el3, x9
    msr     cptr_el3, xzr           // no trap on floats
    mov     x9, #0x3c9              // to level 2, interrupts masked
    msr     spsr_el3, x9
    adr     x9, 4f
    msr     elr_el3, x9
    eret

4:  mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    b.ne    5f
    mov     x9, #(1 << 31)          // level 1 is AArch64
    msr     hcr_el2, x9
    mov     x9, #0x33ff             // no trap on floats
    msr     cptr_el2, x9
    mov     x9, #0x3c5              // to level 1, interrupts masked
    msr     spsr_el2, x9
    adr     x9, 5f
    msr     elr_el2, x9
    mov     x9, #0x0800             // level 1 starts with MMU and caches off
    movk    x9, #0x30d0, lsl #16
    msr     sctlr_el1, x9
    eret

5:  br      x19

// Core 0. The page table is that of a Raspberry Pi 3; on a 4, whose registers lie elsewhere, it shows them at the same
// place.
primary:
    mrs     x9, midr_el1
    ubfx    x9, x9, #4, #12
    cmp     x9, #0xd08              // Cortex-A72
    b.ne    entry                   // aarch64-rt
    adrp    x9, {table}
    add     x9, x9, :lo12:{table}
    add     x9, x9, #({registers} >> 21 << 3)
    ldr     x10, ={moved}
    mov     x11, #8                 // 16 MiB
6:  ldr     x12, [x9]
    add     x12, x12, x10
    str     x12, [x9], #8
    subs    x11, x11, #1
    b.ne    6b
    b       entry

// Any other core: as aarch64-rt does for core 0, with a stack of its own.
helper:
    bl      enable_mmu              // aarch64-rt
    mrs     x9, cpacr_el1
    orr     x9, x9, #(3 << 20)      // no trap on floats
    msr     cpacr_el1, x9
    isb
    mrs     x0, mpidr_el1
    and     x0, x0, #0xff
    adrp    x9, {stacks}
    add     x9, x9, :lo12:{stacks}
    mov     x10, #{stack}
    madd    x9, x0, x10, x9         // the stack of core 1 ends where that of core 2 begins
    mov     sp, x9
    b       {serve}
