// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The generated parts of docs/performance.md: its tables, and the charts beside it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::chart::{self, Bars};
use super::results::Results;
use super::rows::{Figure, CURVES, ROWS};
use super::table;
use crate::generated;

/// Writes the charts of what was measured to a directory.
///
/// # Errors
/// When a file cannot be written.
pub fn write_charts(results: &Results, directory: &Path) -> Result<()> {
    let write = |name: &str, svg: String| {
        let file = directory.join(format!("performance-{name}.svg"));
        fs::write(&file, svg).with_context(|| format!("cannot write {}", file.display()))
    };
    let bars: Vec<Bars> = results
        .rows
        .iter()
        .filter_map(|result| {
            let row = ROWS.iter().find(|row| row.name == result.name)?;
            // Longer is better in every row.
            let speed = |ratio: Option<f64>| match row.figure {
                Figure::Latency => ratio.map(f64::recip),
                Figure::Throughput | Figure::Rate => ratio,
            };
            Some(Bars {
                title: row.title.to_owned(),
                theirs: speed(result.theirs.ratio),
                ours: speed(result.ours.ratio),
            })
        })
        .collect();
    if !bars.is_empty() {
        let title = "Speed, a plain Unix socket between two processes = 1";
        write("rows", chart::bars(title, &bars))?;
    }
    for result in &results.curves {
        let Some(curve) = CURVES.iter().find(|curve| curve.name == result.name) else {
            continue;
        };
        let points = result.points.iter().map(|point| {
            let figures = [point.plain, point.theirs, point.ours];
            (point.at as f64, figures)
        });
        let unit = curve.figure.unit();
        let svg = chart::lines(curve.title, curve.grows, unit, &points.collect());
        write(curve.name, svg)?;
    }
    Ok(())
}

/// Writes tables and charts of `docs` anew.
///
/// # Errors
/// When the page lacks the two comments, or a file cannot be written.
pub fn update(results: &Results, docs: &Path) -> Result<()> {
    write_charts(results, docs)?;
    let page = docs.join("performance.md");
    generated::update(&page, "bench", &table::markdown(results))
}
