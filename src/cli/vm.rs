// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One VM's settings: `key=value,...` on the command line, a mapping in the file, or
//! flags of their own. All three end in [`Spec::set`], so they know the same keys.
//!
//! Keys may be spelt with `-` or `_`. [`Spec::build`] checks what belongs together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crosvm_vsock::address::{Cid, GuestCid, Port};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::kernel::VhostVsock;
use crosvm_vsock::userspace::hybrid::{seqpacket_path, Reply};
use crosvm_vsock::userspace::listener::HostPlace;
use crosvm_vsock::userspace::ring::MAX_QUEUE_SIZE;
use crosvm_vsock::userspace::Config;

use super::keys::{names, Key, Scope, KEYS};
use super::sockets::{self, PathError};

/// The CID of a VM that names none (as `vhost-device-vsock` has it).
const DEFAULT_CID: &str = "3";

/// What a guest's CID is, for errors.
pub const GUEST_CID: &str = "a guest's CID (3 to 4294967294)";

/// A guest's CID as somebody has written it.
pub fn guest_cid(text: &str) -> Option<GuestCid> {
    GuestCid::new(text.parse().ok()?).ok()
}

/// What was said about a VM so far.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    values: Vec<(&'static Key, String)>,
    /// What is said for all VMs.
    defaults: Vec<(&'static str, String)>,
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("unknown setting `{0}`; there are: {known}", known = names())]
    Unknown(String),
    #[error("`{0}` is given twice")]
    Twice(&'static str),
    #[error("`{0}` is not of the form key=value")]
    NoValue(String),
    #[error("`{value}` is not of the form key=value; if it belongs to `{key}`: its values are joined with `+`")]
    Separator { key: &'static str, value: String },
    #[error("{key}: `{value}` is not {expected}")]
    Value {
        key: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("{key}: {error}")]
    Path { key: &'static str, error: PathError },
    #[error("`socket` is missing: the path of the vhost-user socket for the VMM")]
    NoSocket,
    #[error(
        "either `uds-path` (host programs on Unix sockets) or `forward-cid` (on the host's vsock) is needed, \
         or `backend=kernel`"
    )]
    NoPlace,
    #[error(
        "`{key}` has no meaning with `backend=kernel`{}: host programs use AF_VSOCK there, and the \
         kernel's own limits hold", auto(*.chosen)
    )]
    NotForKernel {
        key: &'static str,
        chosen: Option<&'static str>,
    },
    #[error("`{key}` has a meaning with `backend=kernel` only{}", auto(*.chosen))]
    OnlyForKernel {
        key: &'static str,
        chosen: Option<&'static str>,
    },
    #[error("`uds-path` and `forward-cid` exclude each other")]
    TwoPlaces,
    #[error("`forward-listen` needs `forward-cid`")]
    ListenAlone,
    #[error(
        "`max-pending-bytes` ({limit}) is less than `tx-buffer-size` ({buffer}): a connection \
         that uses what it was granted would be reset"
    )]
    LessThanOneBuffer { limit: usize, buffer: u32 },
}

fn auto(chosen: Option<&str>) -> String {
    chosen.map_or_else(String::new, |why| format!(" (backend auto: {why})"))
}

fn socket_path(key: &'static str, path: impl Into<PathBuf>) -> Result<PathBuf, SpecError> {
    let path = path.into();
    sockets::check(&path).map_err(|error| SpecError::Path { key, error })?;
    Ok(path)
}

/// A VM that can be started.
#[derive(Clone, Debug)]
pub struct Vm {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// The guest's CID.
    pub cid: GuestCid,
    /// What moves the data.
    pub backend: Backend,
    /// Why it is that one, if `auto` has chosen it.
    pub chosen: Option<&'static str>,
}

/// What moves a VM's data.
#[derive(Clone, Debug)]
pub enum Backend {
    /// This process.
    Userspace(Config),
    /// The host kernel's vhost-vsock.
    Kernel {
        /// The device file.
        device: PathBuf,
        /// The largest queue that a driver may set up.
        max_queue_size: u16,
        /// What the kernel can reach.
        mode: Mode,
    },
}

impl Vm {
    /// The socket files that are created for it.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let mut sockets = vec![self.socket.clone()];
        if let Some(path) = self.host_programs() {
            sockets.extend([path.to_owned(), seqpacket_path(path).into()]);
        }
        sockets
    }

    /// Where its host programs' sockets are, if they are Unix sockets.
    pub fn host_programs(&self) -> Option<&Path> {
        match &self.backend {
            Backend::Userspace(Config {
                host: HostPlace::Unix(path),
                ..
            }) => Some(path),
            _ => None,
        }
    }

    /// Whether the kernel reaches only what is shared.
    pub fn is_restricted(&self) -> bool {
        let mode = match &self.backend {
            Backend::Kernel { mode, .. } => *mode,
            Backend::Userspace(_) => Mode::Off,
        };
        mode == Mode::Restricted
    }
}

impl Spec {
    /// From `key=value,key=value`.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let mut spec = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| spec.without_value(part))?;
            spec.set(key, value)?;
        }
        Ok(spec)
    }

    /// What is wrong with a part without `=`.
    fn without_value(&self, part: &str) -> SpecError {
        match self.values.last().map(|(key, _)| key.name) {
            Some(key @ ("forward-listen" | "groups")) => SpecError::Separator {
                key,
                value: part.to_owned(),
            },
            _ => SpecError::NoValue(part.to_owned()),
        }
    }

    /// Notes one setting.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        let spelt = key.trim().replace('_', "-");
        let known = KEYS.iter().find(|known| known.name == spelt);
        let key = known.ok_or_else(|| SpecError::Unknown(key.to_owned()))?;
        if self.values.iter().any(|(said, _)| said.name == key.name) {
            return Err(SpecError::Twice(key.name));
        }
        self.values.push((key, value.to_owned()));
        Ok(())
    }

    /// Notes what holds unless the VM says something else. It need not matter to this VM.
    pub fn set_default(&mut self, key: &'static str, value: &str) {
        self.defaults.push((key, value.to_owned()));
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn get(&self, key: &str) -> Option<&str> {
        let said = self.values.iter().map(|(said, value)| (said.name, value));
        let defaults = self.defaults.iter().map(|(name, value)| (*name, value));
        let found = said.chain(defaults).find(|(name, _)| *name == key);
        found.map(|(_, value)| value.as_str())
    }

    fn number(
        &self,
        key: &'static str,
        least: u64,
        most: u64,
        expected: &'static str,
    ) -> Result<Option<u64>, SpecError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(SpecError::Value {
                key,
                value: value.to_owned(),
                expected,
            }),
        }
    }

    fn count(&self, key: &'static str, into: &mut usize) -> Result<(), SpecError> {
        const MOST: u64 = 1 << 40;
        if let Some(number) = self.number(key, 1, MOST, "a number from 1 on")? {
            *into = usize::try_from(number).unwrap_or(usize::MAX);
        }
        Ok(())
    }

    fn list(&self, key: &'static str) -> Option<Vec<&str>> {
        let parts = self.get(key)?.split('+').filter(|part| !part.is_empty());
        Some(parts.collect())
    }

    fn place(&self) -> Result<HostPlace, SpecError> {
        let cid = self.number("forward-cid", 0, u64::from(u32::MAX) - 1, "a vsock CID")?;
        match (self.get("uds-path"), cid) {
            (Some(_), Some(_)) => Err(SpecError::TwoPlaces),
            (None, None) => Err(SpecError::NoPlace),
            (Some(_), None) if self.get("forward-listen").is_some() => Err(SpecError::ListenAlone),
            (Some(path), None) => {
                let path = socket_path("uds-path", path)?;
                socket_path("uds-path", seqpacket_path(&path))?;
                Ok(HostPlace::Unix(path))
            }
            (None, Some(cid)) => {
                let port = |text: &str| {
                    text.parse().map(Port).map_err(|_| SpecError::Value {
                        key: "forward-listen",
                        value: text.to_owned(),
                        expected: "a vsock port (several are joined with `+`)",
                    })
                };
                let ports = self.list("forward-listen").unwrap_or_default();
                Ok(HostPlace::Vsock {
                    cid: Cid(cid as u32),
                    listen: ports.into_iter().map(port).collect::<Result<_, _>>()?,
                })
            }
        }
    }

    /// The VM it describes.
    pub fn build(&self) -> Result<Vm, SpecError> {
        let cid = self.get("guest-cid").unwrap_or(DEFAULT_CID);
        let cid = guest_cid(cid).ok_or_else(|| SpecError::Value {
            key: "guest-cid",
            value: cid.to_owned(),
            expected: GUEST_CID,
        })?;
        let socket = socket_path("socket", self.get("socket").ok_or(SpecError::NoSocket)?)?;
        let max_queue_size = self.max_queue_size()?;
        let poll = self.poll()?;
        let (kernel, chosen) = self.is_kernel()?;
        self.check_scopes(kernel, chosen)?;
        let backend = if kernel {
            let device = self.get("device").unwrap_or(VhostVsock::PATH);
            Backend::Kernel {
                device: PathBuf::from(device),
                max_queue_size,
                mode: self.mode()?,
            }
        } else {
            let mut config = self.userspace(cid)?;
            config.max_queue_size = max_queue_size;
            config.poll = poll.unwrap_or(config.poll);
            Backend::Userspace(config)
        };
        Ok(Vm {
            socket,
            cid,
            backend,
            chosen,
        })
    }

    /// VIRTIO 1.2, 2.7: the size of a queue is a power of two.
    fn max_queue_size(&self) -> Result<u16, SpecError> {
        let Some(value) = self.get("queue-size") else {
            return Ok(MAX_QUEUE_SIZE);
        };
        match value.parse() {
            Ok(size @ 2..=MAX_QUEUE_SIZE) if u16::is_power_of_two(size) => Ok(size),
            _ => Err(SpecError::Value {
                key: "queue-size",
                value: value.to_owned(),
                expected: "a queue size (a power of two, 2 to 32768)",
            }),
        }
    }

    fn poll(&self) -> Result<Option<Duration>, SpecError> {
        let expected = "a number of microseconds from 0 to 1000";
        let time = self.number("poll-us", 0, 1000, expected)?;
        Ok(time.map(Duration::from_micros))
    }

    /// Refuses what this VM says and what means nothing to its backend.
    fn check_scopes(&self, kernel: bool, chosen: Option<&'static str>) -> Result<(), SpecError> {
        for (key, _) in &self.values {
            let (key, scope) = (key.name, key.scope);
            match scope {
                Scope::Userspace if kernel => return Err(SpecError::NotForKernel { key, chosen }),
                Scope::Kernel if !kernel => return Err(SpecError::OnlyForKernel { key, chosen }),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the kernel moves the data, and why if that was not said.
    fn is_kernel(&self) -> Result<(bool, Option<&'static str>), SpecError> {
        const ELSEWHERE: [&str; 3] = ["uds-path", "forward-cid", "forward-listen"];
        let elsewhere = ELSEWHERE.into_iter().any(|key| self.get(key).is_some());
        match self.get("backend").unwrap_or("userspace") {
            "userspace" => Ok((false, None)),
            "auto" => Ok(match elsewhere {
                true => (false, Some("its host programs are not on AF_VSOCK")),
                false => (true, Some("neither uds-path nor forward-cid is given")),
            }),
            "kernel" => Ok((true, None)),
            other => Err(SpecError::Value {
                key: "backend",
                value: other.to_owned(),
                expected: "userspace, kernel or auto",
            }),
        }
    }

    fn mode(&self) -> Result<Mode, SpecError> {
        match self.get("iotlb-mode").map(str::parse) {
            None => Ok(Mode::Off),
            // vhost-user front ends keep their vIOMMU to themselves.
            Some(Ok(mode)) if mode != Mode::Translated => Ok(mode),
            Some(_) => Err(SpecError::Value {
                key: "iotlb-mode",
                value: self.get("iotlb-mode").unwrap_or_default().to_owned(),
                expected: "off, identity or restricted",
            }),
        }
    }

    fn userspace(&self, cid: GuestCid) -> Result<Config, SpecError> {
        let mut config = Config::new(cid, self.place()?);
        if let Some(groups) = self.list("groups") {
            config.groups = groups.into_iter().map(str::to_owned).collect();
        }
        if let Some(reply) = self.get("reply") {
            config.reply = match reply {
                "guest-port" => Reply::GuestPort,
                "host-port" => Reply::HostPort,
                _ => {
                    return Err(SpecError::Value {
                        key: "reply",
                        value: reply.to_owned(),
                        expected: "guest-port or host-port",
                    })
                }
            };
        }
        let limits = &mut config.limits;
        let expected = "a buffer size in bytes (4096 to 1073741824)";
        let buffer = self.number("tx-buffer-size", 4096, 1 << 30, expected)?;
        self.count("max-connections", &mut limits.connections)?;
        self.count("max-half-open", &mut limits.half_open)?;
        self.count("max-pending-bytes", &mut limits.pending_bytes)?;
        self.count("max-pending-resets", &mut limits.pending_resets)?;
        self.count("max-sibling-requests", &mut limits.sibling_requests)?;
        let most = 3_600_000;
        if let Some(time) = self.number(
            "handshake-timeout-ms",
            1,
            most,
            "milliseconds, up to an hour",
        )? {
            limits.handshake = Duration::from_millis(time);
        }
        // Whoever uses what it was granted must not be reset for that.
        let limit = limits.pending_bytes;
        limits.buf_alloc = match buffer.map(|size| size as u32) {
            Some(buffer) if buffer as usize > limit => {
                return Err(SpecError::LessThanOneBuffer { limit, buffer })
            }
            Some(buffer) => buffer,
            None => limits
                .buf_alloc
                .min(u32::try_from(limit).unwrap_or(u32::MAX)),
        };
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str) -> Result<Vm, SpecError> {
        Spec::parse(text)?.build()
    }

    fn userspace(text: &str) -> Config {
        match build(text).unwrap().backend {
            Backend::Userspace(config) => config,
            kernel => panic!("{kernel:?}"),
        }
    }

    #[test]
    fn cuttlefishs_line() {
        let line = "guest-cid=7,socket=/t/vhost.socket,uds-path=/t/vm.vsock,groups=a+b";
        let vm = build(line).unwrap();
        assert_eq!(vm.socket, PathBuf::from("/t/vhost.socket"));
        assert_eq!(vm.cid.raw(), 7);
        let config = userspace(line);
        assert_eq!(config.host, HostPlace::Unix("/t/vm.vsock".into()));
        assert_eq!(config.groups, ["a", "b"]);
    }

    #[test]
    fn both_spellings() {
        let config =
            userspace("guest_cid=4,socket=s,uds_path=u,tx_buffer_size=32768,queue_size=256");
        assert_eq!(config.max_queue_size, 256);
        assert_eq!(config.limits.buf_alloc, 32768);
    }

    #[test]
    fn a_small_limit_means_small_buffers() {
        let config = userspace("socket=s,uds-path=u,max-pending-bytes=8192");
        assert_eq!(config.limits.buf_alloc, 8192);
        let config = userspace("socket=s,uds-path=u,max-pending-bytes=1099511627776");
        assert_eq!(config.limits.buf_alloc, 1 << 20);
    }

    #[test]
    fn forwarding() {
        let config = userspace("guest-cid=5,socket=s,forward-cid=1,forward-listen=9001+9002");
        let place = HostPlace::Vsock {
            cid: Cid(1),
            listen: vec![Port(9001), Port(9002)],
        };
        assert_eq!(config.host, place);
    }

    #[test]
    fn backends() {
        let kernel = |text: &str| matches!(build(text).unwrap().backend, Backend::Kernel { .. });
        assert!(kernel("socket=s,backend=kernel"));
        assert!(kernel("socket=s,backend=auto,device=/dev/other"));
        assert!(!kernel("socket=s,backend=auto,uds-path=u"));
        assert!(!kernel("socket=s,uds-path=u"));
        let chosen = |text: &str| build(text).unwrap().chosen;
        assert_eq!(chosen("socket=s,backend=kernel"), None);
        assert_eq!(chosen("socket=s,uds-path=u"), None);
        assert!(chosen("socket=s,backend=auto").is_some());
        assert!(chosen("socket=s,backend=auto,uds-path=u").is_some());
    }

    #[test]
    fn a_path_is_too_long_if_a_socket_beside_it_is() {
        let path = "u".repeat(97);
        assert!(build(&format!("socket=s,uds-path={path}")).is_ok());
        let error = build(&format!("socket=s,uds-path={path}u")).unwrap_err();
        let expected = format!("uds-path: {path}u_seqpacket has 108 bytes, 1 more than");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }

    #[test]
    fn what_is_said_for_all_vms_may_not_matter_to_one() {
        let with = |text: &str, poll: &str| {
            let mut spec = Spec::parse(text).unwrap();
            spec.set_default("poll-us", poll);
            spec.build()
        };
        assert!(with("socket=s,backend=kernel", "5").is_ok());
        let error = with("socket=s,backend=kernel", "x").unwrap_err();
        assert!(error.to_string().starts_with("poll-us: `x`"), "{error}");
        let Backend::Userspace(config) =
            with("socket=s,uds-path=u,poll-us=7", "5").unwrap().backend
        else {
            panic!("not the default");
        };
        assert_eq!(config.poll, Duration::from_micros(7));
    }

    #[test]
    fn errors_say_what_is_wrong_and_what_is_possible() {
        for (text, expected) in [
            (
                "guest-cid=3,sokcet=s",
                "unknown setting `sokcet`; there are: guest-cid, socket",
            ),
            ("guest-cid=3", "`socket` is missing"),
            ("socket=s", "either `uds-path`"),
            ("socket=s,uds-path=u,forward-cid=1", "exclude each other"),
            (
                "socket=s,uds-path=u,forward-listen=1",
                "needs `forward-cid`",
            ),
            (
                "socket=s,uds-path=u,guest-cid=2",
                "guest-cid: `2` is not a guest's CID (3 to",
            ),
            (
                "socket=s,uds-path=u,max-pending-bytes=8191,tx-buffer-size=8192",
                "`max-pending-bytes` (8191) is less than `tx-buffer-size` (8192)",
            ),
            (
                "socket=s,uds-path=u,queue-size=x",
                "queue-size: `x` is not a queue size",
            ),
            (
                "socket=s,uds-path=u,queue-size=1000",
                "`1000` is not a queue size (a power of two, 2 to 32768)",
            ),
            (
                "socket=s,backend=kernel,queue-size=65536",
                "`65536` is not a queue size",
            ),
            ("socket=s,uds-path=u,socket=t", "`socket` is given twice"),
            ("socket", "`socket` is not of the form key=value"),
            ("socket=,uds-path=u", "socket: the path is empty"),
            ("socket=s,uds-path=", "uds-path: the path is empty"),
            (
                "socket=s,forward-cid=1,forward-listen=9001,9002",
                "`9002` is not of the form key=value; if it belongs to `forward-listen`: its values are joined with `+`",
            ),
            (
                "socket=s,forward-cid=1,forward-listen=a",
                "`a` is not a vsock port",
            ),
            ("socket=s,uds-path=u,reply=x", "guest-port or host-port"),
            ("socket=s,backend=x", "userspace, kernel or auto"),
            (
                "socket=s,backend=kernel,iotlb-mode=translated",
                "off, identity or restricted",
            ),
            (
                "socket=s,uds-path=u,iotlb-mode=off",
                "`backend=kernel` only",
            ),
            (
                "socket=s,uds-path=u,backend=kernel",
                "`uds-path` has no meaning with",
            ),
            (
                "socket=s,backend=kernel,groups=a",
                "`groups` has no meaning with `backend=kernel`:",
            ),
            (
                "socket=s,backend=kernel,max-half-open=abc",
                "`max-half-open` has no meaning with",
            ),
            (
                "socket=s,backend=auto,max-connections=9",
                "`max-connections` has no meaning with `backend=kernel` (backend auto: neither",
            ),
            (
                "socket=s,backend=auto,uds-path=u,iotlb-mode=off",
                "`iotlb-mode` has a meaning with `backend=kernel` only (backend auto: its host",
            ),
            (
                "socket=s,uds-path=u,device=d",
                "`device` has a meaning with `backend=kernel` only",
            ),
        ] {
            let error = build(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
