//! How long it takes from `meshd up` to the first answered ping through the overlay.
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Lab, Laptop, Node};

/// Between pings, milliseconds: the resolution of the measurement.
const PING_EVERY: Duration = Duration::from_millis(20);

/// What came of several runs, shortest first.
#[derive(Debug, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// The middle one.
    pub fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    /// The longest.
    pub fn worst(&self) -> Duration {
        self.0[self.0.len() - 1]
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |time: Duration| time.as_secs_f64();
        let (first, median, worst) = (seconds(self.0[0]), seconds(self.median()), seconds(self.worst()));
        write!(f, "{} starts: best {first:.2} s, median {median:.2} s, worst {worst:.2} s", self.0.len())
    }
}

/// Five laptops; one starts `runs` times, each time with a fresh process, and pings another. Four stay up.
///
/// # Errors
/// When a run takes longer than 15 s.
pub fn measure(lab: &mut Lab, runs: usize, mut each: impl FnMut(Duration)) -> Result<Times> {
    let [here, there, others @ ..] = lab.laptops(["here", "there", "bob", "cyd", "dan"])?;
    let invite = there.found("start")?;
    here.join(&invite)?;
    let target = there.up()?;
    let mut company = Vec::new();
    for other in &others {
        other.join(&invite)?;
        company.push(other.up()?);
    }
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let (mut node, time) = until_first_ping(&here, target.ipv4())?;
        each(time);
        times.push(time);
        // Half the restarts are polite, half are not.
        if times.len() % 2 == 0 {
            node.kill9()?;
        } else {
            node.terminate()?;
        }
    }
    times.sort_unstable();
    Ok(Times(times))
}

/// Starts meshd on `laptop` and pings `target` until it answers.
///
/// # Errors
/// When it has not after 15 s; the error has the end of the log.
pub fn until_first_ping(laptop: &Laptop, target: Ipv4Addr) -> Result<(Node, Duration)> {
    let start = Instant::now();
    let mut node = laptop.start(&mut laptop.meshd_command(&["up"]))?;
    // Without a TAP ping(8) ends at once; then it is started again.
    while start.elapsed() < Duration::from_secs(15) {
        if ping_once(laptop, target)? {
            return Ok((node, start.elapsed()));
        }
        if !node.is_running()? {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    bail!("{} did not reach {target} after {:?}:\n{}", laptop.name, start.elapsed(), node.log_tail());
}

/// Pings until the first answer, at most 15 s; false if ping(8) cannot.
pub(super) fn ping_once(laptop: &Laptop, target: Ipv4Addr) -> Result<bool> {
    let interval = format!("{:.3}", PING_EVERY.as_secs_f64());
    let mut child = laptop
        .command("ping")
        .args(["-n", "-i", &interval, "-w", "15", &target.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let answered = lines.map_while(Result::ok).any(|line| line.contains(" bytes from "));
    let _ = child.kill();
    child.wait()?;
    Ok(answered)
}
