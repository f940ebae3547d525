// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's arguments, and what they add up to.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::Args;
use log::LevelFilter;

use super::keys::{help, Single};
use super::sockets;
use super::vm::{Spec, Vm};

/// Which VMs to serve, and how.
#[derive(Args, Debug)]
#[command(next_help_heading = "Daemon")]
pub struct Arguments {
    /// A VM to serve, as comma-separated settings. Repeat for more VMs.
    #[arg(long, value_name = "KEY=VALUE,..", value_parser = Spec::parse, long_help = help())]
    vm: Vec<Spec>,

    /// A YAML file with a list `vms` of mappings with the same settings.
    #[cfg(feature = "config-file")]
    #[arg(long, value_name = "FILE", conflicts_with = "vm")]
    config: Option<PathBuf>,

    #[command(flatten)]
    single: Single,

    /// What moves the data of a VM that does not say it itself: userspace (this process,
    /// Unix sockets), kernel (/dev/vhost-vsock, host programs use AF_VSOCK), or auto
    /// (userspace where --uds-path or --forward-cid is given, else kernel if the device
    /// opens) [default: userspace].
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,

    /// Unix socket to create for `status`, `connections`, `connect` and `reset`; only this
    /// user and root may use it.
    #[cfg(feature = "control")]
    #[arg(long, value_name = "PATH", value_parser = sockets::parse)]
    control: Option<PathBuf>,

    /// Microseconds that a VM's thread looks for the next packet before it sleeps, where one
    /// is expected soon; 0: never [default: 60].
    #[arg(long, value_name = "MICROSECONDS")]
    poll_us: Option<String>,

    /// What to log: off, error, warn, info, debug or trace; or TARGET=LEVEL, as RUST_LOG has
    /// it, for a part of the program. Several are separated by commas.
    #[arg(long, value_name = "LEVEL", value_parser = log_filter)]
    pub log_level: Option<String>,
}

impl Arguments {
    /// The control socket.
    pub fn control(&self) -> Option<&Path> {
        #[cfg(feature = "control")]
        return self.control.as_deref();
        #[cfg(not(feature = "control"))]
        return None;
    }

    /// The VMs to serve. An error is one of usage.
    pub fn vms(&self) -> anyhow::Result<Vec<Vm>> {
        let single = self.single.0.clone();
        let listed = self.listed()?;
        let specs = match (single.is_empty(), listed.is_empty()) {
            (false, false) => anyhow::bail!(
                "options for a single VM do not go with --vm or --config: put them into the list"
            ),
            (false, true) => vec![(String::from("the VM"), single)],
            (true, false) => listed,
            (true, true) => anyhow::bail!("no VM to serve: say --vm, see --help"),
        };
        let mut vms = Vec::new();
        for (name, mut spec) in specs {
            if let Some(backend) = &self.backend {
                spec.set_default("backend", backend);
            }
            if let Some(poll) = &self.poll_us {
                spec.set_default("poll-us", poll);
            }
            vms.push(spec.build().map_err(|e| anyhow::anyhow!("{name}: {e}"))?);
        }
        check_together(&vms, self.control())?;
        if let Some(vm) = vms.iter().find(|vm| vm.is_restricted()) {
            anyhow::ensure!(
                self.control().is_some(),
                "VM {} has iotlb-mode=restricted, and without --control nobody can share its memory",
                vm.cid
            );
        }
        Ok(vms)
    }

    /// The VMs of `--vm` or of the file, each with a name for errors.
    fn listed(&self) -> anyhow::Result<Vec<(String, Spec)>> {
        #[cfg(feature = "config-file")]
        if let Some(path) = &self.config {
            return file::read(path);
        }
        let number =
            |(index, spec): (usize, &Spec)| (format!("--vm number {}", index + 1), spec.clone());
        Ok(self.vm.iter().enumerate().map(number).collect())
    }
}

/// Refuses what the log would take for something else: a level that is misspelt is the name
/// of a target to it.
fn log_filter(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let level = part.split_once('=').map_or(part, |(_, level)| level);
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "`{part}` is neither a level (off, error, warn, info, debug, trace) nor TARGET=LEVEL"
            ));
        }
    }
    Ok(text.to_owned())
}

/// What no two VMs may have in common.
fn check_together(vms: &[Vm], control: Option<&Path>) -> anyhow::Result<()> {
    let mut cids = HashSet::new();
    for Vm { cid, .. } in vms {
        anyhow::ensure!(
            cids.insert(cid),
            "two VMs have CID {cid}: each needs its own"
        );
    }
    let mut sockets: Vec<PathBuf> = vms.iter().flat_map(Vm::sockets).collect();
    sockets.extend(control.map(PathBuf::from));
    sockets::check_apart(&sockets)?;
    for vm in vms {
        let Some(base) = vm.host_programs() else {
            continue;
        };
        for path in &sockets {
            if let Some(port) = sockets::port_at(path, base) {
                anyhow::bail!(
                    "the path {} is that of port {port} for the guest of VM {}: choose another",
                    path.display(),
                    vm.cid
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_do_not_get_in_each_others_way() {
        let check = |texts: &[&str], control: Option<&str>| {
            let vm = |text: &&str| Spec::parse(text).unwrap().build().unwrap();
            let vms: Vec<Vm> = texts.iter().map(vm).collect();
            check_together(&vms, control.map(Path::new))
        };
        let vm = "socket=s,uds-path=u";
        for (other, control, expected) in [
            ("socket=s,uds-path=v", None, "the path s is used twice"),
            ("socket=t,uds-path=s", None, "the path s is used twice"),
            ("socket=t,uds-path=v", Some("u"), "the path u is used twice"),
            (
                "socket=t,uds-path=u_seqpacket",
                None,
                "u_seqpacket is used twice",
            ),
            (
                "socket=u_seqpacket,forward-cid=1",
                None,
                "u_seqpacket is used twice",
            ),
            (
                "socket=t,uds-path=u_4294967295",
                None,
                "the path u_4294967295 is that of port 4294967295 for the guest of VM 3",
            ),
            ("socket=u_0,forward-cid=1", None, "u_0 is that of port 0"),
            (
                "socket=t,uds-path=v",
                Some("u_70"),
                "u_70 is that of port 70",
            ),
        ] {
            let other = format!("guest-cid=4,{other}");
            for vms in [[vm, &other], [&other, vm]] {
                let error = check(&vms, control).unwrap_err().to_string();
                assert!(error.contains(expected), "{vms:?}: {error}");
            }
        }
        for other in ["u_", "u_070", "u_4294967296", "u_7/v", "v_70", "uu_70"] {
            let other = format!("guest-cid=4,socket=t,uds-path={other}");
            check(&[vm, &other], Some("c")).unwrap();
        }
    }
}

#[cfg(feature = "config-file")]
mod file {
    //! The YAML file.

    use std::path::Path;

    use anyhow::Context;
    use serde_json::Value;

    use super::Spec;

    /// The VMs that the file at `path` lists.
    pub(super) fn read(path: &Path) -> anyhow::Result<Vec<(String, Spec)>> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        parse(&text).with_context(|| format!("in {name}"))
    }

    fn parse(text: &str) -> anyhow::Result<Vec<(String, Spec)>> {
        let whole: Value = serde_yaml_ng::from_str(text).context("not valid YAML")?;
        let mapping = whole
            .as_object()
            .context("expected a mapping with the key `vms`")?;
        if let Some(other) = mapping.keys().find(|key| *key != "vms") {
            anyhow::bail!("unknown key `{other}`: there is only `vms`");
        }
        let list = mapping.get("vms").and_then(Value::as_array);
        let list = list.context("`vms` must be a list of mappings")?;
        let mut specs = Vec::new();
        for (index, entry) in list.iter().enumerate() {
            let name = format!("entry {} of `vms`", index + 1);
            let entry = entry.as_object();
            let entry = entry.with_context(|| format!("{name}: expected a mapping of settings"))?;
            let mut spec = Spec::default();
            for (key, value) in entry {
                let value = match value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    _ => anyhow::bail!("{name}: {key}: expected a number or a text"),
                };
                spec.set(key, &value).with_context(|| name.clone())?;
            }
            specs.push((name, spec));
        }
        anyhow::ensure!(!specs.is_empty(), "`vms` is empty: no VM to serve");
        Ok(specs)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn vms_in_both_spellings() {
            let text = "vms:\n  - guest_cid: 3\n    socket: /s\n    uds_path: /u\n    groups: a+b\n  \
                        - guest-cid: 5\n    socket: /t\n    forward-cid: 1\n    forward-listen: 9001+9002\n";
            let specs = parse(text).unwrap();
            let vms: Vec<_> = specs
                .iter()
                .map(|(_, spec)| spec.build().unwrap())
                .collect();
            assert_eq!((vms[0].cid.raw(), vms[1].cid.raw()), (3, 5));
        }

        #[test]
        fn errors_say_where() {
            for (text, expected) in [
                ("vms: 3", "must be a list"),
                ("vms: []", "empty"),
                ("vm: []", "unknown key `vm`"),
                ("[]", "expected a mapping"),
                ("vms:\n  - socket: s\n  - sokcet: s", "entry 2 of `vms`"),
                ("vms:\n  - socket: [s]", "expected a number or a text"),
                ("vms: [", "not valid YAML"),
            ] {
                let error = format!("{:#}", parse(text).unwrap_err());
                assert!(error.contains(expected), "{text}: {error}");
            }
        }
    }
}
