//! The UARTs that more than one board has, polled.

pub mod cmsdk;
pub mod ns16550;
pub mod pl011;
