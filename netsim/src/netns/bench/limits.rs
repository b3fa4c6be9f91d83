//! What issue 3 asks for, and whether it is so in this run.

use super::samples::{Metric, Samples, Way, median};

/// One promise.
#[derive(Debug)]
pub struct Limit {
    /// What is compared.
    pub what: &'static str,
    /// The figure, if what it needs was measured.
    pub value: Option<f64>,
    /// What it may at most or must at least be.
    pub bound: Bound,
    /// Behind the value.
    pub unit: &'static str,
}

/// A bound, inclusive.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// As much or more.
    AtLeast(f64),
    /// As much or less.
    AtMost(f64),
}

impl Limit {
    /// Whether it holds; not known if it was not measured.
    pub fn holds(&self) -> Option<bool> {
        self.value.map(|value| match self.bound {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
        })
    }

    /// For people.
    pub fn verdict(&self) -> &'static str {
        match self.holds() {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "not measured",
        }
    }

    /// The value and its unit.
    pub fn show(&self) -> String {
        match self.value {
            Some(value) if value.is_infinite() => "lost".to_owned(),
            // A ratio, to the digit that decides.
            Some(value) if self.unit.is_empty() => format!("{value:.3}"),
            Some(value) => format!("{value:.2}{}", self.unit),
            None => "-".to_owned(),
        }
    }

    /// The bound and its unit.
    pub fn show_bound(&self) -> String {
        match self.bound {
            Bound::AtLeast(bound) => format!("≥ {bound}{}", self.unit),
            Bound::AtMost(bound) => format!("≤ {bound}{}", self.unit),
        }
    }
}

/// All of them, from the medians of one run. Where both directions were measured the worse one counts, of
/// memory and idleness the worst sample.
pub fn check(samples: &Samples) -> Vec<Limit> {
    let ours = |metric| samples.median(Way::Meshd, metric);
    let raw = |metric| raw(samples, metric);
    let ratio = |metric, other: Option<f64>| Some(ours(metric)? / other?);
    let worse = |first: Option<f64>, second: Option<f64>| Some(first?.min(second?));
    let to_raw = |metric| ratio(metric, raw(metric));
    let to_vxlan = |metric| ratio(metric, samples.median(Way::Vxlan, metric));
    let four = |four, one| ratio(four, ours(one));
    let above_raw = |metric| Some((ours(metric)? - raw(metric)?) * 1e6);
    let busy = || Some((samples.median(Way::MeshdBusy, Metric::IdleP50)? - raw(Metric::IdleP50)?) * 1e6);
    let scaled = |metric, unit: f64| ours(metric).map(|value| value / unit);
    let worst = |metric, unit: f64| {
        let values = samples.of(Way::Meshd, metric);
        values.iter().copied().max_by(f64::total_cmp).map(|value| value / unit)
    };
    let limit = |what, value, bound, unit| Limit { what, value, bound, unit };
    use Bound::{AtLeast, AtMost};
    const MIB: f64 = 1_048_576.0;
    vec![
        limit("TCP one stream / raw", worse(to_raw(Metric::TcpThere), to_raw(Metric::TcpBack)), AtLeast(0.45), ""),
        limit(
            "TCP one stream / kernel VXLAN",
            worse(to_vxlan(Metric::TcpThere), to_vxlan(Metric::TcpBack)),
            AtLeast(0.5),
            "",
        ),
        // Two medians of three differ by as much when nothing else does.
        limit(
            "TCP four streams / one (1, less 3 % of noise)",
            worse(four(Metric::Tcp4There, Metric::TcpThere), four(Metric::Tcp4Back, Metric::TcpBack)),
            AtLeast(0.97),
            "",
        ),
        limit("CPU of both nodes", ours(Metric::Cpu), AtMost(1.8), " s/GB"),
        limit("UDP 64 B / n2n", ratio(Metric::Udp64, samples.median(Way::N2n, Metric::Udp64)), AtLeast(4.0), ""),
        limit("UDP 1400 B / raw", to_raw(Metric::Udp1400), AtLeast(0.4), ""),
        limit("ping p50 above raw", above_raw(Metric::IdleP50), AtMost(70.0), " µs"),
        limit("the same with --busy-poll", busy(), AtMost(70.0), " µs"),
        limit("ping p99 above raw", above_raw(Metric::IdleP99), AtMost(300.0), " µs"),
        limit("ping p99 beside full-rate TCP", scaled(Metric::LoadedP99, 1e-3), AtMost(5.0), " ms"),
        limit("TCP with 1 % loss and 20 ms / raw", to_raw(Metric::TcpLossy), AtLeast(0.9), ""),
        limit("RSS, idle of five, the worst", worst(Metric::MeshRss, MIB), AtMost(20.0), " MiB"),
        limit("wake-ups, idle of five, the worst", worst(Metric::Wakeups, 1.0), AtMost(10.0), " /s"),
        limit("CPU, idle of five, the worst", worst(Metric::IdleCpu, 0.01), AtMost(0.2), " % of a core"),
        limit("CPU of a relay / of an end", ours(Metric::RelayShare), AtMost(0.6), ""),
        limit("RSS under load, the worst", worst(Metric::RssLoaded, MIB), AtMost(40.0), " MiB"),
    ]
}

/// Raw at the start and at the end of the rounds together, where both were measured.
pub fn raw(samples: &Samples, metric: Metric) -> Option<f64> {
    let both = [samples.of(Way::Raw, metric), samples.of(Way::Control, metric)].concat();
    median(&both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_is_missed_or_was_not_measured() {
        let mut samples = Samples::default();
        samples.add(Way::Meshd, Metric::Cpu, 1.8);
        samples.add(Way::Meshd, Metric::Udp1400, 30.0);
        samples.add(Way::Raw, Metric::Udp1400, 100.0);
        let verdict = |what: &str| {
            let limits = check(&samples);
            limits.iter().find(|limit| limit.what == what).expect("a limit").verdict()
        };
        assert_eq!(verdict("CPU of both nodes"), "ok");
        assert_eq!(verdict("UDP 1400 B / raw"), "MISSED");
        assert_eq!(verdict("UDP 64 B / n2n"), "not measured");
    }

    #[test]
    fn the_worse_direction_counts() {
        let mut samples = Samples::default();
        for (way, there, back) in [(Way::Raw, 10.0, 10.0), (Way::Meshd, 6.0, 4.0)] {
            samples.add(way, Metric::TcpThere, there);
            samples.add(way, Metric::TcpBack, back);
        }
        assert_eq!(check(&samples)[0].value, Some(0.4));
        assert_eq!(check(&samples)[0].holds(), Some(false));
    }
}
