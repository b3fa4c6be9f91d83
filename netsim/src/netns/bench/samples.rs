//! What was measured: for each contestant and each figure the samples of all rounds, and their medians.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// One way from the first laptop to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// No tunnel.
    Raw,
    /// No tunnel, at the end of a round: what differs from the first is the machine's doing.
    Control,
    /// The kernel's own layer-2 tunnel, without encryption.
    Vxlan,
    /// Ours.
    Meshd,
    /// Ours, with threads that look for work before they sleep.
    MeshdBusy,
    /// Layer 2 in user space.
    N2n,
    /// Layer 2 in user space.
    Tinc,
    /// Layer 2 in user space.
    Fastd,
    /// Layer 2 in user space, over TLS's keys.
    OpenVpn,
    /// Layer 3 in user space.
    WireGuardGo,
}

impl Way {
    /// What others in user space there are.
    pub const PEERS: [Self; 5] = [Self::N2n, Self::Tinc, Self::Fastd, Self::OpenVpn, Self::WireGuardGo];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Control => "raw again",
            Self::Vxlan => "vxlan",
            Self::Meshd => "meshd",
            Self::MeshdBusy => "meshd --busy-poll",
            Self::N2n => "n2n",
            Self::Tinc => "tinc",
            Self::Fastd => "fastd",
            Self::OpenVpn => "openvpn",
            Self::WireGuardGo => "wireguard-go",
        }
    }
}

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// TCP, one stream, first laptop to second, bit/s.
    TcpThere,
    /// TCP, one stream, second to first, bit/s.
    TcpBack,
    /// TCP, four streams, first to second, bit/s.
    Tcp4There,
    /// TCP, four streams, second to first, bit/s.
    Tcp4Back,
    /// CPU seconds of both nodes for 10^9 bytes of one stream.
    Cpu,
    /// IPv4 packets of 64 bytes a second with less than 1 % lost.
    Udp64,
    /// Of these, came too late, for each sent.
    Udp64Late,
    /// IPv4 packets of 1400 bytes a second with less than 1 % lost.
    Udp1400,
    /// Of these, came too late, for each sent.
    Udp1400Late,
    /// Round trip, seconds.
    IdleP50,
    /// Round trip, seconds.
    IdleP99,
    /// Round trip, seconds.
    IdleP999,
    /// Round trip beside a TCP stream, seconds.
    LoadedP50,
    /// Round trip beside a TCP stream, seconds.
    LoadedP99,
    /// Round trip beside a TCP stream, seconds.
    LoadedP999,
    /// Resident memory of the larger node before any load, bytes.
    RssIdle,
    /// Highest resident memory of the larger node under load, bytes.
    RssLoaded,
    /// Context switches a second, of an idle node among five.
    Wakeups,
    /// Share of a core, of an idle node among five.
    IdleCpu,
    /// Resident memory of an idle node among five, bytes.
    MeshRss,
    /// TCP with 1 % loss and 20 ms round trip, bit/s.
    TcpLossy,
    /// TCP over the narrow cable, bit/s.
    TcpNarrow,
    /// UDP at four fifths of the narrow cable's rate: lost for each sent.
    UdpNarrowLoss,
    /// TCP through a relay, bit/s.
    TcpRelayed,
    /// CPU seconds of the relay for 10^9 bytes of that.
    RelayCpu,
    /// The same, for each of one end.
    RelayShare,
}

impl Metric {
    /// All, in the order of the table.
    pub const ALL: [Self; 26] = [
        Self::TcpThere,
        Self::TcpBack,
        Self::Tcp4There,
        Self::Tcp4Back,
        Self::Cpu,
        Self::Udp64,
        Self::Udp64Late,
        Self::Udp1400,
        Self::Udp1400Late,
        Self::IdleP50,
        Self::IdleP99,
        Self::IdleP999,
        Self::LoadedP50,
        Self::LoadedP99,
        Self::LoadedP999,
        Self::RssIdle,
        Self::RssLoaded,
        Self::Wakeups,
        Self::IdleCpu,
        Self::MeshRss,
        Self::TcpLossy,
        Self::TcpNarrow,
        Self::UdpNarrowLoss,
        Self::TcpRelayed,
        Self::RelayCpu,
        Self::RelayShare,
    ];

    /// Its name for programs.
    pub fn key(self) -> &'static str {
        self.describe().0
    }

    /// What it is, with its unit.
    pub fn label(self) -> &'static str {
        self.describe().1
    }

    /// A value, in the label's unit.
    pub fn show(self, value: f64) -> String {
        let (_, _, unit, digits) = self.describe();
        if value.is_infinite() { "lost".to_owned() } else { format!("{:.digits$}", value / unit) }
    }

    /// Key, label, the label's unit in ours, digits.
    fn describe(self) -> (&'static str, &'static str, f64, usize) {
        const MBIT: f64 = 1e6;
        const MICROSECOND: f64 = 1e-6;
        const MIB: f64 = 1_048_576.0;
        match self {
            Self::TcpThere => ("tcp_1_there", "TCP 1 stream, Mbit/s", MBIT, 0),
            Self::TcpBack => ("tcp_1_back", "TCP 1 stream back, Mbit/s", MBIT, 0),
            Self::Tcp4There => ("tcp_4_there", "TCP 4 streams, Mbit/s", MBIT, 0),
            Self::Tcp4Back => ("tcp_4_back", "TCP 4 streams back, Mbit/s", MBIT, 0),
            Self::Cpu => ("cpu_s_per_gb", "CPU of both nodes, s/GB", 1.0, 2),
            Self::Udp64 => ("udp_64_pps", "UDP 64 B, packets/s", 1.0, 0),
            Self::Udp64Late => ("udp_64_reordered", "UDP 64 B, reordered, %", 0.01, 2),
            Self::Udp1400 => ("udp_1400_pps", "UDP 1400 B, packets/s", 1.0, 0),
            Self::Udp1400Late => ("udp_1400_reordered", "UDP 1400 B, reordered, %", 0.01, 2),
            Self::IdleP50 => ("ping_idle_p50", "ping p50, µs", MICROSECOND, 0),
            Self::IdleP99 => ("ping_idle_p99", "ping p99, µs", MICROSECOND, 0),
            Self::IdleP999 => ("ping_idle_p99_9", "ping p99.9, µs", MICROSECOND, 0),
            Self::LoadedP50 => ("ping_loaded_p50", "ping beside TCP p50, µs", MICROSECOND, 0),
            Self::LoadedP99 => ("ping_loaded_p99", "ping beside TCP p99, µs", MICROSECOND, 0),
            Self::LoadedP999 => ("ping_loaded_p99_9", "ping beside TCP p99.9, µs", MICROSECOND, 0),
            Self::RssIdle => ("rss_idle", "RSS at rest, MiB", MIB, 1),
            Self::RssLoaded => ("rss_loaded", "RSS under load, MiB", MIB, 1),
            Self::Wakeups => ("mesh_wakeups", "5-node mesh at rest: wake-ups/s", 1.0, 1),
            Self::IdleCpu => ("mesh_cpu", "5-node mesh at rest: CPU, % of a core", 0.01, 2),
            Self::MeshRss => ("mesh_rss", "5-node mesh at rest: RSS, MiB", MIB, 1),
            Self::TcpLossy => ("tcp_lossy", "TCP, 1 % loss and 20 ms, Mbit/s", MBIT, 2),
            Self::TcpNarrow => ("tcp_narrow", "TCP, 50 Mbit/s and 64 KB queue, Mbit/s", MBIT, 1),
            Self::UdpNarrowLoss => ("udp_narrow_loss", "UDP 40 Mbit/s on the same: lost, %", 0.01, 2),
            Self::TcpRelayed => ("tcp_relayed", "TCP through a relay, Mbit/s", MBIT, 0),
            Self::RelayCpu => ("relay_cpu_s_per_gb", "CPU of the relay, s/GB", 1.0, 2),
            Self::RelayShare => ("relay_cpu_share", "CPU of the relay, for each of an end's", 1.0, 2),
        }
    }
}

/// All samples, and what could not be measured.
#[derive(Debug, Default)]
pub struct Samples {
    values: BTreeMap<(Way, Metric), Vec<f64>>,
    notes: Vec<(Way, String)>,
}

impl Samples {
    /// Adds one.
    pub fn add(&mut self, way: Way, metric: Metric, value: f64) {
        self.values.entry((way, metric)).or_default().push(value);
    }

    /// Says why something of `way` is missing, once.
    pub fn note(&mut self, way: Way, why: String) {
        if !self.notes.iter().any(|note| note.0 == way && note.1 == why) {
            self.notes.push((way, why));
        }
    }

    /// What is missing, and why.
    pub fn notes(&self) -> &[(Way, String)] {
        &self.notes
    }

    /// Of this figure.
    pub fn of(&self, way: Way, metric: Metric) -> &[f64] {
        self.values.get(&(way, metric)).map_or(&[], Vec::as_slice)
    }

    /// The middle one, if there is any.
    pub fn median(&self, way: Way, metric: Metric) -> Option<f64> {
        median(self.of(way, metric))
    }

    /// Who has any sample, and of what.
    pub fn ways(&self) -> Vec<Way> {
        let mut ways: Vec<Way> = self.values.keys().map(|(way, _)| *way).collect();
        ways.dedup();
        ways
    }

    /// What anybody has a sample of.
    pub fn metrics(&self) -> Vec<Metric> {
        Metric::ALL.into_iter().filter(|metric| self.values.keys().any(|(_, other)| other == metric)).collect()
    }

    /// Raw samples, by contestant and figure; what was lost is null.
    pub fn to_json(&self) -> Value {
        let mut contestants = json!({});
        for ((way, metric), values) in &self.values {
            contestants[way.name()][metric.key()] = json!(values);
        }
        contestants
    }
}

/// The middle one, or what is halfway between the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(if lower == upper { upper } else { f64::midpoint(lower, upper) })
}

/// The smallest value that `share` of all are not above.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_there() {
        let values: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(500.0));
        assert_eq!(percentile(&values, 0.999), Some(999.0));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[f64::INFINITY; 2]), Some(f64::INFINITY));
        assert_eq!(median(&[]), None);
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn every_metric_is_in_the_table_once_and_has_its_own_key() {
        let mut keys: Vec<_> = Metric::ALL.iter().map(|metric| metric.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), Metric::ALL.len());
        assert!(Metric::ALL.is_sorted());
    }
}
