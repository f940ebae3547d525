// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Charts as SVG, on logarithmic scales: what is twice as fast is the same step anywhere.
//!
//! Colours tell the contenders apart for people who see no colours, too (dark, light,
//! dashed), and read on white and on dark paper.

use std::fmt::Write as _;

const OURS: &str = "#1f6feb";
const THEIRS: &str = "#d9822b";
const SOCKET: &str = "#808080";
const WIDTH: f64 = 760.0;
const STYLE: &str = "font-family=\"sans-serif\" font-size=\"12\" fill=\"#707070\"";

/// A bar chart's row.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What is measured.
    pub title: String,
    /// Our rival, the baseline being 1.
    pub theirs: Option<f64>,
    /// Ours.
    pub ours: Option<f64>,
}

/// A line chart's lines: figures of the socket, theirs, ours, by what grows.
pub type Lines = Vec<(f64, [Option<f64>; 3])>;

/// A logarithmic scale over whole decades.
struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let logs: Vec<f64> = values.filter(|v| *v > 0.0).map(f64::log10).collect();
        let low = logs.iter().copied().fold(f64::INFINITY, f64::min).floor();
        let high = logs
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
            .ceil();
        match low.is_finite() && high.is_finite() {
            true => Self {
                low,
                high: high.max(low + 1.0),
                start,
                end,
            },
            false => Self {
                low: 0.0,
                high: 1.0,
                start,
                end,
            },
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - self.low) / (self.high - self.low);
        self.start + share * (self.end - self.start)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.low as i32..=self.high as i32).map(|exponent| 10f64.powi(exponent))
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// A power of ten for an axis.
fn tick(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}

fn begin(height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" {STYLE}>\n\
         <title>{0}</title>\n<text x=\"10\" y=\"20\" font-size=\"15\">{0}</text>\n",
        escaped(title)
    )
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, what: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(what)
    );
}

fn line(out: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str, width: f64) {
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
         stroke-width=\"{width}\"/>"
    );
}

fn legend(out: &mut String, y: f64, entries: &[(&str, &str)]) {
    let mut x = WIDTH - 10.0 - 120.0 * entries.len() as f64;
    for (name, colour) in entries {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            y - 11.0
        );
        text(out, x + 17.0, y, "start", name);
        x += 120.0;
    }
}

/// A bar chart of ratios to a baseline.
pub fn bars(title: &str, rows: &[Bars]) -> String {
    let (left, top, step) = (270.0, 60.0, 36.0);
    let height = top + step * rows.len() as f64 + 30.0;
    let values = rows
        .iter()
        .flat_map(|row| [row.theirs, row.ours, Some(1.0)]);
    let scale = Scale::new(values.flatten(), left, WIDTH - 50.0);
    let mut out = begin(height, title);
    legend(&mut out, 40.0, &[("theirs", THEIRS), ("ours", OURS)]);
    for decade in scale.decades() {
        let x = scale.place(decade);
        let (colour, width) = if decade == 1.0 {
            (SOCKET, 2.0)
        } else {
            ("#80808050", 1.0)
        };
        line(&mut out, [x, top - 6.0, x, height - 24.0], colour, width);
        text(&mut out, x, height - 8.0, "middle", &format!("{decade}"));
    }
    for (index, row) in rows.iter().enumerate() {
        let y = top + step * index as f64;
        text(&mut out, left - 8.0, y + 17.0, "end", &row.title);
        for (value, colour, down) in [(row.theirs, THEIRS, 0.0), (row.ours, OURS, 14.0)] {
            let Some(value) = value else {
                text(&mut out, left + 4.0, y + down + 10.0, "start", "fails");
                continue;
            };
            let end = scale.place(value);
            let _ = writeln!(
                out,
                "<rect x=\"{left}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{colour}\"/>",
                y + down,
                (end - left).max(1.0)
            );
            text(
                &mut out,
                end + 4.0,
                y + down + 10.0,
                "start",
                &format!("{value:.2}"),
            );
        }
    }
    out + "</svg>\n"
}

/// A line chart of figures over what grows.
pub fn lines(title: &str, grows: &str, unit: &str, points: &Lines) -> String {
    let (left, top, height) = (70.0, 60.0, 380.0);
    let x = Scale::new(points.iter().map(|(at, _)| *at), left, WIDTH - 30.0);
    let figures = points
        .iter()
        .flat_map(|(_, figures)| figures.iter().flatten());
    let y = Scale::new(figures.copied(), height - 50.0, top);
    let mut out = begin(height, title);
    let series = [("socket", SOCKET), ("theirs", THEIRS), ("ours", OURS)];
    let shown: Vec<usize> = (0..series.len())
        .filter(|index| points.iter().any(|(_, figures)| figures[*index].is_some()))
        .collect();
    let entries: Vec<_> = shown.iter().map(|index| series[*index]).collect();
    legend(&mut out, 40.0, &entries);
    for decade in y.decades() {
        let at = y.place(decade);
        line(&mut out, [left, at, WIDTH - 30.0, at], "#80808050", 1.0);
        text(&mut out, left - 6.0, at + 4.0, "end", &tick(decade));
    }
    for decade in x.decades() {
        let at = x.place(decade);
        line(&mut out, [at, top, at, height - 50.0], "#80808050", 1.0);
        text(&mut out, at, height - 34.0, "middle", &tick(decade));
    }
    text(&mut out, WIDTH / 2.0, height - 12.0, "middle", grows);
    text(&mut out, left - 6.0, top - 12.0, "end", unit);
    for index in shown {
        let (name, colour) = series[index];
        let places: Vec<(f64, f64)> = points
            .iter()
            .filter_map(|(at, figures)| Some((x.place(*at), y.place(figures[index]?))))
            .collect();
        let path: Vec<String> = places
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let dash = if name == "socket" {
            " stroke-dasharray=\"5 4\""
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"{dash}/>",
            path.join(" ")
        );
        for (x, y) in places {
            let _ = writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>"
            );
        }
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_covers_whole_decades() {
        let scale = Scale::new([0.2, 5.0, 0.0].into_iter(), 100.0, 300.0);
        assert_eq!(scale.place(0.1), 100.0);
        assert_eq!(scale.place(1.0), 200.0);
        assert_eq!(scale.place(10.0), 300.0);
        assert_eq!(scale.decades().count(), 3);
        let empty = Scale::new([].into_iter(), 0.0, 1.0);
        assert!(empty.place(1.0).is_finite());
    }

    #[test]
    fn what_failed_is_said_and_titles_are_escaped() {
        let row = Bars {
            title: "a < b & c".to_owned(),
            theirs: None,
            ours: Some(0.5),
        };
        let chart = bars("t", &[row]);
        assert!(
            chart.contains("a &lt; b &amp; c") && chart.contains("fails"),
            "{chart}"
        );
        let points = vec![(1.0, [None, Some(3.0), None]), (10.0, [None, None, None])];
        let chart = lines("t", "x", "y", &points);
        assert_eq!(chart.matches("<polyline").count(), 1);
        assert_eq!(chart.matches("<circle").count(), 1);
    }
}
