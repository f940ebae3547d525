// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machines of this matrix: QEMU's options, and a QEMU that dies with this process.
//!
//! A guest is the same whether this machine runs it or a nested host does: its kernel's
//! console is the first serial port, its agent's the second.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use super::peer::Peer;
use crate::process;
use crate::qemu::{escape, PROGRAM};

/// Memory of a guest.
const GUEST_MIB: u32 = 512;
/// Memory of a host, its guest and the QEMU in its initramfs included.
const HOST_MIB: u32 = 2560;

const PROCESSORS: u32 = 2;
/// Of a nested host and its guest each: with two, QEMU's emulation of SVM fails more often
/// (10.0: the host's kernel finds the stack of a thread that runs the guest overwritten).
const NESTED_PROCESSORS: u32 = 1;

/// Kernel command line of all machines.
const WORDS: &str = "console=ttyS0 quiet panic=-1 oops=panic random.trust_cpu=on";

/// A guest whose socket device is a daemon's.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Its kernel.
    pub vmlinuz: &'a Path,
    /// Its initramfs.
    pub initramfs: &'a Path,
    /// The file of its console.
    pub console: &'a Path,
    /// The character device of its agent, without an id.
    pub control: &'a str,
    /// The daemon's vhost-user socket.
    pub device: &'a Path,
    /// Whether bit 33 is offered to it (`iommu_platform`).
    pub platform_access: bool,
    /// Whether a vIOMMU of QEMU's translates what the guest writes for this device.
    pub viommu: bool,
    /// Whether its host is nested.
    pub nested: bool,
}

impl Guest<'_> {
    /// QEMU's options, those of the accelerator aside.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![
            "-M".to_owned(),
            "q35,memory-backend=memory".to_owned(),
            // The daemon maps it, too.
            "-object".to_owned(),
            format!("memory-backend-memfd,id=memory,size={GUEST_MIB}M,share=on"),
        ];
        let words = if self.viommu { "intel_iommu=on" } else { "" };
        let (kernel, initramfs) = (self.vmlinuz, self.initramfs);
        let processors = if self.nested {
            NESTED_PROCESSORS
        } else {
            PROCESSORS
        };
        options.extend(machine(GUEST_MIB, processors, kernel, initramfs, words));
        if self.viommu {
            // Before the devices that it translates for. Interrupts are not its task.
            let iommu = "intel-iommu,intremap=off,device-iotlb=on";
            options.extend(["-device", iommu].map(str::to_owned));
        }
        options.extend(ports(self.console, &[self.control]));
        let platform = match (self.viommu, self.platform_access) {
            (true, _) => "on,ats=on",
            (false, true) => "on",
            (false, false) => "off",
        };
        options.extend([
            "-chardev".to_owned(),
            // Without `reconnect-ms`: QEMU 10's vhost-user-vsock does not wait for such a
            // connection, and does not start.
            format!("socket,id=vsock,path={}", escape(self.device)),
            "-device".to_owned(),
            format!(
                "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on,iommu_platform={platform}"
            ),
        ]);
        options
    }
}

/// A machine that is a host itself: it can run KVM, or what emulation makes of it.
#[derive(Clone, Copy, Debug)]
pub struct NestedHost<'a> {
    /// Its kernel.
    pub vmlinuz: &'a Path,
    /// Its initramfs.
    pub initramfs: &'a Path,
    /// The file of its console.
    pub console: &'a Path,
    /// Where the agent of its guest can be reached: a Unix socket of this machine.
    pub guest_control: &'a Path,
    /// The CID of its guest.
    pub cid: u32,
}

impl NestedHost<'_> {
    /// QEMU's options, those of the accelerator aside.
    pub fn options(&self) -> Vec<String> {
        let words = format!("agent.cid={}", self.cid);
        let mut options = vec!["-M".to_owned(), "q35".to_owned()];
        let (kernel, initramfs) = (self.vmlinuz, self.initramfs);
        options.extend(machine(
            HOST_MIB,
            NESTED_PROCESSORS,
            kernel,
            initramfs,
            &words,
        ));
        let control = format!(
            "socket,path={},server=on,wait=off",
            escape(self.guest_control)
        );
        options.extend(ports(self.console, &["stdio,signal=off", &control]));
        options
    }
}

fn machine(
    mib: u32,
    processors: u32,
    vmlinuz: &Path,
    initramfs: &Path,
    words: &str,
) -> Vec<String> {
    let mut options: Vec<String> = ["-nodefaults", "-display", "none"]
        .map(str::to_owned)
        .into();
    options.extend([
        "-smp".to_owned(),
        processors.to_string(),
        "-no-user-config".to_owned(),
        "-m".to_owned(),
        mib.to_string(),
        "-kernel".to_owned(),
        vmlinuz.display().to_string(),
        "-initrd".to_owned(),
        initramfs.display().to_string(),
        "-append".to_owned(),
        format!("{WORDS} {words}"),
    ]);
    options
}

/// The console, and a serial port for each further character device.
fn ports(console: &Path, others: &[&str]) -> Vec<String> {
    let console = format!("file,path={}", escape(console));
    let mut options = Vec::new();
    for (number, device) in [console.as_str()].iter().chain(others).enumerate() {
        let (kind, rest) = device.split_once(',').unwrap_or((device, "signal=on"));
        options.extend([
            "-chardev".to_owned(),
            format!("{kind},id=port{number},{rest}"),
            "-serial".to_owned(),
            format!("chardev:port{number}"),
        ]);
    }
    options
}

/// A QEMU of this machine; it ends when dropped.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
}

impl Qemu {
    /// Starts QEMU. The agent behind its standard input and output is returned with it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, options: &[String], said: &Path) -> Result<(Self, Peer)> {
        let said =
            File::create(said).with_context(|| format!("cannot write {}", said.display()))?;
        let mut child = process::bound(PROGRAM)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .context("cannot start QEMU through setpriv (util-linux)")?;
        let write = child.stdin.take().context("QEMU has no standard input")?;
        let read = child.stdout.take().context("QEMU has no standard output")?;
        let peer = Peer::behind(name, read, write);
        Ok((Self { child }, peer))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
