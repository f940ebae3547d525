// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page that explains messages quotes messages that exist.

use std::fs;
use std::path::Path;

/// Stands for what a message fills in.
const BLANK: char = '…';

/// All sources below `directory`, as the text that they print: lines that go on are
/// joined, `{name:?}` is [`BLANK`].
fn printed(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            printed(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            blank(&fs::read_to_string(path).unwrap(), text);
        }
    }
}

fn blank(source: &str, text: &mut String) {
    let mut rest = source;
    while let Some(at) = rest.find(['{', '\\', '`']) {
        text.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let name = after.find(|c: char| !(c.is_ascii_alphanumeric() || "_:#?.".contains(c)));
        rest = match (rest.as_bytes()[at], name) {
            (b'`', _) => after,
            (b'\\', _) if after.starts_with('\n') => after.trim_start(),
            (b'{', Some(end)) if after[end..].starts_with('}') => {
                text.push(BLANK);
                &after[end + 1..]
            }
            _ => {
                text.push_str(&rest[at..at + 1]);
                after
            }
        };
    }
    text.push_str(rest);
}

/// The messages that a page quotes: code that begins a row of a table.
fn quoted(page: &str) -> Vec<&str> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(message, _)| message)
        .collect()
}

#[test]
fn every_quoted_message_is_in_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    printed(&root.join("src"), &mut text);
    let page = fs::read_to_string(root.join("docs/troubleshooting.md")).unwrap();
    let messages = quoted(&page);
    assert!(messages.len() > 40, "the page's form has changed");
    let unknown: Vec<_> = messages.iter().filter(|m| !text.contains(**m)).collect();
    assert!(unknown.is_empty(), "not printed by anything: {unknown:#?}");
}

#[test]
fn sources_become_what_they_print() {
    let mut text = String::new();
    blank("f(\"`{0:?}` is \\\n   {what}\") {}", &mut text);
    assert_eq!(text, "f(\"… is …\") …");
    assert_eq!(quoted("| `a … b` | c |\n| d | `e` |\n"), ["a … b"]);
}
