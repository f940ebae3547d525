// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names that one module gives and another uses: licenses, and the variables and
//! properties of module types that are our own.

use super::blueprint::{Module, Value};
use super::soong;
use super::unit::{Complaint, File};

/// What names nothing.
pub fn check(files: &[File]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for file in files {
        let mut packages = file
            .modules
            .iter()
            .filter(|module| module.kind == "package");
        if packages.all(|package| package.list("default_applicable_licenses").is_empty()) {
            complaints.push(Complaint {
                file: file.path.clone(),
                line: None,
                module: String::new(),
                what: "no package module with `default_applicable_licenses`".to_owned(),
            });
        }
        for module in &file.modules {
            let wrong = match module.kind.as_str() {
                "package" => licenses(files, module),
                "soong_config_module_type" => own_type(module),
                kind => match named(files, "soong_config_module_type", kind) {
                    Some(own_type) => variables(own_type, module),
                    None => Vec::new(),
                },
            };
            let wrong = wrong.into_iter();
            complaints.extend(wrong.map(|what| Complaint::about(file, module, what)));
        }
    }
    complaints
}

fn named<'a>(files: &'a [File], kind: &str, name: &str) -> Option<&'a Module> {
    let mut modules = files.iter().flat_map(|file| &file.modules);
    modules.find(|module| module.kind == kind && module.name() == name)
}

fn licenses(files: &[File], package: &Module) -> Vec<String> {
    let names = package.list("default_applicable_licenses").iter();
    names
        .filter(|name| named(files, "license", name).is_none())
        .map(|name| format!("no license module is called `{name}`"))
        .collect()
}

/// The properties that a type lets variables change are some of those it has.
fn own_type(module: &Module) -> Vec<String> {
    let made_from = module.text("module_type").unwrap_or_default();
    let Some(known) = soong::properties(made_from) else {
        return vec![format!("`{made_from}` is no module type")];
    };
    let properties = module.list("properties").iter();
    properties
        .filter(|name| known.iter().all(|(known, _)| known != name))
        .map(|name| format!("{made_from} has no property `{name}`"))
        .collect()
}

/// What a module has of its type's variables, and what it changes by them.
fn variables(own_type: &Module, module: &Module) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(Value::Map(variables)) = module.get("soong_config_variables") else {
        return wrong;
    };
    let of_type = own_type.name();
    for variable in variables {
        if !own_type.list("bool_variables").contains(&variable.name) {
            wrong.push(format!("{of_type} has no variable `{}`", variable.name));
        }
        let Value::Map(changes) = &variable.value else {
            continue;
        };
        for change in changes {
            if !own_type.list("properties").contains(&change.name) {
                let name = &change.name;
                wrong.push(format!("{of_type} lets no variable change `{name}`"));
            }
        }
    }
    wrong
}
