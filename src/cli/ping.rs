//! `meshd ping`: round trips inside the tunnel, told as ping(8) tells them.

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::daemon::api;
use crate::node::command::{Command, PathPongsInfo, PeerInfo, Reply};

use super::render;

/// Shortest and longest interval, seconds. A hundred a second is plenty for a round trip that goes through the control
/// side; an hour is a cron job.
const INTERVALS: std::ops::RangeInclusive<f64> = 0.01..=3600.0;

/// What a run of pings came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Statistics {
    /// Asked.
    pub(super) transmitted: u32,
    /// Answered.
    pub(super) received: u32,
    /// Milliseconds; nothing without an answer.
    pub(super) min_ms: Option<f64>,
    /// Milliseconds; nothing without an answer.
    pub(super) avg_ms: Option<f64>,
    /// Milliseconds; nothing without an answer.
    pub(super) max_ms: Option<f64>,
}

impl Statistics {
    fn count(&mut self, rtt: Option<f64>) {
        self.transmitted += 1;
        let Some(rtt) = rtt else { return };
        let before = f64::from(self.received);
        self.received += 1;
        self.min_ms = Some(self.min_ms.map_or(rtt, |min| min.min(rtt)));
        self.max_ms = Some(self.max_ms.map_or(rtt, |max| max.max(rtt)));
        self.avg_ms = Some((self.avg_ms.unwrap_or(0.0) * before + rtt) / f64::from(self.received));
    }
}

/// Reads the seconds of `--interval`.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !INTERVALS.contains(&seconds) {
        return Err(format!("the interval is from {} to {} seconds", INTERVALS.start(), INTERVALS.end()));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The round trip of an answer; of several paths the quickest.
fn rtt(reply: &Reply) -> Option<f64> {
    match reply {
        Reply::Pong(pong) => Some(pong.rtt_ms),
        Reply::PathPongs(PathPongsInfo { paths, .. }) => {
            paths.iter().filter_map(|path| path.rtt_ms).min_by(f64::total_cmp)
        }
        Reply::Status(_)
        | Reply::Peers { .. }
        | Reply::Stations { .. }
        | Reply::Lookup(_)
        | Reply::Why(_)
        | Reply::Netcheck(_)
        | Reply::Filter(_)
        | Reply::FilterVerdict(_)
        | Reply::Stated { .. }
        | Reply::Error { .. } => None,
    }
}

/// Asks `command`, a ping, until `count` or Ctrl-C; success means that at least one answer came.
pub(super) fn run(path: &Path, command: &Command, count: Option<u32>, every: Duration, json: bool) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(pings(path, command, count, every, json));
    // A request that is still waiting for its answer must not keep us.
    runtime.shutdown_background();
    result
}

async fn pings(path: &Path, ping: &Command, count: Option<u32>, every: Duration, json: bool) -> Result<ExitCode> {
    let (Command::Ping { peer } | Command::PingPaths { peer }) = ping else { bail!("not a ping") };
    let mut statistics = Statistics::default();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    while count.is_none_or(|count| statistics.transmitted < count) {
        tokio::select! {
            _ = &mut stop => break,
            _ = ticks.tick() => {}
        }
        let (socket, command) = (path.to_owned(), ping.clone());
        let answer = tokio::task::spawn_blocking(move || api::request(&socket, &command));
        let reply = tokio::select! {
            _ = &mut stop => break,
            reply = answer => reply.context("the request failed")??,
        };
        if let Reply::Error { message } = &reply
            && statistics.transmitted == 0
            && !is_known(path, peer)?
        {
            bail!("{message}");
        }
        statistics.count(rtt(&reply));
        render::pinged(json, statistics.transmitted, &reply)?;
    }
    render::statistics(json, peer, &statistics)?;
    Ok(if statistics.received > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether `text` means a member at all. A lost ping is worth another; a name that nobody has is not.
fn is_known(path: &Path, text: &str) -> Result<bool> {
    let Reply::Peers { peers } = api::request(path, &Command::Peers)? else { return Ok(false) };
    Ok(peers.iter().any(|peer| means(text, peer)))
}

fn means(text: &str, peer: &PeerInfo) -> bool {
    let address = |address: IpAddr| address == peer.ipv4 || address == peer.ipv6;
    peer.peer == text
        || peer.name.eq_ignore_ascii_case(text)
        || peer.mac.eq_ignore_ascii_case(&text.replace('-', ":"))
        || text.parse().is_ok_and(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::command::PathPongInfo;

    #[test]
    fn statistics_count_answers_and_silence() {
        let mut statistics = Statistics::default();
        statistics.count(Some(1.0));
        statistics.count(None);
        statistics.count(Some(4.0));
        let expected =
            Statistics { transmitted: 3, received: 2, min_ms: Some(1.0), avg_ms: Some(2.5), max_ms: Some(4.0) };
        assert_eq!(statistics, expected);
    }

    #[test]
    fn of_several_paths_the_quickest_counts() {
        let path = |rtt_ms| PathPongInfo {
            endpoint: "192.0.2.1:4747".parse().expect("an endpoint"),
            via: None,
            socket: None,
            in_use: false,
            tried: true,
            rtt_ms,
        };
        let reply = |paths| Reply::PathPongs(PathPongsInfo { name: "laptop".to_owned(), paths });
        assert_eq!(rtt(&reply(vec![path(None), path(Some(7.0)), path(Some(2.0))])), Some(2.0));
        assert_eq!(rtt(&reply(vec![path(None)])), None);
    }

    #[test]
    fn an_interval_is_seconds_within_reason() {
        assert_eq!(parse_interval("0.2"), Ok(Duration::from_millis(200)));
        for text in ["0", "-1", "nan", "inf", "1e9", "1s", ""] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
