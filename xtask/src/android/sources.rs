// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a crate's sources are, from its root on, and which crates they name.
//!
//! Limits: a crate is named by a path that begins with it (`log::info!`); a name
//! that a macro makes up is not seen. `#[path]` is followed from files, not from
//! modules inside of files.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Expr, Item, ItemMod, Lit, Meta};

use super::cfg::{Condition, Setting};

/// The source files below a directory, each read once.
pub struct Sources {
    root: PathBuf,
    read: Mutex<HashMap<PathBuf, Arc<Vec<Piece>>>>,
}

/// What was found from a crate's root on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crate {
    /// Its files, relative to the directory.
    pub files: BTreeSet<PathBuf>,
    /// What they name.
    pub names: Names,
    /// Whether something in them is for tests alone.
    pub tests: bool,
}

/// What tokens name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Every name that begins a path.
    pub first: BTreeSet<String>,
    /// Every text in quotes that is an argument of `env!`.
    pub variables: BTreeSet<String>,
    /// Every feature that a `cfg` asks for.
    pub features: BTreeSet<String>,
}

/// An item of a file.
#[derive(Debug)]
struct Piece {
    condition: Condition,
    names: Names,
    module: Option<Module>,
}

#[derive(Debug)]
enum Module {
    Inline(String, Vec<Piece>),
    File(String),
    FileAt(String),
}

impl Piece {
    fn of(item: &Item) -> Self {
        let attributes = attributes(item);
        let mut names = Names::default();
        for attribute in attributes {
            names.scan(attribute.to_token_stream());
        }
        let module = match item {
            Item::Mod(module) => Some(Module::of(module)),
            other => {
                names.scan(other.to_token_stream());
                None
            }
        };
        Self {
            condition: Condition::of_attributes(attributes),
            names,
            module,
        }
    }
}

impl Module {
    fn of(module: &ItemMod) -> Self {
        let name = module.ident.to_string();
        match (&module.content, named_path(module)) {
            (Some((_, items)), _) => Self::Inline(name, items.iter().map(Piece::of).collect()),
            (None, Some(path)) => Self::FileAt(path),
            (None, None) => Self::File(name),
        }
    }
}

impl Sources {
    /// Of the files below `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            read: Mutex::default(),
        }
    }

    /// Follows the modules of a crate; without a setting, all of them.
    ///
    /// # Errors
    /// When a file is not there, or is no Rust.
    pub fn follow(&self, crate_root: &Path, setting: Option<&Setting<'_>>) -> Result<Crate> {
        let mut found = Crate::default();
        let directory = crate_root.parent().unwrap_or(Path::new(""));
        self.file(crate_root, directory, setting, &mut found)?;
        Ok(found)
    }

    /// `modules` is where the modules of this file have their files.
    fn file(
        &self,
        path: &Path,
        modules: &Path,
        setting: Option<&Setting<'_>>,
        found: &mut Crate,
    ) -> Result<()> {
        if !found.files.insert(path.to_owned()) {
            return Ok(());
        }
        self.pieces(&self.read(path)?, path, modules, setting, found)
    }

    fn pieces(
        &self,
        pieces: &[Piece],
        path: &Path,
        modules: &Path,
        setting: Option<&Setting<'_>>,
        found: &mut Crate,
    ) -> Result<()> {
        for piece in pieces {
            if setting.is_some_and(|setting| !piece.condition.holds(setting)) {
                continue;
            }
            found.names.add(&piece.names);
            found.tests |= piece.condition.is_of_tests();
            match &piece.module {
                None => {}
                Some(Module::Inline(name, inner)) => {
                    self.pieces(inner, path, &modules.join(name), setting, found)?;
                }
                Some(Module::FileAt(name)) => {
                    let beside = path.parent().unwrap_or(Path::new(""));
                    self.file(&beside.join(name), beside, setting, found)?;
                }
                Some(Module::File(name)) => {
                    let below = modules.join(name);
                    let own = modules.join(format!("{name}.rs"));
                    let file = if self.root.join(&own).is_file() {
                        own
                    } else {
                        below.join("mod.rs")
                    };
                    self.file(&file, &below, setting, found)?;
                }
            }
        }
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<Arc<Vec<Piece>>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pieces) = read.get(path) {
            return Ok(pieces.clone());
        }
        let shown = path.display();
        let text = std::fs::read_to_string(self.root.join(path))
            .with_context(|| format!("cannot read {shown}"))?;
        let file = syn::parse_file(&text).with_context(|| format!("{shown} is no Rust"))?;
        let pieces: Arc<Vec<Piece>> = Arc::new(file.items.iter().map(Piece::of).collect());
        read.insert(path.to_owned(), pieces.clone());
        Ok(pieces)
    }
}

fn named_path(module: &ItemMod) -> Option<String> {
    let path = module.attrs.iter().find(|a| a.path().is_ident("path"))?;
    let Meta::NameValue(pair) = &path.meta else {
        return None;
    };
    match &pair.value {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

fn attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl Names {
    fn add(&mut self, other: &Self) {
        self.first.extend(other.first.iter().cloned());
        self.variables.extend(other.variables.iter().cloned());
        self.features.extend(other.features.iter().cloned());
    }

    /// Finds `name::`, `env!("name")` and `feature = "name"`, at any depth.
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let sign = |index: usize, sign: char| match tokens.get(index) {
            Some(TokenTree::Punct(punct)) => punct.as_char() == sign,
            _ => false,
        };
        for (index, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.scan(group.stream()),
                TokenTree::Ident(name) => {
                    let continues = index >= 2 && sign(index - 1, ':') && sign(index - 2, ':');
                    if sign(index + 1, ':') && sign(index + 2, ':') && !continues {
                        self.first.insert(name.to_string());
                    }
                    if name == "env" && sign(index + 1, '!') {
                        if let Some(TokenTree::Group(group)) = tokens.get(index + 2) {
                            let mut arguments = group.stream().into_iter();
                            self.variables.extend(arguments.find_map(quoted));
                        }
                    }
                    if name == "feature" && sign(index + 1, '=') {
                        let value = tokens.get(index + 2).cloned();
                        self.features.extend(value.and_then(quoted));
                    }
                }
                _ => {}
            }
        }
    }
}

fn quoted(token: TokenTree) -> Option<String> {
    match syn::parse2(token.into()) {
        Ok(Lit::Str(text)) => Some(text.value()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_names_are_followed() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "src/lib.rs",
            "mod a;\n#[cfg(feature = \"b\")] mod b;\nmod inline { mod c; }\n\
             #[cfg(test)] mod tests { use tempfile::TempDir; }\n\
             #[path = \"odd.rs\"] mod d;\n",
        );
        write(
            "src/a.rs",
            "mod deep;\nfn f() { x!(log::info!(\"{}\", inner::log2::y)); }",
        );
        write(
            "src/a/deep.rs",
            "// libc::c_int\nconst V: &str = env!(\"VERSION\");",
        );
        write("src/b/mod.rs", "use serde::Serialize;");
        write("src/inline/c.rs", "");
        write("src/odd.rs", "");
        let sources = Sources::new(place.path());
        let root = Path::new("src/lib.rs");
        let setting = Setting {
            features: &[],
            test: false,
            os: "linux",
        };
        let found = sources.follow(root, Some(&setting)).unwrap();
        let files: Vec<_> = found.files.iter().map(|f| f.to_str().unwrap()).collect();
        let expected = [
            "src/a/deep.rs",
            "src/a.rs",
            "src/inline/c.rs",
            "src/lib.rs",
            "src/odd.rs",
        ];
        assert_eq!(files, expected);
        let names: Vec<_> = found.names.first.iter().map(String::as_str).collect();
        assert_eq!(names, ["inner", "log"]);
        assert!(found.names.variables.contains("VERSION"));
        assert!(!found.tests);

        let all = sources.follow(root, None).unwrap();
        assert_eq!(all.files.len(), 6);
        assert!(all.tests);
        assert!(all.names.first.contains("serde") && all.names.first.contains("tempfile"));
        assert!(all.names.features.contains("b"));
        let missing = sources.follow(Path::new("src/none.rs"), None).unwrap_err();
        assert!(missing.to_string().contains("src/none.rs"));
    }
}
