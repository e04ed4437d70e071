//! The UARTs that more than one board has, polled.

pub mod cmsdk;
pub mod pl011;
