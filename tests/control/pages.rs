// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the pages for users show of the commands is what they print.

use std::path::Path;

use crate::harness::Vm;

/// A block of a page that begins with a line.
fn block(page: &str, first: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = std::fs::read_to_string(page).unwrap();
    let begin = format!("```text\n{first}");
    let (_, rest) = text.split_once(&begin).expect("the block");
    let (block, _) = rest.split_once("```").unwrap();
    format!("{first}{block}")
}

/// A text as far as it is the same each time: words, and where numbers stand.
fn shape(text: &str) -> Vec<String> {
    let word = |word: &str| match word.starts_with(|c: char| c.is_ascii_digit()) {
        true => "0".to_owned(),
        false => word.to_owned(),
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>();
    text.lines().map(|text| line(text).join(" ")).collect()
}

#[test]
fn what_the_pages_show_is_what_is_printed() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let _connection = vm.connect(&device, 5000);
    let ask = |command| String::from_utf8(vm.daemon.ask(&[command]).stdout).unwrap();
    let status = shape(&ask("status"));
    assert_eq!(shape(&block("docs/control.md", "guest CID 3\n")), status);
    // Its first line is the command.
    let readme = block("README.md", "$ crosvm-vsock status");
    assert_eq!(shape(&readme)[1..], status);
    let connections = shape(&ask("connections"));
    let shown = block("docs/control.md", "GUEST CID:PORT");
    assert_eq!(shape(&shown), connections);
}
