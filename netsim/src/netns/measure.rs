//! What a test looks at: a ping that runs beside everything else, and what a cable carries.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Laptop, read_all, signal};

/// A ping that runs until it is stopped.
#[derive(Debug)]
pub struct Pings {
    child: Child,
    what: String,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Echo requests up to the last one answered.
    pub sent: usize,
    /// Of these, never answered.
    pub lost: usize,
    /// The longest run of lost ones.
    pub longest: usize,
}

impl Pings {
    /// Starts pinging `target` from `laptop`, `per_second` times a second.
    ///
    /// # Errors
    /// When ping(8) cannot be started.
    pub fn start(laptop: &Laptop, target: impl Into<IpAddr>, per_second: u32) -> Result<Self> {
        let target = target.into();
        let interval = format!("{:.3}", 1.0 / f64::from(per_second));
        let child = laptop
            .command("ping")
            .args(["-n", "-i", &interval, &target.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, what: format!("{} to {target}", laptop.name) })
    }

    /// Stops and counts. What was sent after the last answer counts as lost only if it is more than one: that one may
    /// have been on its way.
    ///
    /// # Errors
    /// When nothing was answered at all.
    pub fn stop(mut self) -> Result<Loss> {
        signal("INT", self.child.id())?;
        let text = read_all(self.child.stdout.take().context("piped")?)?;
        self.child.wait()?;
        Loss::of(&text).with_context(|| format!("ping {}: nothing was answered:\n{text}", self.what))
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Loss {
    /// Reads the output of ping(8).
    fn of(text: &str) -> Option<Self> {
        let sequence = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse::<usize>().ok();
        let mut seen: Vec<usize> =
            text.lines().filter(|line| line.contains(" bytes from ")).filter_map(sequence).collect();
        seen.sort_unstable();
        seen.dedup();
        let transmitted: usize =
            text.lines().find_map(|line| line.split_once(" packets transmitted")?.0.trim().parse().ok())?;
        let (&first, &last) = (seen.first()?, seen.last()?);
        let end = if transmitted > last + 1 { transmitted } else { last };
        let gaps = seen.windows(2).map(|pair| pair[1] - pair[0] - 1);
        let longest = gaps.chain([first - 1, end - last]).max().unwrap_or(0);
        Some(Self { sent: end, lost: end - seen.len(), longest })
    }

    /// Lost for each sent.
    pub fn ratio(&self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64
    }
}

/// What passes a laptop's interface, one line each, as tcpdump prints it.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    lines: Option<JoinHandle<Vec<String>>>,
}

impl Capture {
    /// Captures on `interface` of `laptop` what fits `filter`; returns when tcpdump listens.
    ///
    /// # Errors
    /// When tcpdump cannot be started or does not like the filter.
    pub fn start(laptop: &Laptop, interface: &str, filter: &str) -> Result<Self> {
        let mut child = laptop
            .command("tcpdump")
            .args(["-i", interface, "-nn", "-l", "-e", "--immediate-mode", "-B", "16384", filter])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("tcpdump")?;
        let mut said = BufReader::new(child.stderr.take().context("piped")?);
        let (mut line, mut all) = (String::new(), String::new());
        while said.read_line(&mut line)? > 0 && !line.contains("listening on") {
            all.push_str(&line);
            line.clear();
        }
        ensure!(line.contains("listening on"), "tcpdump: {all}");
        // It says more at its end; a full pipe must not stop it.
        thread::spawn(move || read_all(said));
        let out = BufReader::new(child.stdout.take().context("piped")?);
        let lines = thread::spawn(move || out.lines().map_while(Result::ok).collect());
        Ok(Self { child, lines: Some(lines) })
    }

    /// Stops and returns the lines.
    ///
    /// # Errors
    /// When tcpdump does not stop.
    #[expect(clippy::disallowed_methods, reason = "the last datagrams are on their way through the kernel")]
    pub fn stop(mut self) -> Result<Vec<String>> {
        thread::sleep(Duration::from_millis(200));
        signal("INT", self.child.id())?;
        self.child.wait()?;
        let lines = self.lines.take().context("stopped once")?;
        let mut lines = lines.join().expect("reading lines does not panic");
        // An interrupted tcpdump prints an empty one.
        lines.retain(|line| !line.is_empty());
        Ok(lines)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(sequences: &[usize], transmitted: usize) -> String {
        let mut text: String =
            sequences.iter().map(|n| format!("64 bytes from 10.0.0.1: icmp_seq={n} ttl=64 time=0.1 ms\n")).collect();
        text.push_str(&format!("--- statistics ---\n{transmitted} packets transmitted, 3 received, 0% packet loss\n"));
        text
    }

    #[test]
    fn gaps_count_and_the_one_on_its_way_does_not() {
        assert_eq!(Loss::of(&text(&[1, 2, 3], 4)), Some(Loss { sent: 3, lost: 0, longest: 0 }));
        assert_eq!(Loss::of(&text(&[1, 2, 5], 5)), Some(Loss { sent: 5, lost: 2, longest: 2 }));
        assert_eq!(Loss::of(&text(&[1, 2], 9)), Some(Loss { sent: 9, lost: 7, longest: 7 }));
        assert_eq!(Loss::of(&text(&[3, 4], 4)), Some(Loss { sent: 4, lost: 2, longest: 2 }));
        assert_eq!(Loss::of(&text(&[], 4)), None);
    }

    #[test]
    fn an_answer_that_came_twice_is_one_answer() {
        assert_eq!(Loss::of(&text(&[1, 1, 2], 2)), Some(Loss { sent: 2, lost: 0, longest: 0 }));
    }
}
