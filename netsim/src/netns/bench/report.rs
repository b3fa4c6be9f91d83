//! What is written: a table for people, JSON for programs, a chart for the README.
#![expect(clippy::print_stdout, reason = "it is made to be watched")]

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::samples::{Metric, Samples, Way};
use super::{Options, chart, limits, peers};

/// A line while it runs.
pub fn progress(line: &str) {
    println!("{line}");
}

/// Prints the tables and writes the folder.
///
/// # Errors
/// When it cannot be written.
pub fn write(samples: &Samples, options: &Options, took: Duration) -> Result<()> {
    let machine = Machine::this(options);
    let text = markdown(samples, options, &machine, took);
    println!("\n{text}");
    fs::create_dir_all(&options.out)?;
    fs::write(options.out.join("results.md"), text)?;
    let results = serde_json::to_string_pretty(&results(samples, options, &machine, took))?;
    fs::write(options.out.join("results.json"), results + "\n")?;
    fs::write(options.out.join("chart.svg"), chart::draw(samples))?;
    println!("written: {}/{{results.md,results.json,chart.svg}}", options.out.display());
    Ok(())
}

/// Where it ran.
struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    congestion: String,
    commit: String,
    date: String,
}

impl Machine {
    fn this(options: &Options) -> Self {
        let default = || fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let told = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".to_owned());
        Self {
            kernel,
            cpu: cpu.map_or("unknown", |(_, name)| name).trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            congestion: options.congestion.clone().unwrap_or_else(default).trim().to_owned(),
            commit: told("BENCH_COMMIT"),
            date: told("BENCH_DATE"),
        }
    }
}

fn results(samples: &Samples, options: &Options, machine: &Machine, took: Duration) -> Value {
    let limits: Vec<Value> = limits::check(samples)
        .iter()
        .map(|limit| json!({ "what": limit.what, "value": limit.value, "limit": limit.show_bound(), "holds": limit.holds() }))
        .collect();
    let notes: Vec<Value> = samples.notes().iter().map(|(way, why)| json!({ "who": way.name(), "why": why })).collect();
    json!({
        "date": machine.date,
        "commit": machine.commit,
        "kernel": machine.kernel,
        "cpu": machine.cpu,
        "cores": machine.cores,
        "congestion": machine.congestion,
        "rounds": options.rounds,
        "quick": options.quick,
        "seconds": took.as_secs(),
        "samples": samples.to_json(),
        "not_run": notes,
        "limits": limits,
    })
}

fn markdown(samples: &Samples, options: &Options, machine: &Machine, took: Duration) -> String {
    let mut text = String::new();
    let mut line = |line: &str| writeln!(text, "{line}").expect("a String takes everything");
    let Machine { kernel, cpu, cores, congestion, commit, date } = machine;
    line("# Benchmark");
    line("");
    line(&format!(
        "{date}, commit {commit}, Linux {kernel}, {cores} cores of {cpu}, TCP with {congestion}; {} rounds, {} min.",
        options.rounds,
        took.as_secs().div_ceil(60)
    ));
    if options.quick {
        line("");
        line("A quick run: it shows that it works, not how fast.");
    }
    line("");
    line("## What is promised");
    line("");
    line("| | this run | limit | |");
    line("|---|---:|---:|---|");
    for limit in limits::check(samples) {
        line(&format!("| {} | {} | {} | {} |", limit.what, limit.show(), limit.show_bound(), limit.verdict()));
    }
    let ways = samples.ways();
    let heads: String = ways.iter().map(|way| format!(" {} |", way.name())).collect();
    let rule = format!("|---|{}", "---:|".repeat(ways.len()));
    line("");
    line("## What was measured");
    line("");
    line("Medians; behind them half the range of the samples in per cent of the median.");
    line("");
    line(&format!("| |{heads}"));
    line(&rule);
    for metric in samples.metrics() {
        let cells: String = ways.iter().map(|way| format!(" {} |", cell(samples, *way, metric))).collect();
        line(&format!("| {} |{cells}", metric.label()));
    }
    for (name, base) in [("raw", Way::Raw), ("kernel VXLAN", Way::Vxlan)] {
        let of_base =
            |metric| if base == Way::Raw { limits::raw(samples, metric) } else { samples.median(base, metric) };
        let metrics: Vec<Metric> = COMPARED.into_iter().filter(|metric| of_base(*metric).is_some()).collect();
        if metrics.is_empty() {
            continue;
        }
        line("");
        line(&format!("## In proportion to {name}"));
        line("");
        line(&format!("| |{heads}"));
        line(&rule);
        for metric in metrics {
            let ratio = |way: &Way| Some(samples.median(*way, metric)? / of_base(metric)?);
            let cell = |way| ratio(way).map_or(" |".to_owned(), |ratio| format!(" {ratio:.3} |"));
            line(&format!("| {} |{}", short(metric), ways.iter().map(cell).collect::<String>()));
        }
    }
    if !samples.notes().is_empty() {
        line("");
        line("## Not run");
        line("");
        for (way, why) in samples.notes() {
            line(&format!("- {}: {}", way.name(), why.lines().next().unwrap_or_default()));
        }
    }
    line("");
    line("## What is what");
    line("");
    for paragraph in EXPLANATION {
        line(paragraph);
    }
    line("");
    for way in ways {
        line(&format!("- **{}**: {}", way.name(), peers::setup(way)));
    }
    text
}

/// What more of is better.
const COMPARED: [Metric; 8] = [
    Metric::TcpThere,
    Metric::TcpBack,
    Metric::Tcp4There,
    Metric::Tcp4Back,
    Metric::Udp64,
    Metric::Udp1400,
    Metric::TcpLossy,
    Metric::TcpNarrow,
];

/// The label without its unit.
fn short(metric: Metric) -> &'static str {
    metric.label().rsplit_once(", ").map_or(metric.label(), |(label, _)| label)
}

fn cell(samples: &Samples, way: Way, metric: Metric) -> String {
    let values = samples.of(way, metric);
    let Some(median) = samples.median(way, metric) else { return String::new() };
    let highest = values.iter().copied().fold(f64::MIN, f64::max);
    let lowest = values.iter().copied().fold(f64::MAX, f64::min);
    let spread = 50.0 * (highest - lowest) / median;
    let shown = metric.show(median);
    if values.len() > 1 && spread.is_finite() { format!("{shown} ±{spread:.0} %") } else { shown }
}

const EXPLANATION: [&str; 8] = [
    "- Everything runs on one machine: both laptops (network namespaces), the router between them, iperf3 and the tunnels share",
    "  its cores; nothing is pinned. So figures are ratios, not records. Rounds are interleaved, the bare path comes first and again last.",
    "- TCP is iperf3 with the congestion control named above, on the lossy path with cubic, the first second left out. CPU is user and system time of both nodes' processes for 10^9 bytes of one stream.",
    "- A UDP packet of 64 or 1400 bytes is an IPv4 packet, headers and all: 1400 fits every tunnel uncut. The rate is the highest found of which",
    "  less than 1 % is lost, by our own generator (`netsim load`): unpaced, then a search of six steps.",
    "- Ping: 2000 at rest, 1000 beside one full-rate TCP stream in the same direction; what was not answered counts as infinitely late.",
    "- Loss: a user-space cable of 10 ms each way that loses 1 % of the frames each way; four streams, 15 s. Narrow: 50 Mbit/s, 2 ms each way,",
    "  a queue of 64 KiB. At rest: five nodes on one switch, every node watched for 30 s; wake-ups are context switches of all threads.",
];
