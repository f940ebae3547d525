// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The module: what crosvm makes of the options of a command line.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use base::{AsRawDescriptor, Event};
use device_virtio_vsock::VirtioVsockModule;
use devices::virtio::VirtioDevice;
use devices::{VirtioDeviceArgs, VirtioDeviceModule};
use hypervisor::{ProtectionType, Vm};
use jail::JailConfig;
use resources::{AddressRange, SystemAllocator, SystemAllocatorConfig};
use vm_memory::GuestMemory;

use crate::rings;

struct NamedVm(GuestMemory);

impl Vm for NamedVm {
    fn get_guest_phys_addr_bits(&self) -> u8 {
        40
    }

    fn get_memory(&self) -> &GuestMemory {
        &self.0
    }
}

fn module(options: &str) -> VirtioVsockModule {
    serde_keyvalue::from_key_values(options).unwrap()
}

fn create(module: &VirtioVsockModule) -> anyhow::Result<Box<dyn VirtioDevice>> {
    let allocator = SystemAllocatorConfig {
        io: None,
        low_mmio: AddressRange { start: 0, end: 1 },
        high_mmio: AddressRange { start: 2, end: 3 },
        platform_mmio: None,
        first_irq: 5,
    };
    module.create(&mut VirtioDeviceArgs {
        vm: &NamedVm(rings::memory()),
        resources: &mut SystemAllocator::new(allocator, None, &[]).unwrap(),
        add_control_tube: &mut |_| panic!("a vsock device has no control tube"),
        protection_type: ProtectionType::Unprotected,
    })
}

fn refused(module: &VirtioVsockModule, words: &[&str]) {
    let Err(error) = create(module) else {
        panic!("there is no such device");
    };
    let text = format!("{error:#}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn crosvms_order_knows_it_as_vsock() {
    assert_eq!(module("cid=3").sort_name(), "vsock");
}

#[test]
fn a_missing_device_says_what_to_do() {
    refused(
        &module("cid=3,device=/nowhere/vhost-vsock"),
        &[
            "/nowhere/vhost-vsock",
            "the kernel's device is /dev/vhost-vsock",
        ],
    );
}

#[test]
fn a_file_that_is_no_vhost_vsock_is_refused() {
    for path in ["/dev/null", "/dev/zero"] {
        let options = format!("cid=3,device={path}");
        refused(&module(&options), &["not a vhost-vsock device"]);
    }
}

#[test]
fn an_inherited_descriptor_that_is_no_vhost_vsock_is_refused() {
    // As an inherited descriptor, an event's stays open over exec.
    let event = Event::new().unwrap();
    let fd = event.as_raw_descriptor();
    let words = [&format!("fd={fd}"), "not a vhost-vsock device"];
    refused(&module(&format!("cid=3,fd={fd}")), &words);
    refused(
        &module(&format!("cid=3,device=/proc/self/fd/{fd}")),
        &["not a vhost-vsock device"],
    );
}

#[test]
fn a_descriptor_that_was_not_inherited_is_refused() {
    let ours = OpenOptions::new().read(true).open("/dev/null").unwrap();
    for fd in [ours.as_raw_fd(), 1 << 20, -1] {
        refused(
            &module(&format!("cid=3,fd={fd}")),
            &[&fd.to_string(), "not an inherited descriptor"],
        );
        refused(
            &module(&format!("cid=3,device=/proc/self/fd/{fd}")),
            &["vsock option device", &fd.to_string()],
        );
    }
}

#[test]
fn crosvms_older_options_are_checked_when_the_device_is_made() {
    refused(&VirtioVsockModule::new(2, None), &["cid", "2"]);
    refused(
        &VirtioVsockModule::new(3, Some("/nowhere".into())),
        &["/nowhere"],
    );
}

#[test]
fn its_jail_has_the_stock_policy() {
    let config = JailConfig {
        pivot_root: "/".into(),
        ..JailConfig::default()
    };
    let jail = module("cid=3").create_jail(&config).unwrap().unwrap();
    assert_eq!(jail.policy.as_deref(), Some("vhost_vsock_device"));
}
