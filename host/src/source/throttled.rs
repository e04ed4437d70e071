//! The imitation of a card: as slow as it is told to be.

use std::io;
use std::str::FromStr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::reads::ReadAt;

/// How slow a card is, read from `23MB/s,latency=200us,chunk=32KiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Bytes it moves in a second.
    pub bytes_per_s: u64,
    /// What each read command costs besides its bytes.
    pub latency: Duration,
    /// Most bytes of one command: a longer read is several, each with its latency.
    pub chunk: Option<u64>,
}

impl Throttle {
    /// How long a read of `bytes` takes.
    pub fn cost(&self, bytes: u64) -> Duration {
        let commands = self.chunk.map_or(1, |chunk| bytes.div_ceil(chunk).max(1));
        let moving = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let latency = self.latency.as_nanos() * u128::from(commands);
        Duration::from_nanos(u64::try_from(moving + latency).unwrap_or(u64::MAX))
    }
}

impl FromStr for Throttle {
    type Err = String;

    fn from_str(text: &str) -> Result<Throttle, String> {
        let mut parts = text.split(',');
        let bytes_per_s = bandwidth(parts.next().unwrap_or_default())?;
        let mut throttle = Throttle { bytes_per_s, latency: Duration::ZERO, chunk: None };
        for part in parts {
            match part.split_once('=') {
                Some(("latency", value)) => throttle.latency = latency(value)?,
                Some(("chunk", value)) => {
                    let size = value.parse().ok().map(|size: ByteSize| size.as_u64()).filter(|&size| size > 0);
                    throttle.chunk = Some(size.ok_or(format!("chunk={value} must be a size such as 32KiB"))?);
                }
                _ => return Err(format!("\"{part}\" is not latency=TIME or chunk=SIZE")),
            }
        }
        Ok(throttle)
    }
}

/// Reads a bandwidth such as `23MB/s`, in bytes a second.
///
/// # Errors
/// It is none, with one line that says what it must be.
pub fn bandwidth(text: &str) -> Result<u64, String> {
    let size = text.strip_suffix("/s").and_then(|size| size.parse().ok()).map(|size: ByteSize| size.as_u64());
    size.filter(|&size| size > 0).ok_or_else(|| format!("\"{text}\" must be a bandwidth such as 23MB/s"))
}

/// Reads a time such as `200us`, of at most a minute.
fn latency(text: &str) -> Result<Duration, String> {
    let units = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)];
    let ns = units.iter().find_map(|(unit, ns)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * ns));
    let ns = ns.filter(|ns| (0.0..=60e9).contains(ns));
    ns.map(|ns| Duration::from_nanos(ns as u64))
        .ok_or_else(|| format!("latency={text} must be a time such as 200us, of at most 60s"))
}

/// A device that takes as long as a card would, on average; one command at a time, and the next one in its queue starts
/// when the last one ends.
#[derive(Debug)]
pub struct Throttled<R> {
    inner: R,
    throttle: Throttle,
    clock: Mutex<Clock>,
}

/// What the card would have done by now.
#[derive(Debug)]
struct Clock {
    /// When it would have ended its last command.
    free: Instant,
    /// How much later than that it came back here, as a sleep lasts too long: the next one is asked for that much late.
    late: Duration,
}

impl<R: ReadAt> Throttled<R> {
    /// Makes `inner` that slow.
    pub fn new(inner: R, throttle: Throttle) -> Throttled<R> {
        Throttled { inner, throttle, clock: Mutex::new(Clock { free: Instant::now(), late: Duration::ZERO }) }
    }
}

impl<R: ReadAt> ReadAt for Throttled<R> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_queued(bytes, offset, Instant::now())
    }

    fn read_queued(&self, bytes: &mut [u8], offset: u64, asked: Instant) -> io::Result<()> {
        /// What is made up for: a sleep that lasts too long, not a disk that is slower than the card.
        const MOST_LATE: Duration = Duration::from_millis(20);
        let mut clock = self.clock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = |time: Instant, duration| time.checked_sub(duration).unwrap_or(time);
        let start = before(asked, clock.late).max(clock.free).max(before(Instant::now(), MOST_LATE));
        self.inner.read_at(bytes, offset)?;
        clock.free = start + self.throttle.cost(bytes.len() as u64);
        thread::sleep(clock.free.saturating_duration_since(Instant::now()));
        clock.late = Instant::now().saturating_duration_since(clock.free).min(MOST_LATE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_read_from_its_figures() {
        let throttle: Throttle = "23MB/s,latency=200us,chunk=32KiB".parse().unwrap();
        let latency = Duration::from_micros(200);
        assert_eq!(throttle, Throttle { bytes_per_s: 23_000_000, latency, chunk: Some(32768) });
        assert_eq!("1.5MiB/s".parse::<Throttle>().unwrap().bytes_per_s, 3 << 19);
        assert_eq!("1GB/s,latency=0.5ms".parse::<Throttle>().unwrap().latency, Duration::from_micros(500));
    }

    #[test]
    fn figures_that_are_none_are_named() {
        for (text, word) in [
            ("", "bandwidth such as 23MB/s"),
            ("23MB", "bandwidth such as 23MB/s"),
            ("0MB/s", "bandwidth such as 23MB/s"),
            ("23MB/s,latency=5", "time such as 200us"),
            ("23MB/s,latency=-5us", "time such as 200us"),
            ("23MB/s,latency=nanms", "time such as 200us"),
            ("23MB/s,latency=61s", "at most 60s"),
            ("23MB/s,chunk=0", "size such as 32KiB"),
            ("23MB/s,speed=1", "\"speed=1\""),
            ("23MB/s,", "\"\""),
        ] {
            let error = text.parse::<Throttle>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_read_costs_its_bytes_and_each_commands_latency() {
        let cost = |figures: &str, bytes| figures.parse::<Throttle>().unwrap().cost(bytes).as_micros();
        assert_eq!(cost("1MB/s", 2000), 2000);
        assert_eq!(cost("1MB/s,latency=1ms", 2000), 3000);
        assert_eq!(cost("1MB/s,latency=1ms,chunk=1000", 2000), 4000);
        assert_eq!(cost("1MB/s,latency=1ms,chunk=1000", 2001), 5001);
        assert_eq!(cost("1B/s,latency=60s,chunk=1", u64::MAX), (u64::MAX / 1000).into());
    }
}
