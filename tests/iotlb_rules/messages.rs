// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rule 10: the two versions of messages, and those that make no sense.

use std::os::fd::AsFd;
use std::time::Duration;

use crosvm_vsock::address::Address;
use crosvm_vsock::compat::Mode;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::kernel::{Access, Addressing, Failure, MessageFormat, QueueIndex};
use crosvm_vsock::memory::PAGE;
use model_kernel::{name, Call, Message};

use crate::{overloaded, page_table, readable, virtual_page};

#[test]
fn rule_10_messages_are_v1_unless_asked_for_and_then_the_kernel_is_told() {
    for (format, version) in [(MessageFormat::V1, 1), (MessageFormat::V2, 2)] {
        let mut bench = overloaded();
        let table = page_table(&bench);
        bench.kernel.forget_calls();
        let mut monitor = bench
            .activate_with(Addressing::Translated(table), |activation| {
                activation.messages = format;
            })
            .unwrap();
        // A miss comes in the same version, and is understood.
        bench.assert_flows(&mut monitor, Mode::Translated);
        let messages = bench.kernel.messages();
        assert!(messages.iter().all(|message| message.version == version));
        let told = bench
            .kernel
            .calls()
            .contains(&Call::SetBackendFeatures(1 << 1));
        assert_eq!(told, format == MessageFormat::V2);
    }
    assert_eq!(MessageFormat::default(), MessageFormat::V1);
}

#[test]
fn rule_10_in_a_jail_v1_needs_neither_backend_feature_call() {
    let mut bench = overloaded();
    for call in [name::GET_BACKEND_FEATURES, name::SET_BACKEND_FEATURES] {
        bench.kernel.fail_always(call, libc::EPERM);
    }
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        let mut monitor = bench.activate(addressing).unwrap();
        bench.assert_flows(&mut monitor, mode);
        bench.device.stop().unwrap();
    }
    let table = Addressing::Translated(page_table(&bench));
    let refused = bench.activate_with(table, |activation| {
        activation.messages = MessageFormat::V2;
    });
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("VHOST_SET_BACKEND_FEATURES"), "{text}");
}

#[test]
fn rule_10_short_and_unknown_messages_are_counted_and_ignored() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    let good = Message {
        version: 1,
        iova: virtual_page(100).raw(),
        size: 0,
        uaddr: 0,
        perm: 1,
        kind: Message::MISS,
    };
    let bad = [
        vec![],
        good.encode()[..71].to_vec(),
        Message { version: 3, ..good }.encode().to_vec(),
        Message { kind: 7, ..good }.encode().to_vec(),
        Message {
            kind: Message::UPDATE,
            ..good
        }
        .encode()
        .to_vec(),
        Message { perm: 0, ..good }.encode().to_vec(),
    ];
    bench.kernel.forget_calls();
    for message in &bad {
        bench.kernel.say(message);
    }
    assert!(monitor.handle().is_empty());
    let stats = bench.device.iotlb().unwrap().stats();
    assert_eq!(stats.malformed, bad.len() as u64);
    assert_eq!(stats.misses, 0);
    assert_eq!(bench.kernel.messages(), []);
    assert!(!readable(&bench));
    bench.assert_flows(&mut monitor, Mode::Translated);
}

#[test]
fn rule_10_a_broken_descriptor_is_reported_once_and_not_polled_busily() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let monitor = bench.activate(Addressing::Translated(table)).unwrap();
    bench.kernel.fail_always(name::READ, libc::EBADFD);
    bench
        .kernel
        .access(QueueIndex::Tx, virtual_page(100), PAGE, Access::Read);
    let stop = EventFd::new().unwrap();
    let stopped = stop.try_clone().unwrap();
    let (report, reports) = std::sync::mpsc::channel();
    let serving = std::thread::spawn(move || {
        monitor.run(stopped.as_fd(), |failure| report.send(failure).unwrap())
    });
    let first = reports.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(matches!(first, Failure::Service(_)), "{first}");
    bench.assert_halted(Mode::Translated);
    // The miss is still there to be read: a loop that polls for it never sleeps.
    std::thread::sleep(Duration::from_millis(50));
    stop.signal().unwrap();
    serving.join().unwrap().unwrap();
    assert_eq!(reports.try_iter().count(), 0);

    bench.kernel.heal();
    bench.device.reset().unwrap();
    let table = page_table(&bench);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    bench.assert_flows(&mut monitor, Mode::Translated);
}
