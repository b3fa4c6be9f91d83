//! What happened: one line an event, hashed as it is written, kept if somebody wants to read it.
//!
//! Two runs with one seed have the same trace byte for byte; bytes of datagrams are in it by their hash.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::time::Duration;

use meshd::dht;

/// Lines kept for reading: the end of a run is where it went wrong.
const MAX_LINES: usize = 1_000_000;

/// How much is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Nothing: for long runs.
    Off,
    /// The hash of every line.
    Hash,
    /// The hash, and the lines themselves of this span of seconds: the last of them, if they are too many.
    Lines {
        /// From this second on.
        from: u64,
        /// Up to this second.
        until: u64,
    },
}

impl Detail {
    /// What `NETSIM_TRACE` asks for: `10..20` the lines of that span of seconds, anything else all of them.
    pub fn asked(text: &str) -> Self {
        let span = text.split_once("..").and_then(|(from, until)| Some((from.parse().ok()?, until.parse().ok()?)));
        let (from, until) = span.unwrap_or((0, u64::MAX));
        Self::Lines { from, until }
    }
}

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    detail: Detail,
    digest: Fnv,
    written: u64,
    lines: VecDeque<String>,
}

impl Trace {
    /// An empty trace.
    pub fn new(detail: Detail) -> Self {
        Self { detail, digest: Fnv::default(), written: 0, lines: VecDeque::new() }
    }

    /// Notes that `what` happened at `now` to `who`.
    pub fn note(&mut self, now: Duration, who: &str, what: fmt::Arguments<'_>) {
        if self.detail == Detail::Off {
            return;
        }
        self.written += 1;
        let (seconds, micros) = (now.as_secs(), now.subsec_nanos());
        writeln!(self.digest, "{seconds}.{micros:09} {who} {what}").expect("hashing never fails");
        if let Detail::Lines { from, until } = self.detail
            && (from..until).contains(&seconds)
        {
            if self.lines.len() >= MAX_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{seconds:6}.{micros:09} {who:12} {what}"));
        }
    }

    /// The hash of every line so far.
    pub fn digest(&self) -> u64 {
        self.digest.0
    }

    /// How many lines there were.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The last lines, if they are kept.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// The hash of `bytes`, for the trace.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hash = Fnv::default();
    hash.update(bytes);
    hash.0
}

/// FNV-1a, 64 bits: traces are compared, not attacked.
#[derive(Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.update(text.as_bytes());
        Ok(())
    }
}

/// What the directory tells a node, in a word.
pub(crate) fn kind(event: &dht::Event) -> &'static str {
    match event {
        dht::Event::Found { .. } => "found",
        dht::Event::NotFound { .. } => "not-found",
        dht::Event::Gossip(_) => "gossip",
        dht::Event::Sighting(_) => "sighting",
        dht::Event::Standing(_) => "standing",
        dht::Event::Met(_) => "met",
        dht::Event::Statement(_) => "statement",
    }
}

/// What a node wants of the directory, in a word.
pub(crate) fn command_kind(command: &dht::Command) -> &'static str {
    match command {
        dht::Command::Publish(_) => "publish",
        dht::Command::Lookup { .. } => "lookup",
        dht::Command::Dial { .. } => "dial",
        dht::Command::Listening(_) => "listening",
        dht::Command::Homes(_) => "homes",
        dht::Command::State(_) => "state",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_events_have_the_same_digest_whether_kept_or_not() {
        let run = |detail, what: &str| {
            let mut trace = Trace::new(detail);
            trace.note(Duration::from_millis(5), "ada", format_args!("{what}"));
            trace.note(Duration::from_millis(6), "bob", format_args!("send {}", 7));
            (trace.digest(), trace.lines().count())
        };
        let (hashed, kept) = (run(Detail::Hash, "start"), run(Detail::asked("1"), "start"));
        assert_eq!(hashed.0, kept.0);
        assert_eq!((hashed.1, kept.1), (0, 2));
        assert_eq!(run(Detail::asked("1..9"), "start"), (hashed.0, 0));
        assert_ne!(run(Detail::Hash, "stop").0, hashed.0);
    }
}
