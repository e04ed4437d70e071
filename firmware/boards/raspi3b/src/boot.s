// The first instructions: core 0 goes on, at exception level 1; the others sleep. Keeps x0-x3, what the boot loader said.

.section .boot, "ax"
.global boot
boot:
    mrs     x9, mpidr_el1
    tst     x9, #0xff
    b.eq    2f
1:  wfi
    b       1b

2:  mrs     x9, CurrentEL
    cmp     x9, #(3 << 2)
    b.ne    3f
    mov     x9, #0x5b1              // below is AArch64, not secure, may call the hypervisor
    msr     scr_el3, x9
    msr     cptr_el3, xzr           // no trap on floats
    mov     x9, #0x3c9              // to level 2, interrupts masked
    msr     spsr_el3, x9
    adr     x9, 3f
    msr     elr_el3, x9
    eret

3:  mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    b.ne    4f
    mov     x9, #(1 << 31)          // level 1 is AArch64
    msr     hcr_el2, x9
    mov     x9, #0x33ff             // no trap on floats
    msr     cptr_el2, x9
    mov     x9, #0x3c5              // to level 1, interrupts masked
    msr     spsr_el2, x9
    adr     x9, 4f
    msr     elr_el2, x9
    mov     x9, #0x0800             // level 1 starts with MMU and caches off
    movk    x9, #0x30d0, lsl #16
    msr     sctlr_el1, x9
    eret

4:  b       entry                   // aarch64-rt
