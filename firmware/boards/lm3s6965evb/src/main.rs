//! Stellaris LM3S6965 evaluation board: Cortex-M3, 64 KiB of RAM; the model is on the SD card, on SPI.
//!
//! ```text
//! 0x0000_0000  flash  256 KiB  code
//! 0x2000_0000  SRAM    64 KiB  data, blocks read from the card, arena, stack
//! ```

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::panic::PanicInfo;

use cortex_m::Peripherals;
use cortex_m_rt::{ExceptionFrame, entry, exception};
use gptrickle_firmware::stack::Stack;
use gptrickle_firmware::storage::disk::Disk;
use gptrickle_firmware::storage::sd_spi::{Bus, SdSpi};
use gptrickle_firmware::systick::SysTick;
use gptrickle_firmware::uart::pl011::Pl011;
use gptrickle_firmware::{Board, panic_line, run};
use semihosting::process;
use static_cell::ConstStaticCell;

const CLOCK_HZ: u32 = 50_000_000;

const UART0: usize = 0x4000_c000;

const GPIO_A: usize = 0x4000_4000;
const GPIO_D: usize = 0x4000_7000;
const GPIO_DIRECTION: usize = 0x400;
const GPIO_ALTERNATE: usize = 0x420;
const GPIO_PULL_UP: usize = 0x510;
const GPIO_DIGITAL: usize = 0x51c;

const SSI0: usize = 0x4000_8000;
const SSI_CONTROL_0: usize = 0x00;
const SSI_CONTROL_1: usize = 0x04;
const SSI_DATA: usize = 0x08;
const SSI_STATUS: usize = 0x0c;
const SSI_PRESCALE: usize = 0x10;
const SSI_ENABLE: u32 = 1 << 1;
const SSI_EIGHT_BITS: u32 = 7;
const SSI_RECEIVED: u32 = 1 << 2;
const SSI_FIFO: usize = 8;

const SYSTEM: usize = 0x400f_e000;
const RAW_INTERRUPTS: usize = 0x50;
const RUN_CLOCK: usize = 0x60;
const CLOCK_GATE_1: usize = 0x104;
const CLOCK_GATE_2: usize = 0x108;
const PLL_LOCKED: u32 = 1 << 6;

/// What the card's blocks are read into.
static BUFFERS: ConstStaticCell<[[u8; 2048]; 2]> = ConstStaticCell::new([[0; 2048]; 2]);

/// All that the buffers, a few variables and the stack leave.
static ARENA: ConstStaticCell<[u8; 50 << 10]> = ConstStaticCell::new([0; 50 << 10]);

struct Lm3s6965Evb {
    uart: Pl011,
    clock: SysTick,
    stack: Stack,
}

impl Board for Lm3s6965Evb {
    const NAME: &'static str = "lm3s6965evb";

    fn read(&mut self) -> Option<u8> {
        self.uart.read()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.uart.write(bytes);
    }

    fn micros(&mut self) -> u64 {
        self.clock.micros()
    }

    fn stack_used(&self) -> usize {
        self.stack.used()
    }

    fn exit(&mut self, code: i32) -> ! {
        process::exit(code)
    }
}

/// SSI0, with the card's select line on PD0.
struct Ssi0;

impl Ssi0 {
    fn start() -> Self {
        // PA2 and PA5 are clock and data out, PA4 is data in; PA3 selects the display, which stays unselected.
        set(GPIO_A + GPIO_ALTERNATE, 0b11_0111);
        set(GPIO_A + GPIO_DIRECTION, 1 << 3);
        set(GPIO_A + (1 << 3 << 2), 1 << 3);
        set(GPIO_A + GPIO_PULL_UP, 1 << 4);
        set(GPIO_A + GPIO_DIGITAL, 0b11_1111);
        set(GPIO_D + GPIO_DIRECTION, 1);
        set(GPIO_D + GPIO_DIGITAL, 1);
        set(SSI0 + SSI_CONTROL_1, 0);
        set(SSI0 + SSI_PRESCALE, 2);
        set(SSI0 + SSI_CONTROL_0, SSI_EIGHT_BITS);
        set(SSI0 + SSI_CONTROL_1, SSI_ENABLE);
        Ssi0
    }

    /// Sends `n` bytes and takes as many, never more on their way than the FIFO holds.
    fn exchange(&mut self, n: usize, mut send: impl FnMut(usize) -> u8, mut receive: impl FnMut(usize, u8)) {
        let (mut sent, mut received) = (0, 0);
        while received < n {
            while sent < n && sent - received < SSI_FIFO {
                set(SSI0 + SSI_DATA, send(sent).into());
                sent += 1;
            }
            while received < sent && get(SSI0 + SSI_STATUS) & SSI_RECEIVED != 0 {
                receive(received, get(SSI0 + SSI_DATA) as u8);
                received += 1;
            }
        }
    }
}

impl Bus for Ssi0 {
    fn select(&mut self, on: bool) {
        // A GPIO's bits are written through an address that names them.
        set(GPIO_D + (1 << 2), u32::from(!on));
    }

    fn set_hz(&mut self, hz: u32) {
        // The clock is divided by the prescaler, which is 2, and by 1 more than these bits say.
        let divisor = CLOCK_HZ.div_ceil(2 * hz).clamp(1, 256);
        set(SSI0 + SSI_CONTROL_0, (divisor - 1) << 8 | SSI_EIGHT_BITS);
    }

    fn send(&mut self, bytes: &[u8]) {
        self.exchange(bytes.len(), |i| bytes[i], |_, _| ());
    }

    fn receive(&mut self, bytes: &mut [u8]) {
        self.exchange(bytes.len(), |_| 0xff, |i, byte| bytes[i] = byte);
    }
}

#[entry]
fn main() -> ! {
    let stack = Stack::paint_cortex_m();
    let peripherals = Peripherals::take().expect("nobody else takes them");
    start_clock();
    let board = Lm3s6965Evb { uart: uart(), clock: SysTick::start(peripherals.SYST, CLOCK_HZ), stack };
    let model = Disk::new(SdSpi::new(Ssi0::start()), BUFFERS.take().each_mut().map(|buffer| &mut buffer[..]));

    run(board, model, ARENA.take())
}

/// 50 MHz from the 8 MHz crystal and the PLL; and clocks for UART0, SSI0 and the GPIOs.
fn start_clock() {
    const BYPASS: u32 = 1 << 11;
    const XTAL_8_MHZ: u32 = 0xe << 6;
    const MAIN_OSCILLATOR_ONLY: u32 = 1;
    const DIVIDE_BY_4: u32 = 3 << 23 | 1 << 22;
    // From the data sheet: run from the oscillator, start the PLL, divide, wait, then run from the PLL.
    let clock = BYPASS | XTAL_8_MHZ | MAIN_OSCILLATOR_ONLY | DIVIDE_BY_4;
    set(SYSTEM + RUN_CLOCK, get(SYSTEM + RUN_CLOCK) | BYPASS);
    set(SYSTEM + RUN_CLOCK, clock);
    while get(SYSTEM + RAW_INTERRUPTS) & PLL_LOCKED == 0 {}
    set(SYSTEM + RUN_CLOCK, clock & !BYPASS);
    set(SYSTEM + CLOCK_GATE_1, 1 << 4 | 1 << 0);
    set(SYSTEM + CLOCK_GATE_2, 1 << 3 | 1 << 0);
    // The gates take a few cycles to open.
    get(SYSTEM + CLOCK_GATE_2);
}

fn get(register: usize) -> u32 {
    // SAFETY: this file asks for registers of the LM3S6965 only, all aligned words.
    unsafe { (register as *const u32).read_volatile() }
}

fn set(register: usize, value: u32) {
    // SAFETY: as in `get`; none of these registers makes hardware write memory of ours.
    unsafe { (register as *mut u32).write_volatile(value) }
}

fn uart() -> Pl011 {
    // SAFETY: UART0 is there, its clock is on, and only this file uses it: `main`, and after it the panic handler.
    unsafe { Pl011::new(UART0, CLOCK_HZ, 115_200) }
}

#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    panic!("hard fault: {frame:?}")
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut uart = uart();
    panic_line(|bytes| uart.write(bytes), info);
    process::exit(101)
}
