// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each mistake that can be made in Android.bp is made once, and must be told.

use std::sync::OnceLock;

use super::cargo::Workspace;
use super::sources::Sources;
use super::{check, read_all, FILES, MAPPINGS};
use crate::lab::workspace;

/// The files as they are: paths and texts, and the test mappings.
struct Tree {
    files: Vec<(&'static str, String)>,
    mappings: Vec<(&'static str, String)>,
}

fn tree() -> Tree {
    let root = workspace();
    Tree {
        files: read_all(&root, FILES).unwrap(),
        mappings: read_all(&root, MAPPINGS).unwrap(),
    }
}

fn cargo() -> &'static Workspace {
    static CARGO: OnceLock<Workspace> = OnceLock::new();
    CARGO.get_or_init(|| Workspace::read(&workspace()).unwrap())
}

/// Read once: no test changes a source file.
fn sources() -> &'static Sources {
    static SOURCES: OnceLock<Sources> = OnceLock::new();
    SOURCES.get_or_init(|| Sources::new(&workspace()))
}

/// What is wrong with a tree, line by line; also what cannot be read.
fn complaints(tree: &Tree) -> Vec<String> {
    let (files, mappings) = (&tree.files, &tree.mappings);
    match check(&workspace(), files, mappings, cargo(), sources()) {
        Ok(complaints) => complaints.iter().map(ToString::to_string).collect(),
        Err(error) => vec![format!("{error:#}")],
    }
}

/// Replaces `from` once inside the module called `module` (in any file), and
/// expects a complaint that has `expected` in it.
pub fn mutate(module: &str, from: &str, to: &str, expected: &str) {
    let what = format!("{module}, {from:?} -> {to:?}");
    change(module, &what, expected, |old| {
        assert!(old.contains(from), "{module} has no {from}");
        old.replacen(from, to, 1)
    });
}

/// Removes the module called `module`, and expects complaints.
pub fn remove(module: &str, expected: &[&str]) {
    for expected in expected {
        let what = format!("{module} removed");
        change(module, &what, expected, |_| String::new());
    }
}

fn change(module: &str, what: &str, expected: &str, make: impl FnOnce(&str) -> String) {
    let mut tree = tree();
    let name = format!("name: \"{module}\"");
    let file = tree.files.iter_mut().find(|(_, text)| text.contains(&name));
    let (_, text) = file.unwrap_or_else(|| panic!("no module {module}"));
    let named = text.find(&name).unwrap();
    let start = text[..named].rfind("\n\n").unwrap();
    let end = named + text[named..].find("\n}\n").unwrap() + "\n}\n".len();
    let new = make(&text[start..end]);
    text.replace_range(start..end, &new);
    let all = complaints(&tree);
    let told = all.iter().any(|line| line.contains(expected));
    assert!(told, "{what}, expected {expected:?}: {all:#?}");
}

#[test]
fn the_files_as_they_are_give_no_reason_to_complain() {
    assert_eq!(complaints(&tree()), [""; 0]);
}

#[test]
fn a_mistyped_module_type_is_told() {
    mutate(
        "libmodel_kernel",
        "rust_library {",
        "rust_libary {",
        "libmodel_kernel: `rust_libary` is no module type",
    );
}

#[test]
fn a_mistyped_property_is_told() {
    for (from, to, expected) in [
        ("crate_root:", "crate_rot:", "`crate_rot` is no property"),
        ("rustlibs:", "rust_libs:", "`rust_libs` is no property"),
        ("\"libcrosvm_vsock\"", "true", "expected a string"),
        (
            "[\"crosvm_vsock_defaults\"]",
            "\"crosvm_vsock_defaults\"",
            "takes a list",
        ),
        (
            "crate_name: \"model_kernel\"",
            "crate_name: true",
            "takes a string",
        ),
    ] {
        mutate("libmodel_kernel", from, to, expected);
    }
    mutate(
        "crosvm_vsock_main_defaults",
        "android: {",
        "andriod: {",
        "`target.andriod` is no property",
    );
    mutate(
        "crosvm_vsock_defaults",
        "host_supported: true",
        "host_supported: \"true\"",
        "`host_supported` takes a boolean, not a string",
    );
    mutate(
        "crosvm-vsock",
        "prefer_rlib: true,",
        "prefer_rlib: true,\n    prefer_rlib: true,",
        "`prefer_rlib` is given twice",
    );
}

#[test]
fn a_property_out_of_order_or_place_is_told() {
    mutate(
        "libmodel_kernel",
        "crate_name: \"model_kernel\",\n    crate_root: \"tests/kernel/src/lib.rs\",",
        "crate_root: \"tests/kernel/src/lib.rs\",\n    crate_name: \"model_kernel\",",
        "`crate_name` stands before `crate_root`",
    );
    mutate(
        "crosvm-vsock_as_vhost_device_vsock",
        "    stem: \"vhost_device_vsock\",\n    enabled: false,\n",
        "    enabled: false,\n    stem: \"vhost_device_vsock\",\n",
        "`stem` stands before `enabled`",
    );
    mutate(
        "libmodel_kernel",
        "crate_root:",
        "test_suites: [\"general-tests\"],\n    crate_root:",
        "`test_suites` is for rust_test",
    );
    mutate(
        "crosvm_vsock_defaults",
        "lints: \"android\"",
        "lints: \"none\"",
        "`lints` is \"none\", but must be \"android\"",
    );
    mutate(
        "crosvm-vsock",
        "prefer_rlib: true,",
        "prefer_rlib: true,\n    soong_config_variables: {},",
        "`soong_config_variables` is for types that",
    );
}

#[test]
fn a_missing_library_is_told() {
    mutate(
        "libcrosvm_vsock",
        "        \"libthiserror\",\n",
        "",
        "the sources use `thiserror`, but rustlibs for the device has no libthiserror",
    );
    mutate(
        "libcrosvm_vsock_daemon",
        "        \"libvhost_android\",\n",
        "",
        "the sources use `vhost`, but rustlibs for the host has no libvhost_android",
    );
    mutate(
        "crosvm_vsock_main_defaults",
        "rustlibs: [\"libandroid_logger\"],",
        "",
        "crosvm-vsock: the sources use `android_logger`, but rustlibs for the device",
    );
    mutate(
        "crosvm_vsock_main_defaults",
        "        \"libcrosvm_vsock_daemon\",\n",
        "",
        "crosvm-vsock: the sources use `crosvm_vsock`",
    );
    mutate(
        "device_virtio_vsock_defaults",
        "        \"libjail\",\n",
        "",
        "the sources use `jail`, but rustlibs for the device has no libjail",
    );
}

#[test]
fn a_wrong_interface_is_told() {
    for (from, to, expected) in [
        ("unstable: true", "stable: false", "`stable` is no property"),
        (
            "unstable: true",
            "unstable: false",
            "no library is called `android.system.vsock-rust`",
        ),
        (
            "rust: {\n            enabled: true",
            "rust: {\n            enabled: false",
            "no library is called `android.system.vsock-rust`",
        ),
        (
            "vsock/*.aidl",
            "sock/*.aidl",
            "there is no file `aidl/android/system/sock/*.aidl`",
        ),
        (
            "                \"com.android.virt\",\n",
            "",
            "`android.system.vsock-rust` is not available in `com.android.virt`",
        ),
    ] {
        mutate("android.system.vsock", from, to, expected);
    }
    for (from, expected) in [
        (
            "        \"android.system.vsock-rust\",\n",
            "the sources use `android_system_vsock`, but rustlibs for the device has no \
             android.system.vsock-rust",
        ),
        (
            "        \"librpcbinder_rs\",\n",
            "the sources use `rpcbinder`, but rustlibs for the host has no librpcbinder_rs",
        ),
        (
            "        \"control\",\n",
            "rustlibs for the device has libbinder_rs, but the sources do not use `binder`",
        ),
    ] {
        mutate("libcrosvm_vsock_daemon", from, "", expected);
    }
}

#[test]
fn a_library_too_many_is_told() {
    mutate(
        "libcrosvm_vsock",
        "        \"libthiserror\",\n",
        "        \"libserde_json\",\n        \"libthiserror\",\n",
        "rustlibs for the host has libserde_json, but the sources do not use `serde_json`",
    );
    mutate(
        "crosvm_vsock_test_tests_compat",
        "rustlibs: [\"libcrosvm_vsock\"]",
        "rustlibs: [\n        \"libcrosvm_vsock\",\n        \"libmodel_kernel\",\n    ]",
        "has libmodel_kernel, but the sources do not use `model_kernel`",
    );
    mutate(
        "libcrosvm_vsock",
        "\"liblog_rust\"",
        "\"liblog\"",
        "no library is called `liblog`",
    );
    mutate(
        "libcrosvm_vsock",
        "        \"liblog_rust\",\n        \"libthiserror\",\n",
        "        \"libthiserror\",\n        \"liblog_rust\",\n",
        "`rustlibs` is not sorted",
    );
}

#[test]
fn a_library_in_the_wrong_place_is_told() {
    mutate(
        "crosvm_vsock_main_defaults",
        "        \"libanyhow\",\n",
        "        \"libandroid_logger\",\n        \"libanyhow\",\n",
        "`libandroid_logger` is for devices only",
    );
    mutate(
        "device_virtio_vsock_defaults",
        "defaults: [\"crosvm_defaults\"]",
        "defaults: [\"crosvm_vsock_defaults\"]",
        "`libbase_rust` is crosvm's, and visible only with crosvm_defaults",
    );
    mutate(
        "libcrosvm_vsock",
        "        \"com.android.virt\",\n",
        "",
        "libdevice_virtio_vsock: `libcrosvm_vsock` is not available in `com.android.virt`",
    );
}

#[test]
fn both_vm_memories_in_one_module_are_told() {
    mutate(
        "device_virtio_vsock_defaults",
        "        \"libvm_memory\",\n",
        "        \"libvm_memory\",\n        \"libvm_memory_android\",\n",
        "libvm_memory and libvm_memory_android are all the crate `vm_memory`",
    );
    // Through the daemon's library, which brings the other.
    mutate(
        "device_virtio_vsock_defaults",
        "\"libcrosvm_vsock\"",
        "\"libcrosvm_vsock_daemon\"",
        "libvm_memory and libvm_memory_android are all the crate `vm_memory`",
    );
}

#[test]
fn a_wrong_feature_is_told() {
    mutate(
        "libcrosvm_vsock_daemon",
        "        \"userspace\",\n",
        "",
        "the feature `userspace` is missing",
    );
    mutate(
        "libcrosvm_vsock_daemon",
        "\"vhost-user\"",
        "\"vhost-usr\"",
        "crosvm_vsock has no feature `vhost-usr`",
    );
    mutate(
        "crosvm_vsock_main_defaults",
        "        \"cli\",\n",
        "        \"cli\",\n        \"config-file\",\n",
        "the sources use `serde_yaml_ng`, but rustlibs for the device has no module for it",
    );
    mutate(
        "libcrosvm_vsock_daemon",
        "    features: [\n        \"control\",\n        \"userspace\",\n        \"vhost-user\",\n    ],\n",
        "",
        "has the feature `vhost-user`, but its library libcrosvm_vsock_daemon does not",
    );
}

#[test]
fn a_wrong_edition_name_or_version_is_told() {
    mutate(
        "crosvm_vsock_defaults",
        "edition: \"2021\"",
        "edition: \"2018\"",
        "the edition is 2018, but Cargo's is 2021",
    );
    mutate(
        "device_virtio_vsock_defaults",
        "    edition: \"2021\",\n",
        "",
        "the edition is none",
    );
    mutate(
        "device_virtio_vsock_defaults",
        "0.1.0",
        "0.0.9",
        "cargo_pkg_version is 0.0.9",
    );
    mutate(
        "crosvm_vsock_defaults",
        "cargo_env_compat: true",
        "cargo_env_compat: false",
        "cargo_env_compat must be true",
    );
    mutate(
        "libmodel_kernel",
        "name: \"libmodel_kernel\"",
        "name: \"libmodel\"",
        "must be called `libmodel_kernel`",
    );
    mutate(
        "crosvm_vsock_test_tests_probe",
        "crate_name: \"probe\"",
        "crate_name: \"prob\"",
        "the crate is called prob, but Cargo's probe",
    );
}

#[test]
fn a_path_that_is_not_there_is_told() {
    mutate(
        "crosvm_vsock_test_tests_compat",
        "tests/compat.rs",
        "tests/compatible.rs",
        "there is no file `tests/compatible.rs`",
    );
    mutate(
        "crosvm_vsock_test_tests_compat",
        "docs/compat.md",
        "docs/compatible.md",
        "there is no file `docs/compatible.md`",
    );
    mutate(
        "external_crosvm_vsock_license",
        "LICENSE-APACHE",
        "LICENSE",
        "there is no file `LICENSE`",
    );
    mutate(
        "crosvm_vsock_test_tests_compat",
        "tests/compat.rs",
        "src/compat.rs",
        "Cargo has no target with the root `src/compat.rs`",
    );
}

#[test]
fn a_source_file_that_nothing_reaches_is_told() {
    mutate(
        "libmodel_kernel",
        "tests/kernel/src/lib.rs",
        "tests/kernel/src/message.rs",
        "tests/kernel/src/vring.rs: no module of Android.bp reaches this file",
    );
}

#[test]
fn a_wrong_name_is_told() {
    mutate(
        "libmodel_kernel",
        "[\"crosvm_vsock_defaults\"]",
        "[\"crosvm_vsock_default\"]",
        "no rust_defaults is called `crosvm_vsock_default`",
    );
    mutate(
        "libcrosvm_vsock_daemon",
        "name: \"libcrosvm_vsock_daemon\"",
        "name: \"libcrosvm_vsock\"",
        "a second module is called `libcrosvm_vsock`",
    );
}

#[test]
fn a_test_without_a_module_is_told() {
    remove(
        "crosvm_vsock_test_tests_halted",
        &[
            "the target `halted` of crosvm_vsock has no module here",
            "TEST_MAPPING: `crosvm_vsock_test_tests_halted` is no rust_test",
        ],
    );
}

#[test]
fn unit_tests_without_a_module_are_told() {
    remove(
        "device_virtio_vsock_test_src_lib",
        &[
            "the target `device_virtio_vsock` of device_virtio_vsock has unit tests, but no \
             rust_test has its root",
            "crosvm/TEST_MAPPING: `device_virtio_vsock_test_src_lib` is no rust_test",
        ],
    );
    remove(
        "crosvm_vsock_test_src_main",
        &["the target `crosvm-vsock` of crosvm_vsock has unit tests"],
    );
}

#[test]
fn a_test_that_is_not_mapped_is_told() {
    let mut tree = tree();
    let text = &mut tree.mappings[0].1;
    *text = text.replace("_tests_probe", "_tests_prob");
    let all = complaints(&tree);
    for expected in [
        "`crosvm_vsock_test_tests_probe` is missing",
        "`crosvm_vsock_test_tests_prob` is no rust_test",
    ] {
        assert!(all.iter().any(|line| line.contains(expected)), "{all:#?}");
    }
}

#[test]
fn what_is_no_blueprint_is_told_with_file_and_line() {
    let mut tree = tree();
    tree.files[1].1 = "rust_library {\n    name \"x\",\n}\n".to_owned();
    let all = complaints(&tree);
    assert_eq!(all, ["crosvm/Android.bp: line 2: expected `:`, not \"x\""]);
}

#[test]
fn a_file_without_a_license_is_told() {
    let mut tree = tree();
    let text = &mut tree.files[1].1;
    *text = text.replace("\"external_crosvm_vsock_license\"", "");
    let all = complaints(&tree);
    assert_eq!(
        all,
        ["crosvm/Android.bp: no package module with `default_applicable_licenses`"]
    );
}
