// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask demo`: the story of one bit with two meanings, in the newest
//! kernel of the lab.
//!
//! The story is told by the program in the machine; this boots it and closes
//! with the table.

use anyhow::Result;

use crate::kernels::{self, NEWEST};
use crate::lab::{Lab, Wish};
use crate::table;

/// Boots the newest kernel and lets it tell the story. Returns whether all
/// went as the story says.
///
/// # Errors
/// When the lab cannot be opened.
pub fn run() -> Result<bool> {
    let selected = kernels::select(&[NEWEST.to_owned()])?;
    let wish = Wish {
        demo: true,
        ..Wish::default()
    };
    let mut lab = Lab::open()?;
    let reports: Vec<_> = selected
        .iter()
        .map(|kernel| lab.run(kernel, &wish))
        .collect();
    println!("\n{}", table::render(&reports));
    let mut rows = reports.iter().flat_map(table::Report::rows);
    Ok(rows.all(|row| row.ok))
}
