// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask compare`: who keeps the protocol, ours or its rival, `vhost-device-vsock`.
//!
//! Both daemons are programs here, started by the same tests of `tests/userspace/` with
//! the same command line. Each test runs in a process of its own with a time limit, so
//! that one that hangs costs its time and nothing else; one that fails is tried again
//! with less beside it, and at last alone, so that a busy machine is nobody's fault. What needs settings that the rival's
//! command line does not know is listed as such, for both. The result is written to
//! `docs/compared.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use serde_json::Value;

use crate::cache::Cache;
use crate::lab::workspace;
use crate::{process, rival};

/// The tests that can be held against another program, by module, with a heading.
const MODULES: &[(&str, &str)] = &[
    ("conformance_handshake", "Connections come about"),
    ("conformance_credit", "Flow control"),
    ("conformance_shutdown", "Connections end"),
    ("conformance_chains", "Descriptors"),
    ("conformance_seqpacket", "Sequenced packets"),
    ("conformance_hybrid", "Host programs' protocol"),
    ("conformance_siblings", "Siblings"),
    ("front_ends", "VMMs"),
    ("limits", "Limits"),
    ("property", "Anything at random"),
];

/// The other modules of tests, which look into this device or are about what it has alone.
const OWN_MODULES: &[&str] = &[
    "besides_bytes",
    "forwarding",
    "hostile",
    "kernel_path",
    "spin",
    "viommu",
];

/// Tests of what VIRTIO 1.2 leaves open: how ours treats a guest that breaks the rules, what
/// it does beyond them. Another device may do otherwise and be right.
const CHOICES: &[&str] = &[
    "conformance_chains::a_chain_that_leads_out_of_the_table",
    "conformance_chains::a_chain_that_loops",
    "conformance_chains::a_guest_that_posts_no_buffers_can_still_send",
    "conformance_chains::a_packet_shorter_than_its_length_field",
    "conformance_chains::an_available_index_that_cannot_be_stops_the_device_until_it_is_reset",
    "conformance_chains::an_indirect_table_that_was_not_negotiated",
    "conformance_chains::buffers_too_small_for_a_header_come_back_unused",
    "conformance_chains::chains_that_say_nothing_of_whose_they_are",
    "conformance_chains::payload_for_the_device_to_write",
    "conformance_chains::payload_that_is_not_guest_memory",
    "conformance_credit::a_count_of_bytes_never_sent_stops_that_connection_alone",
    "conformance_credit::more_data_than_credit_ends_the_connection_and_no_other",
    "conformance_handshake::a_request_for_a_live_connection_replaces_it",
    "conformance_handshake::an_unknown_operation_ends_its_connection_and_no_other",
    "conformance_handshake::data_before_the_response_ends_the_connection",
    "conformance_shutdown::data_after_the_end_of_data_ends_the_connection",
    "front_ends::a_call_event_is_swapped_while_the_device_runs",
    "front_ends::a_front_end_that_reads_no_replies_delays_only_itself",
    "front_ends::a_guest_whose_indices_have_wrapped_to_0_is_told_of_the_reset",
    "front_ends::half_a_request_and_nonsense_are_survived",
    "front_ends::offered_features",
    "front_ends::random_requests_do_no_harm",
];

/// The longest that a test may take; inside of one nothing waits longer than 20 s.
const TIME_LIMIT: Duration = Duration::from_secs(90);
/// Tests at once, in each try: those that fail mostly wait, and the last try is undisturbed.
const AT_ONCE: [usize; 3] = [6, 3, 1];
/// What the harness says of a test that needs more than a command line.
const NOT_APPLICABLE: &str = "not applicable";

/// What the harness says where the device lacks an optional feature.
const NOT_OFFERED: &str = "not offered: ";

/// What came of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passes,
    Fails,
    Hangs,
    /// The program does not claim to have what is tested.
    NotOffered,
    NotApplicable,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passes => "yes",
            Self::Fails => "**no**",
            Self::Hangs => "**no** (hangs)",
            Self::NotOffered => "not offered",
            Self::NotApplicable => "-",
        }
    }
}

type Verdicts = BTreeMap<String, Verdict>;

/// Compares, and writes the page. Returns whether ours passes all that it can be asked.
///
/// # Errors
/// When something cannot be built, installed or written.
pub fn run() -> Result<bool> {
    let theirs = rival::program(&Cache::open()?)?;
    let built = build()?;
    // Whoever builds meanwhile changes nothing of what is compared.
    let kept = tempfile::tempdir().context("no directory for the programs")?;
    let [ours, tests] = built.map(|program| -> Result<PathBuf> {
        let copy = kept.path().join(program.file_name().unwrap_or_default());
        fs::copy(&program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        Ok(copy)
    });
    let (ours, tests) = (ours?, tests?);
    let names = list(&tests)?;
    eprintln!("{} tests, ours first", names.len());
    let our_verdicts = judge_all(&tests, &ours, &names)?;
    let their_verdicts = judge_all(&tests, &theirs, &names)?;
    let page = render(&process::today()?, &our_verdicts, &their_verdicts);
    let file = workspace().join("docs/compared.md");
    fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", summary(&our_verdicts, &their_verdicts));
    println!("written to {}", file.display());
    Ok(bad(&our_verdicts) == 0)
}

/// Builds our daemon and the tests; where the two programs are.
fn build() -> Result<[PathBuf; 2]> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let said = process::output(
        Command::new(cargo)
            .current_dir(workspace())
            .args(["test", "--no-run", "--package", "crosvm_vsock"])
            .args(["--test", "userspace", "--bin", "crosvm-vsock"])
            .args(["--message-format", "json-render-diagnostics"]),
    )?;
    let mut tests = None;
    let mut daemon = None;
    for line in said.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let Some(executable) = message["executable"].as_str() else {
            continue;
        };
        let is_test = message["profile"]["test"] == true;
        match message["target"]["name"].as_str() {
            Some("userspace") if is_test => tests = Some(PathBuf::from(executable)),
            Some("crosvm-vsock") if !is_test => daemon = Some(PathBuf::from(executable)),
            _ => {}
        }
    }
    Ok([
        daemon.context("cargo built no crosvm-vsock")?,
        tests.context("cargo built no test program `userspace`")?,
    ])
}

/// The names of the tests that can be held against another program.
fn list(tests: &Path) -> Result<Vec<String>> {
    let said = process::output(Command::new(tests).args(["--list", "--format", "terse"]))?;
    if let Some(gone) = CHOICES.iter().find(|name| !said.contains(**name)) {
        bail!("there is no test {gone} any more: take it off the list in compare.rs");
    }
    let all = || said.lines().filter_map(|line| line.strip_suffix(": test"));
    let modules = || MODULES.iter().map(|(module, _)| module).chain(OWN_MODULES);
    if let Some(new) = all().find(|name| !modules().any(|module| is_in(name, module))) {
        bail!("compare.rs does not say whether {new} can be held against another program");
    }
    let names: Vec<String> = all()
        .filter(|name| MODULES.iter().any(|(module, _)| is_in(name, module)))
        .filter(|name| !CHOICES.contains(name))
        .map(str::to_owned)
        .collect();
    match names.is_empty() {
        true => bail!("{} lists no tests", tests.display()),
        false => Ok(names),
    }
}

fn is_in(name: &str, module: &str) -> bool {
    name.split_once("::").is_some_and(|(of, _)| of == module)
}

fn judge_all(tests: &Path, program: &Path, names: &[String]) -> Result<Verdicts> {
    let mut verdicts = Verdicts::new();
    let mut left = names.to_vec();
    for at_once in AT_ONCE {
        eprintln!("{} tests, {at_once} at once", left.len());
        verdicts.extend(try_all(tests, program, &left, at_once)?);
        left.retain(|name| matches!(verdicts.get(name), Some(Verdict::Fails | Verdict::Hangs)));
    }
    Ok(verdicts)
}

fn try_all(tests: &Path, program: &Path, names: &[String], at_once: usize) -> Result<Verdicts> {
    let queue = Mutex::new(names.iter());
    let verdicts = Mutex::new(Verdicts::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| loop {
                    let Some(name) = next(&queue) else {
                        return anyhow::Ok(());
                    };
                    let verdict = judge(tests, program, name)?;
                    record(&verdicts, name, verdict);
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a thread of the comparison panicked"))?
        })
    })?;
    Ok(verdicts.into_inner().unwrap_or_default())
}

fn next<'a>(queue: &Mutex<std::slice::Iter<'a, String>>) -> Option<&'a String> {
    queue.lock().ok()?.next()
}

fn record(verdicts: &Mutex<Verdicts>, name: &str, verdict: Verdict) {
    eprintln!("{name}: {verdict:?}");
    if let Ok(mut verdicts) = verdicts.lock() {
        verdicts.insert(name.to_owned(), verdict);
    }
}

/// Runs one test against `program`, in a process group of its own: what hangs is ended
/// with all that it has started.
fn judge(tests: &Path, program: &Path, name: &str) -> Result<Verdict> {
    let mut output = tempfile::tempfile().context("no file for what a test says")?;
    let mut child = Command::new(tests)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("VSOCK_TEST_DEVICE", program)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", tests.display()))?;
    let group = format!("-{}", child.id());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > TIME_LIMIT {
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // Also what a test that ended by itself has left behind: none of it is wanted.
    let _ = process::run(Command::new("kill").args(["-KILL", "--", &group]));
    let Some(status) = status else {
        child.wait()?;
        return Ok(Verdict::Hangs);
    };
    let mut said = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said);
    Ok(if said.contains(NOT_APPLICABLE) {
        Verdict::NotApplicable
    } else if said.contains(NOT_OFFERED) {
        Verdict::NotOffered
    } else if status.success() && said.contains("1 passed") {
        Verdict::Passes
    } else {
        Verdict::Fails
    })
}

fn count(verdicts: &Verdicts, what: impl Fn(Verdict) -> bool) -> usize {
    verdicts.values().filter(|verdict| what(**verdict)).count()
}

fn bad(verdicts: &Verdicts) -> usize {
    count(verdicts, |v| matches!(v, Verdict::Fails | Verdict::Hangs))
}

fn passed(verdicts: &Verdicts) -> usize {
    count(verdicts, |v| v == Verdict::Passes)
}

fn summary(ours: &Verdicts, theirs: &Verdicts) -> String {
    format!(
        "crosvm-vsock {}: {} of {}; {} {}: {} of {}",
        env!("CARGO_PKG_VERSION"),
        passed(ours),
        passed(ours) + bad(ours),
        rival::NAME,
        rival::VERSION,
        passed(theirs),
        passed(theirs) + bad(theirs),
    )
}

fn render(date: &str, ours: &Verdicts, theirs: &Verdicts) -> String {
    let (name, version) = (rival::NAME, rival::VERSION);
    let mut page = format!(
        "<!-- Generated by `cargo xtask compare`. -->\n\
         # Who keeps the protocol\n\n\
         The tests of `tests/userspace/` against two programs with the same command line, as black boxes: a front \
         end of the tests' own, a guest driver written from VIRTIO 1.2, host programs on Unix sockets. Both have the \
         same buffer and queue sizes. *yes*: the test passes. *not offered*: it is about a feature bit that the \
         program does not offer, and does not count. What fails was tried three times, the last time with nothing \
         beside it; what takes longer than {} s hangs.\n\n\
         Read it with care: the tests are this project's, and ours was written against them. They say what the \
         other program does with them, not how often it matters; and one fault can fail several of them, as a \
         missing half-close does.\n\n\
         {date}; {}.\n",
        TIME_LIMIT.as_secs(),
        summary(ours, theirs),
    );
    for (module, heading) in MODULES {
        let rows: Vec<_> = ours
            .iter()
            .filter(|(test, verdict)| is_in(test, module) && **verdict != Verdict::NotApplicable)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(
            page,
            "\n## {heading}\n\n| `{module}` | crosvm-vsock | {name} {version} |\n|---|---|---|\n"
        );
        for (test, verdict) in rows {
            let theirs = theirs.get(test).map_or("not run", |verdict| verdict.word());
            let _ = writeln!(page, "| {} | {} | {theirs} |", check(test), verdict.word());
        }
    }
    page += "\n## Left open by the specification\n\n\
             What ours does with a guest that breaks the rules, and what it does beyond them. Another device may do \
             otherwise and be right, so these tests were not run against it.\n\n";
    for test in CHOICES {
        let _ = writeln!(page, "- {}", named(test));
    }
    page += "\n## Not compared\n\n\
             These tests set something up that the common command line has no words for (a limit, a reply, several \
             VMs that the test can tell apart). They count for nobody; ours passes them within `cargo test`.\n\n";
    for (test, _) in ours
        .iter()
        .filter(|(_, verdict)| **verdict == Verdict::NotApplicable)
    {
        let _ = writeln!(page, "- {}", named(test));
    }
    let _ = write!(
        page,
        "\nNor are all tests of these modules, which look into this device or are about what it has alone: `{}`.\n",
        OWN_MODULES.join("`, `")
    );
    page
}

/// A test of a list without headings: its module, and its name as a sentence.
fn named(test: &str) -> String {
    let module = test.split_once("::").map_or("", |(module, _)| module);
    format!("`{module}`: {}", check(test))
}

/// A test's name as a sentence.
fn check(test: &str) -> String {
    let name = test.split_once("::").map_or(test, |(_, name)| name);
    name.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(of: [Verdict; 4]) -> Verdicts {
        let names = ["a_b", "c", "d", "e"].map(|name| format!("conformance_credit::{name}"));
        names.into_iter().zip(of).collect()
    }

    #[test]
    fn what_cannot_be_set_up_counts_for_nobody() {
        use Verdict::{Fails, Hangs, NotApplicable, Passes};
        let ours = verdicts([Passes, Passes, Passes, NotApplicable]);
        let theirs = verdicts([Passes, Fails, Hangs, NotApplicable]);
        assert!(summary(&ours, &theirs).contains(": 3 of 3; "));
        assert!(summary(&ours, &theirs).ends_with(": 1 of 3"));
        let page = render("2001-02-03", &ours, &theirs);
        assert!(page.contains("2001-02-03"));
        assert!(
            page.contains("\n| a b | yes | yes |\n| c | yes | **no** |\n"),
            "{page}"
        );
        assert!(page.contains("\n| d | yes | **no** (hangs) |\n"), "{page}");
        let (_, after) = page.split_once("## Not compared").unwrap();
        assert!(after.contains("\n- `conformance_credit`: e\n"), "{page}");
    }

    #[test]
    fn what_is_not_offered_is_not_failed() {
        use Verdict::{Fails, NotOffered, Passes};
        let theirs = verdicts([Passes, NotOffered, Fails, NotOffered]);
        assert!(summary(&theirs, &theirs).ends_with(": 1 of 2"));
    }

    #[test]
    fn a_test_that_was_not_run_does_not_pass() {
        let program = Path::new("/nonexistent");
        let nothing = Path::new("/bin/true");
        assert_eq!(judge(nothing, program, "x").unwrap(), Verdict::Fails);
    }
}
