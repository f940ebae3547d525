// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `serde_keyvalue`: options such as
//! `cid=3,device=/dev/x,sizes=[1,2,4]`, read into a structure. Host tests only;
//! never built by Soong.
//!
//! The first field's name may be left out, a flag needs no value, strings may be
//! quoted, numbers may be `0x`, `0o` or `0b`.
//!
//! Limits: one structure, whose fields are flags, numbers, strings, lists, options
//! and enums without data; no structure in a structure.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, value::BorrowedStrDeserializer, DeserializeSeed, IntoDeserializer, Visitor};
use serde::{forward_to_deserialize_any, Deserialize};

/// What is wrong with the input.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A flag is neither true nor false.
    #[error("expected a boolean")]
    ExpectedBoolean,
    /// A list does not end.
    #[error("expected ']'")]
    ExpectedCloseBracket,
    /// A value does not end.
    #[error("expected ','")]
    ExpectedComma,
    /// A name has no value.
    #[error("expected '='")]
    ExpectedEqual,
    /// There is no name.
    #[error("expected an identifier")]
    ExpectedIdentifier,
    /// A list does not start.
    #[error("expected '['")]
    ExpectedOpenBracket,
    /// There is no string, or its quote is not closed.
    #[error("expected a string")]
    ExpectedString,
    /// A string should have been quoted.
    #[error("\" and ' can only be used in quoted strings")]
    InvalidCharInString,
    /// A number is none, or too large.
    #[error("invalid characters for number or number does not fit into its destination type")]
    InvalidNumber,
    /// The structure does not take the input.
    #[error("serde error: {0}")]
    SerdeError(String),
    /// There is more.
    #[error("remaining characters in input")]
    TrailingCharacters,
}

/// What is wrong with the input, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What.
    pub kind: ErrorKind,
    /// The byte at which it is; 0 for an error of the structure.
    pub pos: usize,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ErrorKind::SerdeError(message) => f.write_str(message),
            kind => write!(f, "{kind} at position {}", self.pos),
        }
    }
}

impl std::error::Error for ParseError {}

impl de::Error for ParseError {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        ParseError {
            kind: ErrorKind::SerdeError(msg.to_string()),
            pos: 0,
        }
    }
}

type Result<T> = std::result::Result<T, ParseError>;

/// Reads a structure from `input`.
pub fn from_key_values<'a, T: Deserialize<'a>>(input: &'a str) -> Result<T> {
    let mut parser = Parser { input, at: 0 };
    let value = T::deserialize(Top(&mut parser))?;
    match parser.rest().is_empty() {
        true => Ok(value),
        false => Err(parser.error(ErrorKind::TrailingCharacters)),
    }
}

/// The input and how far it is read.
struct Parser<'de> {
    input: &'de str,
    at: usize,
}

impl<'de> Parser<'de> {
    fn rest(&self) -> &'de str {
        &self.input[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip(&mut self, expected: char) -> bool {
        let found = self.peek() == Some(expected);
        if found {
            self.at += expected.len_utf8();
        }
        found
    }

    fn error(&self, kind: ErrorKind) -> ParseError {
        ParseError { kind, pos: self.at }
    }

    /// Takes what comes before the first character that `ends` it.
    fn take_until(&mut self, ends: impl Fn(char) -> bool) -> &'de str {
        let rest = self.rest();
        let length = rest.find(ends).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn separated(&self) -> bool {
        matches!(self.peek(), None | Some(',' | ']'))
    }

    /// A name, if there is one; nothing is taken.
    fn peek_identifier(&self) -> Option<&'de str> {
        let mut ahead = Parser { ..*self };
        let name = ahead.take_until(|c| !c.is_alphanumeric() && c != '_' && c != '-');
        (!name.is_empty() && !name.starts_with('-')).then_some(name)
    }

    fn identifier(&mut self) -> Result<&'de str> {
        let name = self.peek_identifier();
        let name = name.ok_or_else(|| self.error(ErrorKind::ExpectedIdentifier))?;
        self.at += name.len();
        Ok(name)
    }

    fn end_value(&mut self) -> Result<()> {
        if !self.separated() {
            return Err(self.error(ErrorKind::ExpectedComma));
        }
        self.skip(',');
        Ok(())
    }

    fn boolean(&mut self) -> Result<bool> {
        for (word, value) in [("true", true), ("false", false)] {
            if self.rest().starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.error(ErrorKind::ExpectedBoolean))
    }

    fn number(&mut self) -> Result<i128> {
        let start = self.at;
        let negative = self.skip('-');
        let digits = self.take_until(|c| !c.is_ascii_alphanumeric());
        let (radix, digits) = match digits.as_bytes() {
            [b'0', b'x', ..] => (16, &digits[2..]),
            [b'0', b'o', ..] => (8, &digits[2..]),
            [b'0', b'b', ..] => (2, &digits[2..]),
            _ => (10, digits),
        };
        let number = i128::from_str_radix(digits, radix).ok();
        match number.filter(|_| self.separated()) {
            Some(number) if negative => Ok(-number),
            Some(number) => Ok(number),
            None => {
                self.at = start;
                Err(self.error(ErrorKind::InvalidNumber))
            }
        }
    }

    fn string(&mut self) -> Result<Cow<'de, str>> {
        let start = self.at;
        let string = match self.peek() {
            Some('\'') => self.single_quoted(),
            Some('"') => self.double_quoted(),
            _ => self.unquoted(),
        };
        let Some(string) = string else {
            self.at = start;
            return Err(self.error(ErrorKind::ExpectedString));
        };
        match self.separated() {
            true => Ok(string),
            false => Err(self.error(ErrorKind::InvalidCharInString)),
        }
    }

    fn unquoted(&mut self) -> Option<Cow<'de, str>> {
        let string = self.take_until(|c| matches!(c, ',' | '"' | '\'' | '[' | ']'));
        (!string.is_empty()).then_some(Cow::Borrowed(string))
    }

    fn single_quoted(&mut self) -> Option<Cow<'de, str>> {
        self.skip('\'');
        let string = self.take_until(|c| c == '\'');
        self.skip('\'').then_some(Cow::Borrowed(string))
    }

    /// A backslash stands before a quote or another backslash.
    fn double_quoted(&mut self) -> Option<Cow<'de, str>> {
        self.skip('"');
        let mut string = String::new();
        loop {
            string.push_str(self.take_until(|c| c == '"' || c == '\\'));
            if !self.skip('\\') {
                break;
            }
            let escaped = self.peek().filter(|c| matches!(c, '"' | '\\'))?;
            self.skip(escaped);
            string.push(escaped);
        }
        self.skip('"').then_some(Cow::Owned(string))
    }
}

/// The whole input: one structure.
struct Top<'p, 'de>(&'p mut Parser<'de>);

impl<'de> de::Deserializer<'de> for Top<'_, 'de> {
    type Error = ParseError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        // The first field's name is left out when what is there is neither a name
        // with a value nor the name of a flag.
        let named = self.0.peek_identifier().is_some_and(|name| {
            let after = &self.0.rest()[name.len()..];
            after.starts_with('=') || fields.contains(&name)
        });
        visitor.visit_map(Fields {
            implied: fields.first().copied().filter(|_| !named),
            has_value: false,
            parser: self.0,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
        ignored_any
    }
}

struct Fields<'p, 'de> {
    parser: &'p mut Parser<'de>,
    /// The name of the first field, when it was left out.
    implied: Option<&'static str>,
    has_value: bool,
}

impl<'de> de::MapAccess<'de> for Fields<'_, 'de> {
    type Error = ParseError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        if matches!(self.parser.peek(), None | Some(']')) {
            return Ok(None);
        }
        if let Some(name) = self.implied.take() {
            self.has_value = true;
            return seed.deserialize(name.into_deserializer()).map(Some);
        }
        let name = self.parser.identifier()?;
        let key = seed.deserialize(BorrowedStrDeserializer::new(name))?;
        self.has_value = self.parser.skip('=');
        match self.has_value || self.parser.separated() {
            true => Ok(Some(key)),
            false => Err(self.parser.error(ErrorKind::ExpectedEqual)),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        let value = seed.deserialize(Value {
            has_value: self.has_value,
            parser: self.parser,
        })?;
        self.parser.end_value()?;
        Ok(value)
    }
}

/// A value after `=`, or in a list.
struct Value<'p, 'de> {
    parser: &'p mut Parser<'de>,
    has_value: bool,
}

macro_rules! numbers {
    ($($deserialize:ident $visit:ident $number:ty),*) => {
        $(fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            let at = self.parser.at;
            let number = self.parser.number()?;
            let number = <$number>::try_from(number).map_err(|_| ParseError {
                kind: ErrorKind::InvalidNumber,
                pos: at,
            })?;
            visitor.$visit(number)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Value<'_, 'de> {
    type Error = ParseError;

    /// Guesses: a flag, a list, a number, a boolean, else a string.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let ahead = || Parser { ..*self.parser };
        if self.parser.separated() {
            self.deserialize_bool(visitor)
        } else if self.parser.peek() == Some('[') {
            self.deserialize_seq(visitor)
        } else if let Ok(number) = ahead().number() {
            match i64::try_from(number) {
                Ok(_) => self.deserialize_i64(visitor),
                Err(_) => self.deserialize_u64(visitor),
            }
        } else if ahead().boolean().is_ok() {
            self.deserialize_bool(visitor)
        } else {
            self.deserialize_str(visitor)
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.has_value {
            true => visitor.visit_bool(self.parser.boolean()?),
            false => visitor.visit_bool(true),
        }
    }

    numbers!(
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64
    );

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.parser.string()? {
            Cow::Borrowed(string) => visitor.visit_borrowed_str(string),
            Cow::Owned(string) => visitor.visit_string(string),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if !self.parser.skip('[') {
            return Err(self.parser.error(ErrorKind::ExpectedOpenBracket));
        }
        let list = visitor.visit_seq(List(self.parser))?;
        match self.parser.skip(']') {
            true => Ok(list),
            false => Err(self.parser.error(ErrorKind::ExpectedCloseBracket)),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let name = self.parser.identifier()?;
        visitor.visit_enum(BorrowedStrDeserializer::new(name))
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple_struct map struct
        identifier ignored_any
    }

    // Forwarded by hand: a string that is owned is a string all the same.
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }
}

struct List<'p, 'de>(&'p mut Parser<'de>);

impl<'de> de::SeqAccess<'de> for List<'_, 'de> {
    type Error = ParseError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        if self.0.peek() == Some(']') {
            return Ok(None);
        }
        let element = seed.deserialize(Value {
            parser: self.0,
            has_value: true,
        })?;
        self.0.end_value()?;
        Ok(Some(element))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        Auto,
        FullSpeed,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Options {
        cid: u64,
        device: Option<PathBuf>,
        max_queue_sizes: Option<[u16; 3]>,
        #[serde(default)]
        quiet: bool,
        mode: Option<Mode>,
    }

    fn parse(input: &str) -> std::result::Result<Options, String> {
        from_key_values(input).map_err(|e| e.to_string())
    }

    #[test]
    fn everything_at_once() {
        let options = parse(
            r#"quiet,max-queue-sizes=[1,0x10,256],mode=full-speed,device="/a,\"b\"\\",cid=0xffffffffffffffff"#,
        );
        let expected = Options {
            cid: u64::MAX,
            device: Some(r#"/a,"b"\"#.into()),
            max_queue_sizes: Some([1, 16, 256]),
            quiet: true,
            mode: Some(Mode::FullSpeed),
        };
        assert_eq!(options, Ok(expected));
        let short = parse("56,device='/x',quiet=false").unwrap();
        assert_eq!((short.cid, short.quiet), (56, false));
        assert_eq!(short.device, Some("/x".into()));
        assert_eq!(parse("cid=3,device=42").unwrap().device, Some("42".into()));
    }

    #[test]
    fn errors_say_what_and_where() {
        for (input, expected) in [
            ("", "missing field `cid`"),
            ("cid=3,cid=4", "duplicate field `cid`"),
            ("cid=", "invalid characters for number or number does not fit into its destination type at position 4"),
            ("cid=3x", "invalid characters for number or number does not fit into its destination type at position 4"),
            ("cid=-1", "invalid characters for number or number does not fit into its destination type at position 4"),
            ("cid=3,max-queue-sizes=1", "expected '[' at position 22"),
            ("cid=3,max-queue-sizes=[1,2,4", "expected ']' at position 28"),
            ("cid=3,max-queue-sizes=[1,2]", "invalid length 2, expected an array of length 3"),
            ("cid=3,max-queue-sizes=[1,2,65536]", "invalid characters for number or number does not fit into its destination type at position 27"),
            ("cid=3,quiet=maybe", "expected a boolean at position 12"),
            ("cid=3,quiet=truely", "expected ',' at position 16"),
            ("cid=3,device=", "expected a string at position 13"),
            ("cid=3,device='/x", "expected a string at position 13"),
            ("cid=3,device=/x\"y", "\" and ' can only be used in quoted strings at position 15"),
            ("cid=3,mode=fast", "unknown variant `fast`, expected `auto` or `full-speed`"),
            ("cid=3,=4", "expected an identifier at position 6"),
            ("cid=3]", "remaining characters in input at position 5"),
        ] {
            assert_eq!(parse(input), Err(expected.to_owned()), "{input}");
        }
        let unknown = parse("cid=3,dev=1").unwrap_err();
        assert!(unknown.starts_with("unknown field `dev`, expected one of `cid`, `device`"));
    }

    #[test]
    fn a_value_without_a_type_is_guessed() {
        struct Guess(String);

        impl<'de> Deserialize<'de> for Guess {
            fn deserialize<D: de::Deserializer<'de>>(
                deserializer: D,
            ) -> std::result::Result<Self, D::Error> {
                struct Guesser;
                impl Visitor<'_> for Guesser {
                    type Value = Guess;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a number or a word")
                    }
                    fn visit_i64<E>(self, v: i64) -> std::result::Result<Guess, E> {
                        Ok(Guess(format!("number {v}")))
                    }
                    fn visit_bool<E>(self, v: bool) -> std::result::Result<Guess, E> {
                        Ok(Guess(format!("flag {v}")))
                    }
                    fn visit_str<E>(self, v: &str) -> std::result::Result<Guess, E> {
                        Ok(Guess(format!("word {v}")))
                    }
                }
                deserializer.deserialize_any(Guesser)
            }
        }

        #[derive(Deserialize)]
        struct One {
            bit: Guess,
        }

        for (input, expected) in [
            ("bit=63", "number 63"),
            ("bit=none", "word none"),
            ("bit=false", "flag false"),
            ("bit", "flag true"),
        ] {
            assert_eq!(from_key_values::<One>(input).unwrap().bit.0, expected);
        }
    }
}
