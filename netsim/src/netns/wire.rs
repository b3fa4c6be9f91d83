//! A slow, lossy or narrow cable between two laptops, made of two TAPs and threads: this kernel has no netem.
//!
//! Each way has a reader, which decides over every frame when it comes in (lost by chance, no room in the queue, or when
//! it is due at the other end), and a writer, which waits for that time. All frames of one way are equally late, so
//! what is due first came first: a queue, not a heap. The TAPs offer no offloads, so the kernel cuts every superframe
//! before the cable as for a real card: what is lost is one datagram, not 64 KiB. A bridge joins each TAP to the laptop's
//! port: a TAP of its own would look to meshd like an overlay, which it never uses as an underlay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::{Lab, Laptop, run};

/// Frames on their way at once, each way: 10 ms of a gigabit in full frames is 830.
const IN_FLIGHT: usize = 8192;

/// A full frame of 1500 bytes with a VLAN tag, and room.
const FRAME: usize = 2048;

/// How the cable is, each way.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    /// From one end to the other.
    pub delay: Duration,
    /// The chance of a frame to be lost, 0 to 1.
    pub loss: f64,
    /// Bits a second, if it has a limit.
    pub rate: Option<u64>,
    /// Bytes that may wait where the rate begins; what comes then is dropped.
    pub queue: usize,
    /// Of the losses.
    pub seed: u64,
}

impl Conditions {
    /// Nothing lost, nothing late.
    pub const PERFECT: Self = Self { delay: Duration::ZERO, loss: 0.0, rate: None, queue: 0, seed: 0 };
}

/// What happened to the frames of both ways together.
#[derive(Debug, Default)]
pub struct Counters {
    frames: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
}

impl Counters {
    /// That came in.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Lost by chance.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Dropped for want of room in the queue.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }
}

/// The cable and its two laptops. Unplugged, and its threads ended, when dropped.
#[derive(Debug)]
pub struct Wire {
    /// The laptops at its ends: .1 and .2 of its subnet (192.168.N), no route anywhere else.
    pub ends: [Laptop; 2],
    counters: Arc<Counters>,
}

impl Wire {
    /// Two new laptops and the cable between them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(lab: &mut Lab, names: [&str; 2], conditions: Conditions) -> Result<Self> {
        let subnet = lab.subnet();
        Self::within(lab, subnet, names, conditions)
    }

    /// The same, within a /24 of which the first three bytes are given.
    pub(super) fn within(lab: &Lab, subnet: [u8; 3], names: [&str; 2], conditions: Conditions) -> Result<Self> {
        let [x, y, z] = subnet;
        let counters = Arc::new(Counters::default());
        let mut ends = Vec::new();
        let mut taps = Vec::new();
        for (name, last) in names.into_iter().zip(1..) {
            let (tap, joint) = (format!("w-{name}"), format!("j-{name}"));
            run(&format!("ip link add {joint} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"))?;
            let laptop = lab.laptop_at(name, [x, y, z, last].into(), &joint)?;
            let device = DeviceBuilder::new().name(&tap).layer(Layer::L2).mtu(1500).enable(false).build_sync();
            taps.push(Arc::new(device.with_context(|| format!("a TAP {tap}"))?));
            run(&format!("ip link set {tap} master {joint} up"))?;
            run(&format!("ip link set {joint} up"))?;
            ends.push(laptop);
        }
        for (way, (from, to)) in [(0, 1), (1, 0)].into_iter().enumerate() {
            let (sender, receiver) = sync_channel(IN_FLIGHT);
            let (source, target) = (taps[from].clone(), taps[to].clone());
            let conditions = Conditions { seed: 2 * conditions.seed + way as u64, ..conditions };
            let counters = counters.clone();
            thread::spawn(move || read(&source, conditions, &counters, &sender));
            thread::spawn(move || write(&target, &receiver));
        }
        Ok(Self { ends: ends.try_into().expect("two names, two laptops"), counters })
    }

    /// What was lost so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // A reader of a TAP that is gone gets an error, ends, and its writer after it.
        for end in &self.ends {
            let _ = run(&format!("ip link delete wire-{}", end.name));
        }
    }
}

/// A frame, and when it comes out.
type Due = (Instant, Box<[u8]>);

fn read(tap: &SyncDevice, conditions: Conditions, counters: &Counters, queue: &SyncSender<Due>) {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&conditions.seed.to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(seed);
    // All of the range, so that a chance of 1 loses everything.
    let lost_below = (conditions.loss.clamp(0.0, 1.0) * 2f64.powi(32)) as u64;
    let mut bytes = [0; FRAME];
    // When the last bit of what was accepted so far leaves the queue.
    let mut free = Instant::now();
    while let Ok(length) = tap.recv(&mut bytes) {
        counters.frames.fetch_add(1, Ordering::Relaxed);
        if u64::from(random.next_u32()) < lost_below {
            counters.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let now = Instant::now();
        if let Some(rate) = conditions.rate {
            let time = |bytes: usize| Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64);
            let begin = free.max(now);
            if begin - now + time(length) > time(conditions.queue) {
                counters.overflowed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            free = begin + time(length);
        } else {
            free = now;
        }
        match queue.try_send((free + conditions.delay, bytes[..length].into())) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                counters.overflowed.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

fn write(tap: &SyncDevice, queue: &Receiver<Due>) {
    for (due, frame) in queue {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // The other end is unplugged, or its kernel has no room: lost, as on any cable.
        let _ = tap.send(&frame);
    }
}
