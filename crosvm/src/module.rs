// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The options of the command line and what crosvm makes of them.
//!
//! ```text
//! cid=N[,device=PATH|fd=N][,max-queue-sizes=[N,N,N]][,iotlb=auto|off|identity|restricted]
//!     [,iotlb-bit=N|none][,platform-access=auto|on][,shared=[ADDRESS+SIZE,...]]
//! ```
//!
//! Parsing is serde's (crosvm's `serde_keyvalue` on the command line); what serde
//! cannot check is checked before the device is created, with the option's name.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use base::{open_file_or_duplicate, safe_descriptor_from_cmdline_fd};
use crosvm_vsock::address::{Gpa, GuestCid, Range};
use crosvm_vsock::compat::{IotlbBit, Vm};
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::{QueueSetup, VhostVsock};
use devices::virtio::{base_features, VirtioDevice};
use devices::{VirtioDeviceArgs, VirtioDeviceModule};
#[cfg(any(target_os = "android", target_os = "linux"))]
use jail::JailConfig;
#[cfg(any(target_os = "android", target_os = "linux"))]
use minijail::Minijail;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{Config, Confinement};
use crate::device::Vsock;

/// The size of a queue when no other is asked for.
const DEFAULT_QUEUE_SIZE: u16 = 256;

/// What `iotlb=` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Iotlb {
    /// What needs the least of the kernel: no IOTLB.
    #[default]
    Auto,
    /// No IOTLB.
    Off,
    /// IOTLB with all of guest memory.
    Identity,
    /// IOTLB with the guest's restricted-DMA pool and the ranges of `shared`.
    Restricted,
}

/// What `platform-access=` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlatformAccess {
    /// Offered when crosvm's base features have it: to protected VMs.
    #[default]
    Auto,
    /// Offered to any VM.
    On,
}

/// The options of one vsock device, not checked yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// The guest's CID.
    pub cid: u64,
    /// The device file; `/dev/vhost-vsock` when neither this nor `fd` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,
    /// An inherited descriptor of the device file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// The most descriptors of the receive, transmit and event queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queue_sizes: Option<[u16; 3]>,
    /// How the kernel reaches guest memory.
    #[serde(default)]
    pub iotlb: Iotlb,
    /// The bit that stands for the IOTLB on a split kernel.
    #[serde(
        default,
        serialize_with = "serialize_bit",
        deserialize_with = "deserialize_bit"
    )]
    pub iotlb_bit: IotlbBit,
    /// Whether the guest is offered the platform-access bits.
    #[serde(default)]
    pub platform_access: PlatformAccess,
    /// With `iotlb=restricted`: what the guest shares beside the pool, each as `ADDRESS+SIZE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<String>,
}

fn serialize_bit<S: Serializer>(bit: &IotlbBit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(bit)
}

/// A number or `none`: a key-value string gives the one as an integer, the other
/// as text.
fn deserialize_bit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IotlbBit, D::Error> {
    struct Visitor;
    impl serde::de::Visitor<'_> for Visitor {
        type Value = IotlbBit;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a bit number from 0 to 63, or none")
        }
        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<IotlbBit, E> {
            self.visit_str(&number.to_string())
        }
        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<IotlbBit, E> {
            self.visit_str(&number.to_string())
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IotlbBit, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_any(Visitor)
}

impl Options {
    /// All defaults, for the guest with `cid`.
    pub fn new(cid: u64) -> Self {
        Self {
            cid,
            device: None,
            fd: None,
            max_queue_sizes: None,
            iotlb: Iotlb::default(),
            iotlb_bit: IotlbBit::default(),
            platform_access: PlatformAccess::default(),
            shared: Vec::new(),
        }
    }

    /// Checks all options and makes them a device's configuration. `base_features`
    /// are crosvm's for the VM.
    ///
    /// # Errors
    /// Names the option and what it accepts.
    pub fn config(&self, base_features: FeatureSet) -> Result<Config> {
        let cid = GuestCid::new(self.cid).context("vsock option cid")?;
        if self.device.is_some() && self.fd.is_some() {
            bail!("vsock options device and fd exclude each other: give one of them");
        }
        let queue_sizes = self.max_queue_sizes.unwrap_or([DEFAULT_QUEUE_SIZE; 3]);
        for size in queue_sizes {
            ensure!(
                size.is_power_of_two() && size <= QueueSetup::MAX_SIZE,
                "vsock option max-queue-sizes: {size} is not a power of two from 1 to {}",
                QueueSetup::MAX_SIZE
            );
        }
        ensure!(
            self.shared.is_empty() || self.iotlb == Iotlb::Restricted,
            "vsock option shared has a meaning with iotlb=restricted only"
        );
        let confinement = match self.iotlb {
            Iotlb::Auto | Iotlb::Off => Confinement::None,
            Iotlb::Identity => Confinement::Identity,
            Iotlb::Restricted => Confinement::Restricted(self.shared()?),
        };
        let protected = base_features.has(Feature::ACCESS_PLATFORM)
            || self.platform_access == PlatformAccess::On;
        Ok(Config {
            cid,
            vm: if protected { Vm::Protected } else { Vm::Plain },
            base_features,
            iotlb_bit: self.iotlb_bit,
            confinement,
            queue_sizes,
        })
    }

    fn shared(&self) -> Result<Vec<Range<Gpa>>> {
        let range = |text: &String| {
            let (first, size) = text.split_once('+')?;
            Range::new(Gpa(number(first)?), number(size)?).ok()
        };
        self.shared
            .iter()
            .map(|text| {
                range(text).with_context(|| {
                    format!("vsock option shared: {text:?} is no ADDRESS+SIZE, like 0x80000000+0x4000000")
                })
            })
            .collect()
    }

    /// Opens the device now: a jail denies it later.
    fn open(&self) -> Result<VhostVsock> {
        if let Some(fd) = &self.fd {
            let descriptor = safe_descriptor_from_cmdline_fd(fd)
                .with_context(|| format!("vsock option fd: {fd} is not an inherited descriptor"))?;
            return VhostVsock::adopt(descriptor.into())
                .with_context(|| format!("vsock option fd={fd}"));
        }
        let path = match &self.device {
            Some(path) => path,
            None => Path::new(VhostVsock::PATH),
        };
        if !path.starts_with("/proc/self/fd") {
            return Ok(VhostVsock::open(path)?);
        }
        let file = open_file_or_duplicate(path, OpenOptions::new().read(true).write(true))
            .with_context(|| format!("vsock option device: cannot use {}", path.display()))?;
        Ok(VhostVsock::adopt(file.into())?)
    }
}

/// Decimal, or hexadecimal behind `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The vsock device of one VM: options that fit together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Options", into = "Options")]
pub struct VirtioVsockModule(Options);

impl VirtioVsockModule {
    /// What crosvm's older options `--cid` and `--vhost-vsock-device` say. The CID
    /// is checked when the device is created.
    pub fn new(cid: u64, device: Option<PathBuf>) -> Self {
        let mut options = Options::new(cid);
        options.device = device;
        Self(options)
    }
}

impl TryFrom<Options> for VirtioVsockModule {
    type Error = String;

    fn try_from(options: Options) -> Result<Self, String> {
        let checked = options.config(FeatureSet::EMPTY);
        checked.map_err(|error| format!("{error:#}"))?;
        Ok(Self(options))
    }
}

impl From<VirtioVsockModule> for Options {
    fn from(module: VirtioVsockModule) -> Self {
        module.0
    }
}

impl VirtioDeviceModule for VirtioVsockModule {
    fn sort_name(&self) -> &'static str {
        "vsock"
    }

    fn create(&self, cx: &mut VirtioDeviceArgs<'_>) -> Result<Box<dyn VirtioDevice>> {
        let base = FeatureSet::from_bits(base_features(cx.protection_type));
        let config = self.0.config(base)?;
        Ok(Box::new(Vsock::new(self.0.open()?, config)?))
    }

    /// crosvm's own policy of its vhost-vsock device fits: everything is opened
    /// before, and IOTLB messages of version 1 need read(2) and write(2) alone.
    /// Version 2 would need `VHOST_GET_BACKEND_FEATURES` (0x8008af26) and
    /// `VHOST_SET_BACKEND_FEATURES` (0x4008af25) added to it.
    #[cfg(any(target_os = "android", target_os = "linux"))]
    fn create_jail(&self, jail_config: &JailConfig) -> Result<Option<Minijail>> {
        jail::simple_jail(Some(jail_config), "vhost_vsock_device")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VirtioVsockModule, String> {
        serde_keyvalue::from_key_values(text).map_err(|error| error.to_string())
    }

    #[test]
    fn all_options_of_the_command_line() {
        let text =
            "cid=42,device=/dev/x,max-queue-sizes=[64,128,16],iotlb=restricted,iotlb-bit=62,\
                    platform-access=on,shared=[0x80000000+0x4000000]";
        let options = parse(text).unwrap().0;
        assert_eq!(options.cid, 42);
        assert_eq!(options.device, Some("/dev/x".into()));
        let config = options.config(FeatureSet::EMPTY).unwrap();
        assert_eq!(config.queue_sizes, [64, 128, 16]);
        assert_eq!(config.iotlb_bit.to_string(), "62");
        assert_eq!(config.vm, Vm::Protected);
        let pool = Range::new(Gpa(0x8000_0000), 0x400_0000).unwrap();
        assert_eq!(config.confinement, Confinement::Restricted(vec![pool]));
        assert_eq!(parse("3").unwrap().0, Options::new(3));
        assert_eq!(
            parse("cid=3,iotlb-bit=none").unwrap().0.iotlb_bit,
            IotlbBit::NONE
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (text, words) in [
            ("device=/dev/x", "cid"),
            ("cid=2", "cid"),
            ("cid=4294967296", "4294967296"),
            ("cid=3,color=red", "color"),
            ("cid=3,device=/dev/x,fd=5", "device and fd"),
            ("cid=3,max-queue-sizes=[256,256,100]", "100"),
            (
                "cid=3,max-queue-sizes=[256,0,256]",
                "0 is not a power of two",
            ),
            ("cid=3,iotlb=maybe", "restricted"),
            ("cid=3,iotlb-bit=33", "ACCESS_PLATFORM"),
            ("cid=3,iotlb-bit=64", "64"),
            ("cid=3,platform-access=off", "auto"),
            ("cid=3,iotlb=restricted,shared=[5]", "ADDRESS+SIZE"),
            ("cid=3,shared=[0x1000+0x1000]", "iotlb=restricted"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
        }
    }

    #[test]
    fn a_config_survives_crosvms_configuration_file() {
        let module = parse("cid=3,iotlb=identity,iotlb-bit=none").unwrap();
        let stored = snapshot::AnySnapshot::to_any(&module).unwrap();
        assert_eq!(
            snapshot::AnySnapshot::from_any::<VirtioVsockModule>(stored).unwrap(),
            module
        );
    }

    #[test]
    fn platform_access_follows_the_base_features_unless_forced() {
        let vm = |text: &str, base| parse(text).unwrap().0.config(base).unwrap().vm;
        let protected = Feature::ACCESS_PLATFORM.set();
        assert_eq!(vm("cid=3", FeatureSet::EMPTY), Vm::Plain);
        assert_eq!(vm("cid=3", protected), Vm::Protected);
        assert_eq!(
            vm("cid=3,platform-access=on", FeatureSet::EMPTY),
            Vm::Protected
        );
    }
}
