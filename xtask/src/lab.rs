// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs the lab: builds the program, boots kernel after kernel, listens.
//!
//! Limits: one machine at a time; a machine uses both processors of a small
//! host already.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::accel;
use crate::cache::Cache;
use crate::image::{Image, Purpose};
use crate::kernels::Kernel;
use crate::packages::{self, Need};
use crate::process;
use crate::protocol::Line;
use crate::qemu::{self, Accel, Boot, Machine};
use crate::table::Report;

/// What static programs are built for: an initramfs has no libraries.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const SILENCE: Duration = Duration::from_secs(240);
const LIFE: Duration = Duration::from_secs(1200);
/// Enough for a panic with its registers and stack.
const CONSOLE_LINES: usize = 45;

/// What to ask every machine for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The modes to run; empty means all.
    pub modes: Vec<String>,
    /// Measure in place of testing.
    pub bench: bool,
    /// Tell the demo's story in place of testing.
    pub demo: bool,
    /// Look for newer packages than the cached ones.
    pub refresh: bool,
}

impl Wish {
    /// The words for the kernel command line.
    fn request(&self, kernel: &Kernel) -> String {
        let mut words = format!("lab.kernel={} lab.kind={}", kernel.name, kernel.kind);
        if !self.modes.is_empty() {
            words += &format!(" lab.modes={}", self.modes.join(","));
        }
        if self.bench {
            words += " lab.bench=1";
        }
        if self.demo {
            words += " lab.demo=1";
        }
        words
    }
}

/// The lab, ready to boot kernels.
#[derive(Debug)]
pub struct Lab {
    cache: Cache,
    init: Vec<u8>,
    directory: PathBuf,
    accel: Option<Accel>,
}

impl Lab {
    /// Installs what is missing and builds the program that runs in the
    /// machines.
    ///
    /// # Errors
    /// When a program cannot be installed or the build fails.
    pub fn open() -> Result<Self> {
        if env::consts::ARCH != "x86_64" {
            bail!(
                "the lab's kernels are x86-64; this machine is {}",
                env::consts::ARCH
            );
        }
        packages::ensure(&[
            Need::new(qemu::PROGRAM, "qemu-system-x86"),
            Need::new("xz", "xz-utils"),
        ])?;
        let directory = target_directory().join("lab");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self {
            cache: Cache::open()?,
            init: {
                let program = build_static("lab", "lab")?;
                fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?
            },
            directory,
            accel: None,
        })
    }

    /// Boots a kernel and collects what it reports. Whatever goes wrong is a
    /// failed row of the report.
    pub fn run(&mut self, kernel: &Kernel, wish: &Wish) -> Report {
        let mut report = Report::new(*kernel);
        let start = Instant::now();
        eprintln!("{}:", kernel.name);
        if let Err(error) = self.listen(kernel, wish, &mut report) {
            report.fail("boot", "a running machine", "error", &format!("{error:#}"));
        }
        let ok = report.close();
        let rows = report.rows();
        let good = rows.iter().filter(|row| row.ok).count();
        let came_out = match rows.len() {
            // A kernel that was measured has no rows.
            0 => "done".to_owned(),
            all => format!("{good} of {all} as expected"),
        };
        eprintln!(
            "{}: {came_out}, {} s{}",
            kernel.name,
            start.elapsed().as_secs(),
            if ok { "" } else { "   FAILED" }
        );
        report
    }

    fn listen(&mut self, kernel: &Kernel, wish: &Wish, report: &mut Report) -> Result<()> {
        let image = Image::prepare(kernel, Purpose::Lab, &self.cache, wish.refresh)?;
        let initramfs = self.directory.join(format!("{}.cpio", kernel.name));
        fs::write(&initramfs, image.archive(&self.init)?.finish()?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        let console = self.directory.join(format!("{}.log", kernel.name));
        let vmlinuz = image.vmlinuz();
        let accel = match self.accel {
            Some(accel) => accel,
            None => accel::choose(&self.cache, &vmlinuz, &initramfs, &console)?,
        };
        self.accel = Some(accel);
        eprintln!("  booting {} under {accel}", image.recipe.package);
        let started = Instant::now();
        let boot = Boot {
            vmlinuz: &vmlinuz,
            initramfs: &initramfs,
            request: &wish.request(kernel),
            console: &console,
            accel,
            silence: SILENCE,
            life: LIFE,
        };
        let mut machine = Machine::start(&boot)?;
        loop {
            let line = match machine.next_line() {
                Ok(line) => line,
                Err(end) => {
                    let detail = format!("{}; {}", end.explain(), boot.last_words(CONSOLE_LINES));
                    report.fail("boot", "done", &end.to_string(), &detail);
                    return Ok(());
                }
            };
            match Line::parse(&line)? {
                Some(Line::Plan(cells)) => report.plan(cells),
                Some(Line::Row(row)) if wish.demo => report.row(row),
                Some(Line::Row(row)) => {
                    let mark = if row.ok { "ok    " } else { "FAILED" };
                    eprintln!("  {mark} {:<24} {}", row.cell, row.got);
                    report.row(row);
                }
                Some(Line::Note(_)) if wish.demo => {}
                Some(Line::Note(text)) => {
                    eprintln!("  [{:>5.1} s] {text}", started.elapsed().as_secs_f32());
                }
                Some(Line::Say(text)) => println!("{text}"),
                Some(Line::Bench(measurement)) => {
                    eprintln!("  {measurement}");
                    report.bench.push(measurement);
                }
                Some(Line::Done) => return Ok(()),
                None => {}
            }
        }
    }
}

/// The workspace's directory.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Builds a program of the workspace that needs no library where it runs, and
/// returns its path.
///
/// # Errors
/// When the build fails.
pub fn build_static(package: &str, program: &str) -> Result<PathBuf> {
    eprintln!("building {program}");
    process::show(
        process::bound("cargo")
            .current_dir(workspace())
            .args(["build", "--quiet", "--release", "--target", TARGET])
            .args(["--package", package, "--bin", program])
            // Of all ways to pass flags the one that nothing set outside
            // overrides; with --target it leaves build scripts alone.
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static"),
    )
    .with_context(|| format!("cannot build {program}"))?;
    Ok(target_directory()
        .join(TARGET)
        .join("release")
        .join(program))
}
