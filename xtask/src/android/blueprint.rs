// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads the Blueprint language, as far as this project's Android.bp files use
//! it: modules with strings, booleans, lists and maps.
//!
//! Of our own, since the parser on crates.io keeps a module's properties in a
//! hash map: it knows neither their order nor their lines, and takes a property
//! that is given twice, which Soong refuses.
//!
//! Limits: no variables, no `+`, no `select()`, no numbers. They are errors.

use std::fmt;

use anyhow::{bail, ensure, Result};

/// A module: a type and properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Such as `rust_library`.
    pub kind: String,
    /// Where it begins, from 1.
    pub line: usize,
    /// In the order of the file.
    pub properties: Vec<Property>,
}

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Such as `crate_root`.
    pub name: String,
    /// Where it begins, from 1.
    pub line: usize,
    /// What it is set to.
    pub value: Value,
}

/// What a property can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `"text"`
    Text(String),
    /// `true` or `false`
    Bool(bool),
    /// `["a", "b"]`
    List(Vec<String>),
    /// `{ name: value }`
    Map(Vec<Property>),
}

impl Value {
    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Bool(_) => "a boolean",
            Self::List(_) => "a list of strings",
            Self::Map(_) => "a map",
        }
    }
}

/// As Blueprint has it, in one line.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::List(list) => write!(f, "{list:?}"),
            Self::Map(_) => f.write_str("{...}"),
        }
    }
}

impl Module {
    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.text("name").unwrap_or_default()
    }

    /// A property by its path, such as `target.android.rustlibs`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let mut names = path.split('.');
        let mut value = find(&self.properties, names.next()?)?;
        for name in names {
            let Value::Map(properties) = value else {
                return None;
            };
            value = find(properties, name)?;
        }
        Some(value)
    }

    /// A string property.
    pub fn text(&self, path: &str) -> Option<&str> {
        match self.get(path)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list property; empty where it is not set.
    pub fn list(&self, path: &str) -> &[String] {
        match self.get(path) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }
}

fn find<'a>(properties: &'a [Property], name: &str) -> Option<&'a Value> {
    let property = properties.iter().find(|property| property.name == name)?;
    Some(&property.value)
}

/// All modules of a file.
///
/// # Errors
/// With the line, when the text is none of Blueprint's, or has what this parser
/// does not know.
pub fn parse(text: &str) -> Result<Vec<Module>> {
    let mut parser = Parser {
        rest: text,
        line: 1,
    };
    let mut modules = Vec::new();
    while parser.peek()? != Token::End {
        modules.push(parser.module()?);
    }
    Ok(modules)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Sign(sign) => write!(f, "`{sign}`"),
            Self::End => f.write_str("the end of the file"),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

impl Parser<'_> {
    fn module(&mut self) -> Result<Module> {
        let kind = self.word("a module type")?;
        let line = self.line;
        self.sign('{')?;
        Ok(Module {
            kind,
            line,
            properties: self.properties()?,
        })
    }

    /// Up to and with the closing brace.
    fn properties(&mut self) -> Result<Vec<Property>> {
        let mut properties: Vec<Property> = Vec::new();
        while !self.ends('}')? {
            let name = self.word("a property")?;
            let line = self.line;
            if properties.iter().any(|property| property.name == name) {
                bail!("line {line}: `{name}` is given twice");
            }
            self.sign(':')?;
            let value = self.value()?;
            properties.push(Property { name, line, value });
            self.comma('}')?;
        }
        Ok(properties)
    }

    fn value(&mut self) -> Result<Value> {
        match self.next()? {
            Token::Text(text) => Ok(Value::Text(text)),
            Token::Word(word) if word == "true" => Ok(Value::Bool(true)),
            Token::Word(word) if word == "false" => Ok(Value::Bool(false)),
            Token::Sign('{') => Ok(Value::Map(self.properties()?)),
            Token::Sign('[') => {
                let mut list = Vec::new();
                while !self.ends(']')? {
                    match self.next()? {
                        Token::Text(text) => list.push(text),
                        other => bail!("line {}: expected a string, not {other}", self.line),
                    }
                    self.comma(']')?;
                }
                Ok(Value::List(list))
            }
            other => bail!("line {}: expected a value, not {other}", self.line),
        }
    }

    /// Takes the closing sign, if it is next.
    fn ends(&mut self, closing: char) -> Result<bool> {
        let ends = self.peek()? == Token::Sign(closing);
        if ends {
            self.next()?;
        }
        Ok(ends)
    }

    /// A comma, which may be left out before the closing sign.
    fn comma(&mut self, closing: char) -> Result<()> {
        match self.peek()? {
            Token::Sign(sign) if sign == closing => Ok(()),
            _ => self.sign(','),
        }
    }

    fn word(&mut self, what: &str) -> Result<String> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => bail!("line {}: expected {what}, not {other}", self.line),
        }
    }

    fn sign(&mut self, sign: char) -> Result<()> {
        let token = self.next()?;
        ensure!(
            token == Token::Sign(sign),
            "line {}: expected `{sign}`, not {token}",
            self.line
        );
        Ok(())
    }

    fn peek(&mut self) -> Result<Token> {
        let (rest, line) = (self.rest, self.line);
        let token = self.next()?;
        (self.rest, self.line) = (rest, line);
        Ok(token)
    }

    fn next(&mut self) -> Result<Token> {
        self.skip_blanks()?;
        let Some(first) = self.rest.chars().next() else {
            return Ok(Token::End);
        };
        if first == '"' {
            let inner = &self.rest[1..];
            let Some(end) = inner.find(['"', '\n', '\\']) else {
                bail!("line {}: a string without an end", self.line);
            };
            ensure!(
                inner[end..].starts_with('"'),
                "line {}: a string with a line break or a backslash",
                self.line
            );
            self.rest = &inner[end + 1..];
            return Ok(Token::Text(inner[..end].to_owned()));
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if is_part(first) {
            let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Ok(Token::Word(word.to_owned()));
        }
        self.rest = &self.rest[first.len_utf8()..];
        Ok(Token::Sign(first))
    }

    /// White space and comments.
    fn skip_blanks(&mut self) -> Result<()> {
        loop {
            let trimmed = self.rest.trim_start();
            let end = if trimmed.starts_with("//") {
                trimmed.find('\n').unwrap_or(trimmed.len())
            } else if trimmed.starts_with("/*") {
                match trimmed.find("*/") {
                    Some(end) => end + 2,
                    None => bail!("line {}: a comment without an end", self.line),
                }
            } else {
                0
            };
            let skipped = self.rest.len() - trimmed.len() + end;
            let blank = &self.rest[..skipped];
            self.line += blank.matches('\n').count();
            self.rest = &self.rest[skipped..];
            if end == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
// a remark
rust_library {
    name: "liba",
    host_supported: true, /* another,
    in two lines */
    rustlibs: ["libb", "libc"],
    target: {
        android: { rustlibs: ["libd"] },
    },
}
"#;

    #[test]
    fn modules_are_read_with_order_and_lines() {
        let modules = parse(TEXT).unwrap();
        assert_eq!(modules.len(), 1);
        let module = &modules[0];
        assert_eq!((module.kind.as_str(), module.line), ("rust_library", 3));
        let names: Vec<_> = module
            .properties
            .iter()
            .map(|property| (property.name.as_str(), property.line))
            .collect();
        let expected = [
            ("name", 4),
            ("host_supported", 5),
            ("rustlibs", 7),
            ("target", 8),
        ];
        assert_eq!(names, expected);
        assert_eq!(module.name(), "liba");
        assert_eq!(module.get("host_supported"), Some(&Value::Bool(true)));
        assert_eq!(module.list("rustlibs"), ["libb", "libc"]);
        assert_eq!(module.list("target.android.rustlibs"), ["libd"]);
        assert_eq!(module.list("target.host.rustlibs"), [""; 0]);
    }

    #[test]
    fn errors_say_where() {
        for (text, expected) in [
            (
                "a {\n name: \"x\",\n name: \"y\",\n}",
                "line 3: `name` is given twice",
            ),
            ("a {\n name \"x\",\n}", "line 2: expected `:`, not \"x\""),
            ("a {\n name: x,\n}", "line 2: expected a value, not `x`"),
            ("a {\n name: \"x\n}", "line 2: a string with a line break"),
            (
                "a {\n list: [\"x\" \"y\"],\n}",
                "line 2: expected `,`, not \"y\"",
            ),
            (
                "a {\n list: [true],\n}",
                "line 2: expected a string, not `true`",
            ),
            ("a {\n", "expected a property, not the end of the file"),
            ("\n/*", "line 1: a comment without an end"),
            ("x = 1", "expected `{`, not `=`"),
            ("a {\n name: \"x", "line 2: a string without an end"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
