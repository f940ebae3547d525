// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mistakes after which Soong would still build something, made once each.

use super::mutation_test::{mutate, remove};

#[test]
fn a_module_that_others_rely_on_is_told_when_it_is_gone() {
    remove(
        "crosvm-vsock",
        &["crosvm-vsock: there is no rust_binary of this name"],
    );
    // Another type is another module.
    mutate(
        "crosvm-vsock",
        "rust_binary {",
        "rust_binary_host {",
        "crosvm-vsock: there is no rust_binary of this name",
    );
    // The test of the same root makes no library.
    remove(
        "libmodel_kernel",
        &["the target `model_kernel` of model_kernel has no module here"],
    );
}

#[test]
fn a_wrong_place_is_told() {
    mutate(
        "crosvm-vsock_as_vhost_device_vsock",
        "stem: \"vhost_device_vsock\"",
        "stem: \"vhost_device_vsok\"",
        "`stem` is \"vhost_device_vsok\", but must be \"vhost_device_vsock\"",
    );
    let apex = "    apex_available: [\n        \"//apex_available:platform\",\n        \
                \"com.android.virt\",\n    ],\n";
    for module in ["crosvm-vsock", "libcrosvm_vsock", "libcrosvm_vsock_daemon"] {
        let expected = format!("{module}: `apex_available` is not set");
        mutate(module, apex, "", &expected);
    }
    mutate(
        "libdevice_virtio_vsock",
        "    apex_available: [\"com.android.virt\"],\n",
        "",
        "libdevice_virtio_vsock: `apex_available` is not set",
    );
    mutate(
        "libdevice_virtio_vsock",
        "com.android.virt",
        "com.android.vrit",
        "`apex_available` cannot be \"com.android.vrit\"",
    );
    for (module, expected) in [
        (
            "crosvm_vsock_defaults",
            "crosvm-vsock: `host_supported` is not set",
        ),
        (
            "device_virtio_vsock_defaults",
            "libdevice_virtio_vsock: `host_supported` is not set",
        ),
        (
            "android.system.vsock",
            "android.system.vsock: `host_supported` is not set",
        ),
    ] {
        mutate(module, "    host_supported: true,\n", "", expected);
    }
    mutate(
        "crosvm_vsock_defaults",
        "compile_multilib: \"first\"",
        "compile_multilib: \"frist\"",
        "`compile_multilib` cannot be \"frist\"; there are: 32, 64, both, first",
    );
    mutate(
        "crosvm_vsock_defaults",
        "        darwin: {\n            enabled: false,\n        },\n",
        "",
        "`target.darwin.enabled` is not set, but must be false",
    );
}

#[test]
fn lints_that_are_off_are_told() {
    for (defaults, module) in [
        ("crosvm_vsock_defaults", "crosvm-vsock"),
        ("device_virtio_vsock_defaults", "libdevice_virtio_vsock"),
    ] {
        for name in ["lints", "clippy_lints"] {
            let line = format!("    {name}: \"android\",\n");
            let expected = format!("{module}: `{name}` is not set, but must be \"android\"");
            mutate(defaults, &line, "", &expected);
        }
    }
    mutate(
        "crosvm_vsock_defaults",
        "    lints: \"android\"",
        "    lints: \"andriod\"",
        "`lints` cannot be \"andriod\"",
    );
}

#[test]
fn a_test_that_no_suite_runs_is_told() {
    mutate(
        "crosvm_vsock_test_defaults",
        "general-tests",
        "general-test",
        "`test_suites` cannot be \"general-test\"",
    );
    for line in [
        "    test_suites: [\"general-tests\"],\n",
        "    auto_gen_config: true,\n",
    ] {
        let name = line.trim().split(':').next().unwrap();
        let expected = format!("crosvm_vsock_test_src_lib: `{name}` is not set");
        mutate("crosvm_vsock_test_defaults", line, "", &expected);
    }
    mutate(
        "device_virtio_vsock_test_src_lib",
        "unit_test: true",
        "unit_test: false",
        "`test_options.unit_test` is false, but must be true",
    );
}

#[test]
fn a_wrong_license_is_told() {
    mutate(
        "external_crosvm_vsock_license",
        "license-identifier-BSD-3-Clause",
        "license-identifier-BSD-3",
        "`license_kinds` cannot be \"SPDX-license-identifier-BSD-3\"",
    );
    mutate(
        "external_crosvm_vsock_license",
        "        \"SPDX-license-identifier-Apache-2.0\",\n",
        "",
        "`license_kinds` is [\"SPDX-license-identifier-BSD-3-Clause\"], but must be",
    );
    // What the files' package modules name.
    mutate(
        "external_crosvm_vsock_license",
        "name: \"external_crosvm_vsock_license\"",
        "name: \"external_crosvm_vsock_licence\"",
        "crosvm/Android.bp:6: no license module is called `external_crosvm_vsock_license`",
    );
}

#[test]
fn a_soong_variable_or_property_that_does_not_exist_is_told() {
    for (from, to, expected) in [
        (
            "[\"replace_vhost_device_vsock\"]",
            "[\"replace_vhost_device_vsok\"]",
            "crosvm-vsock_as_vhost_device_vsock: crosvm_vsock_cuttlefish_binary has no variable \
             `replace_vhost_device_vsock`",
        ),
        (
            "properties: [\"enabled\"]",
            "properties: [\"enabld\"]",
            "rust_binary_host has no property `enabld`",
        ),
        (
            "properties: [\"enabled\"]",
            "properties: [\"stem\"]",
            "crosvm_vsock_cuttlefish_binary lets no variable change `enabled`",
        ),
        (
            "config_namespace: \"crosvm_vsock\"",
            "config_namespace: \"crosvm_vsok\"",
            "`config_namespace` is \"crosvm_vsok\", but must be \"crosvm_vsock\"",
        ),
        (
            "\"rust_binary_host\"",
            "\"rust_binary_hots\"",
            "`rust_binary_hots` is no module type",
        ),
    ] {
        mutate("crosvm_vsock_cuttlefish_binary", from, to, expected);
    }
}

#[test]
fn an_interface_for_other_languages_or_from_elsewhere_is_told() {
    for name in ["java", "cpp", "ndk"] {
        let old = format!("{name}: {{\n            enabled: false");
        let expected = format!("`backend.{name}.enabled` is true, but must be false");
        let new = old.replace("false", "true");
        mutate("android.system.vsock", &old, &new, &expected);
    }
    mutate(
        "android.system.vsock",
        "local_include_dir: \"aidl\"",
        "local_include_dir: \"aild\"",
        "there is no directory `aild`",
    );
}
