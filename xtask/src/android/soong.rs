// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Soong and AOSP have, as data: module types with their properties, and
//! the modules of other projects that ours may use.
//!
//! From Soong of March 2025 and AOSP's crates of mid-2026. A newer crate is one
//! line here; `cargo xtask android` then type-checks with that version and those
//! features.

/// What a property holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A boolean.
    Bool,
    /// A list of strings.
    List,
    /// A map of properties; the names of those that are known.
    Map(&'static [(&'static str, Kind)]),
}

impl Kind {
    /// For messages, as [`Value::kind`](super::blueprint::Value::kind).
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Bool => "a boolean",
            Self::List => "a list of strings",
            Self::Map(_) => "a map",
        }
    }
}

/// Properties and what they hold, in AOSP's order.
pub type Properties = &'static [(&'static str, Kind)];

const PER_TARGET: Properties = &[("enabled", Kind::Bool), ("rustlibs", Kind::List)];

/// Properties that are a test's alone.
pub const OF_TESTS: &[&str] = &["test_suites", "auto_gen_config", "test_options", "data"];

const RUST: Properties = &[
    ("name", Kind::Text),
    ("defaults", Kind::List),
    ("stem", Kind::Text),
    ("enabled", Kind::Bool),
    ("host_supported", Kind::Bool),
    ("prefer_rlib", Kind::Bool),
    ("crate_name", Kind::Text),
    ("cargo_env_compat", Kind::Bool),
    ("cargo_pkg_version", Kind::Text),
    ("crate_root", Kind::Text),
    ("test_suites", Kind::List),
    ("auto_gen_config", Kind::Bool),
    ("test_options", Kind::Map(&[("unit_test", Kind::Bool)])),
    ("edition", Kind::Text),
    ("features", Kind::List),
    ("cfgs", Kind::List),
    ("lints", Kind::Text),
    ("clippy_lints", Kind::Text),
    ("rustlibs", Kind::List),
    ("proc_macros", Kind::List),
    ("data", Kind::List),
    ("compile_multilib", Kind::Text),
    (
        "target",
        Kind::Map(&[
            ("android", Kind::Map(PER_TARGET)),
            ("host", Kind::Map(PER_TARGET)),
            ("darwin", Kind::Map(PER_TARGET)),
        ]),
    ),
    ("apex_available", Kind::List),
    ("visibility", Kind::List),
    (
        "soong_config_variables",
        Kind::Map(&[(
            "replace_vhost_device_vsock",
            Kind::Map(&[("enabled", Kind::Bool)]),
        )]),
    ),
];

const RUST_BACKEND: Properties = &[("enabled", Kind::Bool), ("apex_available", Kind::List)];
const BACKEND: Properties = &[("enabled", Kind::Bool)];

const OTHERS: &[(&str, Properties)] = &[
    ("package", &[("default_applicable_licenses", Kind::List)]),
    (
        "license",
        &[
            ("name", Kind::Text),
            ("visibility", Kind::List),
            ("license_kinds", Kind::List),
            ("license_text", Kind::List),
        ],
    ),
    (
        "soong_config_module_type",
        &[
            ("name", Kind::Text),
            ("module_type", Kind::Text),
            ("config_namespace", Kind::Text),
            ("bool_variables", Kind::List),
            ("properties", Kind::List),
        ],
    ),
    (
        "aidl_interface",
        &[
            ("name", Kind::Text),
            ("host_supported", Kind::Bool),
            ("srcs", Kind::List),
            ("local_include_dir", Kind::Text),
            ("unstable", Kind::Bool),
            (
                "backend",
                Kind::Map(&[
                    ("java", Kind::Map(BACKEND)),
                    ("cpp", Kind::Map(BACKEND)),
                    ("ndk", Kind::Map(BACKEND)),
                    ("rust", Kind::Map(RUST_BACKEND)),
                ]),
            ),
        ],
    ),
];

/// The module types that make a crate, or help to.
pub const RUST_TYPES: &[&str] = &[
    "rust_defaults",
    "rust_library",
    "rust_binary",
    "rust_binary_host",
    "rust_test",
];

/// The properties of a module type, if it is known.
pub fn properties(module_type: &str) -> Option<Properties> {
    if RUST_TYPES.contains(&module_type) {
        return Some(RUST);
    }
    let found = OTHERS.iter().find(|(name, _)| *name == module_type)?;
    Some(found.1)
}

/// Properties whose values Soong or its tools know beforehand: those values, as
/// far as anything of ours could have them.
pub const VALUES: &[(&str, &[&str])] = &[
    (
        "apex_available",
        &["//apex_available:platform", "com.android.virt"],
    ),
    ("compile_multilib", &["32", "64", "both", "first"]),
    (
        "license_kinds",
        &[
            "SPDX-license-identifier-Apache-2.0",
            "SPDX-license-identifier-BSD-3-Clause",
        ],
    ),
    ("lints", &["android", "default", "none", "vendor"]),
    ("clippy_lints", &["android", "default", "none", "vendor"]),
    (
        "test_suites",
        &["cts", "device-tests", "general-tests", "vts"],
    ),
];

/// Where a module can be linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In what runs on a device, and on its host.
    Both,
    /// On the device alone.
    Device,
}

/// Whose a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A crate of crates.io, in this version, with these features.
    CratesIo {
        /// Its name there.
        package: &'static str,
        /// AOSP's version of it.
        version: &'static str,
        /// What AOSP builds it with.
        features: &'static [&'static str],
    },
    /// crosvm's: visible to modules with `crosvm_defaults`, in crosvm's tree.
    Crosvm,
    /// A part of Android that is on no registry.
    Platform,
}

/// A library of another project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Library {
    /// Soong's name for it.
    pub module: &'static str,
    /// The crate's name in Rust. Soong cannot rename it.
    pub crate_name: &'static str,
    /// Where it can be linked.
    pub place: Place,
    /// Whose it is.
    pub origin: Origin,
}

const fn crates_io(
    module: &'static str,
    crate_name: &'static str,
    package: &'static str,
    version: &'static str,
    features: &'static [&'static str],
) -> Library {
    Library {
        module,
        crate_name,
        place: Place::Both,
        origin: Origin::CratesIo {
            package,
            version,
            features,
        },
    }
}

const fn crosvm(module: &'static str, crate_name: &'static str) -> Library {
    Library {
        module,
        crate_name,
        place: Place::Both,
        origin: Origin::Crosvm,
    }
}

const fn platform(module: &'static str, crate_name: &'static str) -> Library {
    Library {
        module,
        crate_name,
        place: Place::Both,
        origin: Origin::Platform,
    }
}

/// Every library of others that a module of ours may name.
pub const LIBRARIES: &[Library] = &[
    Library {
        place: Place::Device,
        ..crates_io(
            "libandroid_logger",
            "android_logger",
            "android_logger",
            "0.15.1",
            &["default", "regex"],
        )
    },
    crates_io(
        "libanyhow",
        "anyhow",
        "anyhow",
        "1.0.104",
        &["default", "std"],
    ),
    platform("libbinder_rs", "binder"),
    crates_io(
        "libclap",
        "clap",
        "clap",
        "4.6.1",
        &["derive", "error-context", "help", "std", "string", "usage"],
    ),
    crates_io("libenv_logger", "env_logger", "env_logger", "0.11.11", &[]),
    crates_io(
        "liblibc",
        "libc",
        "libc",
        "0.2.186",
        &["default", "extra_traits", "std"],
    ),
    crates_io("liblog_rust", "log", "log", "0.4.33", &["std"]),
    platform("librpcbinder_rs", "rpcbinder"),
    crates_io(
        "libserde",
        "serde",
        "serde",
        "1.0.228",
        &["default", "derive", "rc", "serde_derive", "std"],
    ),
    crates_io(
        "libserde_json",
        "serde_json",
        "serde_json",
        "1.0.150",
        &["default", "std"],
    ),
    crates_io(
        "libtempfile",
        "tempfile",
        "tempfile",
        "3.27.0",
        &["default", "getrandom"],
    ),
    crates_io("libthiserror", "thiserror", "thiserror", "2.0.18", &["std"]),
    crates_io(
        "libvhost_android",
        "vhost",
        "vhost",
        "0.17.0",
        &["default", "vhost-user", "vhost-user-backend"],
    ),
    crates_io(
        "libvm_memory_android",
        "vm_memory",
        "vm-memory",
        "0.18.0",
        &[
            "arc-swap",
            "backend-atomic",
            "backend-bitmap",
            "backend-mmap",
            "default",
            "rawfd",
        ],
    ),
    crates_io(
        "libvmm_sys_util",
        "vmm_sys_util",
        "vmm-sys-util",
        "0.15.0",
        &[],
    ),
    crosvm("libbase_rust", "base"),
    crosvm("libdevices", "devices"),
    crosvm("libhypervisor", "hypervisor"),
    crosvm("libjail", "jail"),
    crosvm("libminijail_rust", "minijail"),
    crosvm("libresources", "resources"),
    crosvm("libserde_keyvalue", "serde_keyvalue"),
    crosvm("libsnapshot_crosvm", "snapshot"),
    crosvm("libsync_rust", "sync"),
    crosvm("libvm_control", "vm_control"),
    crosvm("libvm_memory", "vm_memory"),
];

/// The defaults that make crosvm's libraries visible.
pub const CROSVM_DEFAULTS: &str = "crosvm_defaults";

/// Cargo's targets that have no module: package, target, why.
pub const WITHOUT_MODULE: &[(&str, &str, &str)] = &[
    (
        "crosvm_vsock",
        "command_line",
        "starts the binary through Cargo's CARGO_BIN_EXE, which Soong does not set",
    ),
    (
        "crosvm_vsock",
        "generate",
        "starts the binary through Cargo's CARGO_BIN_EXE, with a feature that Soong does not build",
    ),
    (
        "crosvm_vsock",
        "checks",
        "holds docs/checks.md against the sources, which are not where a test runs under Soong",
    ),
    (
        "crosvm_vsock",
        "fuzz",
        "tells its stories with the crate guest_driver, which has no module",
    ),
    (
        "crosvm_vsock",
        "untrusted_input",
        "draws its bytes with the crate guest_driver, which has no module",
    ),
    (
        "crosvm_vsock",
        "pages",
        "holds the pages for users against the sources, which are not where a test runs under Soong",
    ),
    (
        "crosvm_vsock",
        "userspace",
        "plays the VMM with vhost's feature vhost-user-frontend, which AOSP's vhost lacks",
    ),
    (
        "crosvm_vsock",
        "control",
        "starts the binary through Cargo's CARGO_BIN_EXE, which Soong does not set",
    ),
    (
        "device_virtio_vsock",
        "descriptors",
        "drives the harness of the stand-ins, which crosvm's own crates do not have",
    ),
    (
        "device_virtio_vsock",
        "plugin",
        "drives the harness of the stand-ins, which crosvm's own crates do not have",
    ),
];
