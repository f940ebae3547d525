// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The modules that products, other trees and test runners know by name, and
//! what they rely on. Soong would build as well without, for fewer places.

use super::blueprint::{Module, Value};
use super::unit::{Complaint, File, Product, Unit};

/// What a property must be.
enum Must {
    Text(&'static str),
    Bool(bool),
    List(&'static [&'static str]),
}

impl Must {
    fn value(&self) -> Value {
        match self {
            Self::Text(text) => Value::Text((*text).to_owned()),
            Self::Bool(bool) => Value::Bool(*bool),
            Self::List(list) => Value::List(list.iter().map(|&text| text.to_owned()).collect()),
        }
    }
}

/// Properties by their paths, once defaults are applied.
type Properties = &'static [(&'static str, Must)];

const APEX: Must = Must::List(&["//apex_available:platform", "com.android.virt"]);

/// Of everything that is compiled.
const EVERYTHING: Properties = &[
    ("host_supported", Must::Bool(true)),
    ("lints", Must::Text("android")),
    ("clippy_lints", Must::Text("android")),
];

/// Of every test.
const TESTS: Properties = &[
    ("test_suites", Must::List(&["general-tests"])),
    ("auto_gen_config", Must::Bool(true)),
    ("test_options.unit_test", Must::Bool(true)),
];

/// Of what has no defaults of crosvm's.
const OURS: Properties = &[
    ("compile_multilib", Must::Text("first")),
    ("target.darwin.enabled", Must::Bool(false)),
];

/// Module types and names, and what they have beyond that.
const SHIPPED: &[(&str, &str, Properties)] = &[
    (
        "license",
        "external_crosvm_vsock_license",
        &[
            ("visibility", Must::List(&[":__subpackages__"])),
            (
                "license_kinds",
                Must::List(&[
                    "SPDX-license-identifier-Apache-2.0",
                    "SPDX-license-identifier-BSD-3-Clause",
                ]),
            ),
            (
                "license_text",
                Must::List(&["LICENSE-APACHE", "LICENSE-BSD-3-Clause"]),
            ),
        ],
    ),
    (
        "aidl_interface",
        "android.system.vsock",
        &[
            ("host_supported", Must::Bool(true)),
            ("srcs", Must::List(&["aidl/android/system/vsock/*.aidl"])),
            ("local_include_dir", Must::Text("aidl")),
            ("unstable", Must::Bool(true)),
            ("backend.java.enabled", Must::Bool(false)),
            ("backend.cpp.enabled", Must::Bool(false)),
            ("backend.ndk.enabled", Must::Bool(false)),
            ("backend.rust.enabled", Must::Bool(true)),
            ("backend.rust.apex_available", APEX),
        ],
    ),
    (
        "rust_library",
        "libcrosvm_vsock",
        &[("apex_available", APEX)],
    ),
    (
        "rust_library",
        "libcrosvm_vsock_daemon",
        &[("apex_available", APEX)],
    ),
    (
        "rust_binary",
        "crosvm-vsock",
        &[("prefer_rlib", Must::Bool(true)), ("apex_available", APEX)],
    ),
    // A product turns it on by this namespace and this variable.
    (
        "soong_config_module_type",
        "crosvm_vsock_cuttlefish_binary",
        &[
            ("module_type", Must::Text("rust_binary_host")),
            ("config_namespace", Must::Text("crosvm_vsock")),
        ],
    ),
    (
        "crosvm_vsock_cuttlefish_binary",
        "crosvm-vsock_as_vhost_device_vsock",
        &[
            ("stem", Must::Text("vhost_device_vsock")),
            ("enabled", Must::Bool(false)),
            (
                "soong_config_variables.replace_vhost_device_vsock.enabled",
                Must::Bool(true),
            ),
        ],
    ),
    // crosvm's defaults add the platform.
    (
        "rust_library",
        "libdevice_virtio_vsock",
        &[("apex_available", Must::List(&["com.android.virt"]))],
    ),
];

/// What is missing, or other than it must be.
pub fn check(files: &[File], units: &[Unit]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for unit in units {
        let more = [
            (unit.product == Product::Test, TESTS),
            (!unit.of_crosvm, OURS),
        ];
        let more = more.iter().filter_map(|(is, more)| is.then_some(*more));
        for properties in std::iter::once(EVERYTHING).chain(more) {
            complaints.extend(
                compare(properties, |path| unit.get(path)).map(|what| Complaint {
                    file: unit.file.clone(),
                    line: Some(unit.line),
                    module: unit.name.clone(),
                    what,
                }),
            );
        }
    }
    for (kind, name, properties) in SHIPPED {
        let Some((file, module)) = find(files, kind, name) else {
            complaints.push(Complaint {
                file: "Android.bp".into(),
                line: None,
                module: (*name).to_owned(),
                what: format!("there is no {kind} of this name, which others rely on"),
            });
            continue;
        };
        let unit = units.iter().find(|unit| unit.name == *name);
        let value = |path: &str| match unit {
            Some(unit) => unit.get(path),
            None => module.get(path),
        };
        let wrong = compare(properties, value);
        complaints.extend(wrong.map(|what| Complaint::about(file, module, what)));
    }
    complaints
}

fn find<'a>(files: &'a [File], kind: &str, name: &str) -> Option<(&'a File, &'a Module)> {
    files.iter().find_map(|file| {
        let mut modules = file.modules.iter();
        let module = modules.find(|module| module.kind == kind && module.name() == name)?;
        Some((file, module))
    })
}

fn compare<'a>(
    properties: Properties,
    value: impl Fn(&str) -> Option<&'a Value>,
) -> impl Iterator<Item = String> {
    properties.iter().filter_map(move |(path, must)| {
        let wanted = must.value();
        match value(path) {
            Some(found) if *found == wanted => None,
            Some(found) => Some(format!("`{path}` is {found}, but must be {wanted}")),
            None => Some(format!("`{path}` is not set, but must be {wanted}")),
        }
    })
}
