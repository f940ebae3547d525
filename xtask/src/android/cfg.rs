// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decides `cfg` conditions, as far as they speak of features, tests, Soong and
//! the operating system.

use syn::punctuated::Punctuated;
use syn::{Expr, ExprLit, Lit, Meta, Token};

/// What a crate is built with.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The features that are on.
    pub features: &'a [String],
    /// Whether it is built as a test.
    pub test: bool,
    /// `android` or `linux`.
    pub os: &'a str,
}

/// A condition, as far as it can be decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Known beforehand.
    Known(bool),
    /// Whether it is a test.
    Test,
    /// Whether a feature is on.
    Feature(String),
    /// Whether it is for this operating system.
    Os(String),
    /// The part does not hold.
    Not(Box<Condition>),
    /// All parts hold.
    All(Vec<Condition>),
    /// One part holds.
    Any(Vec<Condition>),
    /// Depends on what is not known here.
    Unknown,
}

impl Condition {
    /// The condition of `cfg(...)`, as Cargo.toml has it.
    pub fn of_text(text: &str) -> Self {
        match syn::parse_str(text) {
            Ok(Meta::List(list)) => list
                .parse_args()
                .map_or(Self::Unknown, |meta| Self::of(&meta)),
            _ => Self::Unknown,
        }
    }

    /// The condition that attributes make.
    pub fn of_attributes(attributes: &[syn::Attribute]) -> Self {
        let own = attributes
            .iter()
            .filter(|attribute| attribute.path().is_ident("cfg"))
            .filter_map(|attribute| attribute.parse_args::<Meta>().ok());
        Self::All(own.map(|meta| Self::of(&meta)).collect())
    }

    fn of(meta: &Meta) -> Self {
        match meta {
            Meta::Path(path) if path.is_ident("test") => Self::Test,
            Meta::Path(path) if path.is_ident("soong") => Self::Known(true),
            Meta::Path(path) if path.is_ident("unix") => Self::Known(true),
            Meta::Path(_) => Self::Unknown,
            Meta::NameValue(pair) => match &pair.value {
                Expr::Lit(ExprLit {
                    lit: Lit::Str(value),
                    ..
                }) if pair.path.is_ident("feature") => Self::Feature(value.value()),
                Expr::Lit(ExprLit {
                    lit: Lit::Str(value),
                    ..
                }) if pair.path.is_ident("target_os") => Self::Os(value.value()),
                _ => Self::Unknown,
            },
            Meta::List(list) => {
                let inner = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
                let mut inner = inner
                    .unwrap_or_default()
                    .iter()
                    .map(Self::of)
                    .collect::<Vec<_>>();
                if list.path.is_ident("all") {
                    Self::All(inner)
                } else if list.path.is_ident("any") {
                    Self::Any(inner)
                } else if list.path.is_ident("not") && inner.len() == 1 {
                    Self::Not(Box::new(inner.remove(0)))
                } else {
                    Self::Unknown
                }
            }
        }
    }

    /// Whether it holds in tests alone.
    pub fn is_of_tests(&self) -> bool {
        match self {
            Self::Test => true,
            Self::All(parts) => parts.iter().any(Self::is_of_tests),
            _ => false,
        }
    }

    /// Whether it holds. What cannot be decided does.
    pub fn holds(&self, setting: &Setting<'_>) -> bool {
        self.decide(setting).unwrap_or(true)
    }

    fn decide(&self, setting: &Setting<'_>) -> Option<bool> {
        let each = |parts: &[Self]| -> Vec<Option<bool>> {
            parts.iter().map(|part| part.decide(setting)).collect()
        };
        match self {
            Self::Known(known) => Some(*known),
            Self::Test => Some(setting.test),
            Self::Feature(name) => Some(setting.features.contains(name)),
            Self::Os(name) => Some(setting.os == name),
            Self::Not(part) => part.decide(setting).map(|holds| !holds),
            Self::All(parts) => fold(&each(parts), false),
            Self::Any(parts) => fold(&each(parts), true),
            Self::Unknown => None,
        }
    }
}

/// One part that is `decisive` decides; otherwise all must be known.
fn fold(parts: &[Option<bool>], decisive: bool) -> Option<bool> {
    if parts.contains(&Some(decisive)) {
        return Some(decisive);
    }
    let known = parts.iter().all(Option::is_some);
    known.then_some(!decisive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_decided() {
        let features = ["a".to_owned()];
        let setting = Setting {
            features: &features,
            test: false,
            os: "android",
        };
        for (text, expected) in [
            ("cfg(feature = \"a\")", true),
            ("cfg(feature = \"b\")", false),
            ("cfg(not(target_os = \"android\"))", false),
            (
                "cfg(any(target_os = \"android\", target_os = \"linux\"))",
                true,
            ),
            ("cfg(all(soong, feature = \"b\"))", false),
            ("cfg(test)", false),
            // Unknown, and undecided by what is known.
            ("cfg(target_arch = \"aarch64\")", true),
            (
                "cfg(all(feature = \"b\", target_arch = \"aarch64\"))",
                false,
            ),
            ("cfg(any(feature = \"a\", target_arch = \"aarch64\"))", true),
        ] {
            assert_eq!(Condition::of_text(text).holds(&setting), expected, "{text}");
        }
    }
}
