//! iperf3 between two laptops, and what it says.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Background, Laptop, read_all, wait_for};

/// Starts a server for any number of runs; returns when it listens.
///
/// # Errors
/// When it does not.
pub fn serve(laptop: &Laptop, port: u16) -> Result<Background> {
    let server = Background::start(laptop.command("iperf3").args(["--server", "--port", &port.to_string()]))?;
    wait_for("iperf3 listens", Duration::from_secs(5), || Ok(laptop.run("ss -ltn")?.contains(&format!(":{port} "))))?;
    Ok(server)
}

/// How long a run may take. All of them are told to end after a few seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// A client, to be run: `options` are words between spaces.
pub fn client(laptop: &Laptop, target: IpAddr, options: &str) -> Command {
    let mut command = laptop.command("iperf3");
    command.args(["--json", "--connect-timeout", "5000", "--client", &target.to_string()]);
    if !options.contains("--udp") {
        // Linux's own, whatever this machine's default is; a namespace may not change its default to it.
        command.args(["--congestion", "cubic"]);
    }
    command.args(options.split_whitespace());
    command
}

/// Runs a client to the server at `target`.
///
/// # Errors
/// When it fails, or says nothing, or does not end within half a minute; the error has what every kernel says of its
/// connections.
pub fn run(laptop: &Laptop, target: IpAddr, options: &str) -> Result<Report> {
    let mut client = client(laptop, target, options).stdout(Stdio::piped()).spawn()?;
    let said = client.stdout.take().context("piped")?;
    let said = thread::spawn(move || read_all(said));
    let mut status = None;
    let ended = wait_for(&format!("iperf3 {options} ends"), LIMIT, || {
        status = client.try_wait()?;
        Ok(status.is_some())
    });
    if let Err(error) = ended {
        let sockets = super::run("ip -all netns exec ss -tinoH").unwrap_or_default();
        client.kill()?;
        client.wait()?;
        return Err(error.context(sockets));
    }
    let text = said.join().expect("reading does not panic")?;
    ensure!(status.is_some_and(|status| status.success()), "iperf3 {options}: {status:?}: {text}");
    Report::of(&text)
}

/// What a client said.
#[derive(Debug)]
pub struct Report(Value);

impl Report {
    /// Reads it.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(text: &str) -> Result<Self> {
        Ok(Self(serde_json::from_str(text).with_context(|| format!("iperf3 said {text}"))?))
    }

    /// Received a second, bits; of UDP what was sent less what was lost.
    ///
    /// # Errors
    /// When it does not say.
    pub fn received(&self) -> Result<f64> {
        let end = &self.0["end"];
        if let Some(rate) = end["sum_received"]["bits_per_second"].as_f64() {
            return Ok(rate);
        }
        let rate = end["sum"]["bits_per_second"].as_f64().with_context(|| format!("no rate in {}", self.0))?;
        Ok(rate * (1.0 - self.lost()?))
    }

    /// Of UDP: lost for each sent.
    ///
    /// # Errors
    /// When it does not say.
    pub fn lost(&self) -> Result<f64> {
        let percent = self.0["end"]["sum"]["lost_percent"].as_f64();
        Ok(percent.with_context(|| format!("no loss in {}", self.0))? / 100.0)
    }

    /// Bits a second in each whole interval.
    ///
    /// # Errors
    /// When there is none.
    pub fn intervals(&self) -> Result<Vec<f64>> {
        let intervals = self.0["intervals"].as_array().context("no intervals")?;
        // The last one may be a remainder of milliseconds.
        let longest = intervals.iter().filter_map(|one| one["sum"]["seconds"].as_f64()).fold(0.0, f64::max);
        let rate = |one: &Value| {
            let whole = one["sum"]["seconds"].as_f64()? > 0.9 * longest;
            whole.then(|| one["sum"]["bits_per_second"].as_f64()).flatten()
        };
        Ok(intervals.iter().filter_map(rate).collect())
    }

    /// Segments sent again, by the sender.
    pub fn retransmits(&self) -> Option<u64> {
        self.0["end"]["sum_sent"]["retransmits"].as_u64()
    }
}
