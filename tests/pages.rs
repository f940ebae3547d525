// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The pages for users keep to what is there: links lead to files and headings, and the
//! page that explains messages quotes messages that exist.

use std::fs;
use std::path::{Path, PathBuf};

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
    for directory in ["src", "xtask/src"] {
        printed(&root.join(directory), &mut text);
    }
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

fn pages(root: &Path) -> Vec<PathBuf> {
    let docs = fs::read_dir(root.join("docs")).unwrap();
    let mut pages: Vec<_> = docs.map(|entry| entry.unwrap().path()).collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|page| root.join(page)));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages
}

/// Where the links of a page lead, those to other sites aside.
fn links(page: &str) -> Vec<&str> {
    page.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://"))
        .collect()
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    let name: String = heading.chars().filter(kept).collect();
    name.trim().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in pages(root) {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if wanted.is_empty() {
                continue;
            }
            let target = fs::read_to_string(target).unwrap();
            let mut headings = target.lines().filter(|line| line.starts_with('#'));
            let found = headings.any(|line| anchor(line.trim_start_matches('#')) == wanted);
            assert!(found, "{}: no heading for {link}", page.display());
        }
    }
}

#[test]
fn anchors_are_made_of_headings() {
    assert_eq!(anchor(" A vIOMMU"), "a-viommu");
    assert_eq!(anchor(" One bit, two `meanings`?"), "one-bit-two-meanings");
    assert_eq!(
        links("[a](b.md#c) and ![d](https://e) [f](g)"),
        ["b.md#c", "g"]
    );
}
