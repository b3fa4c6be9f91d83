//! The instruments: iperf3, ping, our load of UDP, and what /proc says of a process.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::report::progress;
use super::samples::percentile;
use crate::netns::load::{self, Burst};
use crate::netns::{Laptop, output};

/// Ticks a second in /proc/PID/stat: USER_HZ, the same on every Linux we run on.
const TICKS: f64 = 100.0;

/// What TCP did.
#[derive(Debug, Clone, Copy)]
pub struct Tcp {
    /// Received a second, without the first second.
    pub bits_per_second: f64,
    /// Bytes sent in all, the first second's too.
    pub bytes: f64,
}

/// A run of iperf3.
#[derive(Debug, Clone, Copy)]
pub struct Stream<'a> {
    /// How many at once.
    pub streams: u32,
    /// Whether the server sends.
    pub back: bool,
    /// How long, after a first second that does not count.
    pub seconds: u32,
    /// Congestion control; none is the machine's default. A namespace may not change that, but a socket its own.
    pub congestion: Option<&'a str>,
}

/// iperf3 from `laptop` to the server on `target`.
///
/// # Errors
/// When iperf3 fails, or says nothing.
pub fn tcp(laptop: &Laptop, target: Ipv4Addr, stream: Stream<'_>) -> Result<Tcp> {
    let mut tries = 5;
    let (text, report) = loop {
        let run = iperf3(laptop, target, stream).output()?;
        let text = String::from_utf8_lossy(&run.stdout).into_owned();
        let report: Value = serde_json::from_str(&text).unwrap_or_default();
        let complaint = report["error"].as_str();
        if complaint.is_none() && run.status.success() {
            break (text, report);
        }
        let complaint = complaint.unwrap_or("it failed");
        tries -= 1;
        ensure!(tries > 0, "iperf3 to {target}: {complaint}");
        // Usually "the server is busy": it still has what the run before left in the tunnel's queues.
        progress(&format!("  iperf3 again: {complaint}"));
        thread::sleep(Duration::from_secs(1));
    };
    let number = |value: &Value| value.as_f64().with_context(|| format!("iperf3 said {text}"));
    let bits_per_second = number(&report["end"]["sum_received"]["bits_per_second"])?;
    let intervals = report["intervals"].as_array().context("no intervals")?;
    let bytes = intervals.iter().map(|interval| number(&interval["sum"]["bytes"])).sum::<Result<f64>>()?;
    Ok(Tcp { bits_per_second, bytes })
}

/// The same, to be run.
pub fn iperf3(laptop: &Laptop, target: Ipv4Addr, stream: Stream<'_>) -> Command {
    let Stream { streams, back, seconds, congestion } = stream;
    let mut command = laptop.command("timeout");
    command.arg((seconds + 15).to_string()).args(["iperf3", "--json", "--omit", "1", "--connect-timeout", "3000"]);
    command.args(["--client", &target.to_string(), "--time", &seconds.to_string()]);
    command.args(["--parallel", &streams.to_string()]);
    command.args(back.then_some("--reverse"));
    command.args(congestion.into_iter().flat_map(|name| ["--congestion", name]));
    command
}

/// Round trips, seconds; what was not answered is infinitely late.
#[derive(Debug)]
pub struct RoundTrips(Vec<f64>);

impl RoundTrips {
    /// Of `count` pings, one every 2 ms, or 8 where the answer takes longer than that: ping(8) waits in ticks.
    ///
    /// # Errors
    /// When nothing was answered.
    pub fn measure(laptop: &Laptop, target: Ipv4Addr, count: usize) -> Result<Self> {
        // Twice what that takes.
        let limit = 2 + count / 60;
        let mut ping = laptop.command("ping");
        ping.args(["-n", "-i", "0.002", "-c", &count.to_string(), "-w", &limit.to_string(), &target.to_string()]);
        // It fails when a single one is lost.
        let output = ping.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::of(&text, count).with_context(|| format!("ping {target}: nothing was answered:\n{text}"))
    }

    fn of(text: &str, count: usize) -> Option<Self> {
        let time = |line: &str| line.split_once(" time=")?.1.split(' ').next()?.parse::<f64>().ok();
        let mut times: Vec<f64> = text.lines().filter_map(time).map(|milliseconds| milliseconds / 1e3).collect();
        if times.is_empty() {
            return None;
        }
        times.resize(count.max(times.len()), f64::INFINITY);
        Some(Self(times))
    }

    /// What `share` of them were not slower than.
    pub fn percentile(&self, share: f64) -> f64 {
        percentile(&self.0, share).expect("at least one was answered")
    }
}

/// The highest rate of IPv4 packets of `packet` bytes from `laptop` to the receiver on `target` with less than 1 % lost.
///
/// # Errors
/// When the receiver cannot be asked.
pub fn udp(laptop: &Laptop, target: Ipv4Addr, packet: usize, step: Duration) -> Result<Burst> {
    load(laptop, &["search", &format!("{target}:{}", load::PORT), &packet.to_string(), &step.as_millis().to_string()])
}

/// What is lost of packets at `rate` a second.
///
/// # Errors
/// As [`udp`].
pub fn udp_at(laptop: &Laptop, target: Ipv4Addr, packet: usize, rate: f64, time: Duration) -> Result<Burst> {
    let target = format!("{target}:{}", load::PORT);
    load(laptop, &["send", &target, &packet.to_string(), &time.as_millis().to_string(), &rate.to_string()])
}

fn load(laptop: &Laptop, arguments: &[&str]) -> Result<Burst> {
    let text = output(laptop.command("timeout").arg("60").arg(std::env::current_exe()?).arg("load").args(arguments))?;
    Burst::from_json(&serde_json::from_str(&text)?).with_context(|| text.clone())
}

/// CPU seconds of a process with all its threads so far.
///
/// # Errors
/// When it has ended.
pub fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in brackets, may contain anything; user and system time are the 14th and 15th field.
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
}

/// Resident memory of a process, bytes.
///
/// # Errors
/// When it has ended.
pub fn rss(process: u32) -> Result<f64> {
    let kib = status(&format!("/proc/{process}/status"), "VmRSS:")?;
    Ok(kib * 1024.0)
}

fn status(path: &str, field: &str) -> Result<f64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("{path}: no {field}"))?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// How busy a process was so far: by what its threads did, so a thread that ends takes its share along.
#[derive(Debug, Clone, Copy)]
pub struct Busy {
    /// Context switches of all threads.
    pub switches: f64,
    /// Seconds on a CPU, to the nanosecond.
    pub cpu: f64,
}

impl Busy {
    /// So far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn read(process: u32) -> Result<Self> {
        let mut busy = Self { switches: 0.0, cpu: 0.0 };
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            // A thread that has just ended is no longer busy.
            let Ok(thread) = Self::of_thread(&task?.path()) else { continue };
            busy.switches += thread.switches;
            busy.cpu += thread.cpu;
        }
        ensure!(busy.switches > 0.0, "process {process} has no threads");
        Ok(busy)
    }

    fn of_thread(task: &Path) -> Result<Self> {
        let path = task.join("status").display().to_string();
        let switches = status(&path, "voluntary_ctxt_switches:")? + status(&path, "nonvoluntary_ctxt_switches:")?;
        let schedule = fs::read_to_string(task.join("schedstat"))?;
        let on_cpu = schedule.split_whitespace().next().context("an empty schedstat")?;
        Ok(Self { switches, cpu: on_cpu.parse::<f64>()? / 1e9 })
    }
}

/// Looks at the memory of processes until it is asked.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    highest: Option<JoinHandle<f64>>,
}

impl Watch {
    /// Starts looking, five times a second.
    pub fn start(processes: &[u32]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (processes, stopped) = (processes.to_vec(), stop.clone());
        let highest = thread::spawn(move || {
            let mut highest = 0.0_f64;
            while !stopped.load(Ordering::Relaxed) {
                highest = processes.iter().filter_map(|process| rss(*process).ok()).fold(highest, f64::max);
                thread::sleep(Duration::from_millis(200));
            }
            highest
        });
        Self { stop, highest: Some(highest) }
    }

    /// The most any of them had, bytes.
    pub fn stop(mut self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.highest.take().map_or(0.0, |highest| highest.join().expect("reading /proc does not panic"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_that_was_not_answered_is_the_slowest() {
        let text = "64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.500 ms\n\
                    64 bytes from 10.0.0.1: icmp_seq=3 ttl=64 time=1.50 ms\n";
        let times = RoundTrips::of(text, 3).expect("two were");
        assert_eq!(times.percentile(0.5), 0.0015);
        assert_eq!(times.percentile(0.99), f64::INFINITY);
        assert!(RoundTrips::of("nothing", 3).is_none());
    }

    #[test]
    fn the_kernel_says_how_busy_we_are() {
        let process = std::process::id();
        assert!(rss(process).expect("we run") > 0.0);
        assert!(cpu_seconds(process).expect("we run") >= 0.0);
        assert!(Busy::read(process).expect("we run").cpu > 0.0);
    }
}
