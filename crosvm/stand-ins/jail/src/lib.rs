// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `jail`: the sandbox of a device process. It checks
//! what crosvm checks and confines nothing. Host tests only; never built by
//! Soong.

use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use minijail::Minijail;
use serde::{Deserialize, Serialize};

/// The policies that crosvm carries and a vsock device may ask for.
const STOCK_POLICIES: [&str; 2] = ["vhost_vsock_device", "vhost_vsock_device_vhost_user"];

/// The user's wishes for sandboxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct JailConfig {
    /// The root directory of a device process.
    pub pivot_root: PathBuf,
    /// Where policies are, instead of those that crosvm carries.
    pub seccomp_policy_dir: Option<PathBuf>,
    /// Whether forbidden system calls are logged.
    pub seccomp_log_failures: bool,
}

impl Default for JailConfig {
    fn default() -> Self {
        JailConfig {
            pivot_root: "/var/empty".into(),
            seccomp_policy_dir: None,
            seccomp_log_failures: false,
        }
    }
}

/// A jail with the policy of that name; none when sandboxes are off.
///
/// # Errors
/// When the root is no directory or there is no such policy.
pub fn simple_jail(jail_config: Option<&JailConfig>, policy: &str) -> Result<Option<Minijail>> {
    let Some(config) = jail_config else {
        return Ok(None);
    };
    let root = &config.pivot_root;
    if !root.is_dir() {
        bail!("{root:?} is not a directory, cannot create jail");
    }
    if !root.is_absolute() {
        bail!("{root:?} is not absolute path");
    }
    match &config.seccomp_policy_dir {
        Some(dir) => {
            let file = dir.join(policy).with_extension("policy");
            if !file.exists() {
                bail!("failed to parse seccomp policy: {}", file.display());
            }
        }
        None if !STOCK_POLICIES.contains(&policy) => {
            bail!("failed to find embedded seccomp policy: {policy}");
        }
        None => {}
    }
    let mut jail = Minijail::new().context("failed to jail device")?;
    jail.policy = Some(policy.to_owned());
    Ok(Some(jail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jail_needs_a_root_and_a_policy() {
        let config = |root: &str| JailConfig {
            pivot_root: root.into(),
            ..JailConfig::default()
        };
        assert!(simple_jail(None, "nothing").unwrap().is_none());
        let jail = simple_jail(Some(&config("/")), "vhost_vsock_device").unwrap();
        assert_eq!(jail.unwrap().policy.as_deref(), Some("vhost_vsock_device"));
        assert!(simple_jail(Some(&config("/")), "vhost_vsok_device").is_err());
        assert!(simple_jail(Some(&config("/dev/null")), "vhost_vsock_device").is_err());
        assert!(simple_jail(Some(&config(".")), "vhost_vsock_device").is_err());
        let own = JailConfig {
            seccomp_policy_dir: Some("/".into()),
            ..config("/")
        };
        assert!(simple_jail(Some(&own), "vhost_vsock_device").is_err());
    }
}
