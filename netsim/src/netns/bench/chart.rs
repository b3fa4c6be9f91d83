//! Two bar charts in one SVG, drawn by hand: TCP throughput and small packets of everybody.

use std::fmt::Write as _;

use super::samples::{Metric, Samples, Way};

/// Pixels: of the picture, of the names' column, and of the longest bar; the rest is for the figures.
const WIDTH: usize = 760;
const NAMES: usize = 120;
const LONGEST: usize = 520;
const BAR: usize = 18;
const ROW: usize = 28;
const HEAD: usize = 48;

/// One panel: its title, and how a value is shown.
type Panel = (&'static str, fn(&Samples, Way) -> Option<f64>, fn(f64) -> String);

const PANELS: [Panel; 2] = [
    ("TCP, one stream, both directions' mean", mean_tcp, |value| format!("{:.2} Gbit/s", value / 1e9)),
    ("UDP, packets of 64 bytes, a second, with less than 1 % lost", small_packets, |value| {
        format!("{:.0} k", value / 1e3)
    }),
];

fn mean_tcp(samples: &Samples, way: Way) -> Option<f64> {
    Some(f64::midpoint(samples.median(way, Metric::TcpThere)?, samples.median(way, Metric::TcpBack)?))
}

fn small_packets(samples: &Samples, way: Way) -> Option<f64> {
    samples.median(way, Metric::Udp64)
}

/// The picture.
pub fn draw(samples: &Samples) -> String {
    let mut body = String::new();
    let mut top = 12;
    for (title, value, show) in PANELS {
        let rows: Vec<(Way, f64)> =
            samples.ways().into_iter().filter_map(|way| Some((way, value(samples, way)?))).collect();
        let Some(most) = rows.iter().map(|(_, value)| *value).max_by(f64::total_cmp).filter(|most| *most > 0.0) else {
            continue;
        };
        let mut put = |line: String| writeln!(body, "{line}").expect("a String takes everything");
        put(format!("<text x=\"16\" y=\"{}\" class=\"title\">{title}</text>", top + 24));
        for (row, (way, value)) in rows.iter().enumerate() {
            let (y, length) = (top + HEAD + row * ROW, (LONGEST as f64 * value / most).max(1.0));
            let (class, middle) = (if *way == Way::Meshd { "ours" } else { "bar" }, y + BAR - 5);
            put(format!("<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>", NAMES - 10, way.name()));
            put(format!(
                "<rect x=\"{NAMES}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" class=\"{class}\"/>"
            ));
            put(format!(
                "<text x=\"{:.1}\" y=\"{middle}\" class=\"value\">{}</text>",
                NAMES as f64 + length + 8.0,
                show(*value)
            ));
        }
        top += HEAD + rows.len() * ROW + 8;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <style>text{{fill:#333}} .title{{font-weight:600;font-size:15px}} .value{{fill:#666}} .bar{{fill:#a9b4c2}} \
         .ours{{fill:#d9622b}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{body}</svg>\n",
        height = top + 8
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_bar_for_everybody_who_was_measured() {
        let mut samples = Samples::default();
        for way in [Way::Raw, Way::Meshd] {
            samples.add(way, Metric::Udp64, 1000.0);
        }
        let picture = draw(&samples);
        assert_eq!(picture.matches("<rect x=").count(), 2);
        assert_eq!(picture.matches("class=\"ours\"").count(), 1);
        assert!(!draw(&Samples::default()).contains("<text"));
    }
}
