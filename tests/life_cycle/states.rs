// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every state and every call: what leads where, and what is refused.

use crosvm_vsock::compat::{KernelKind, Mode};
use crosvm_vsock::kernel::{Addressing, Error};
use model_kernel::{name, Bench, ModelKernel};

use crate::overloaded;

#[test]
fn a_new_device_can_only_be_owned() {
    let mut bench = Bench::unowned(ModelKernel::new(KernelKind::Overloaded));
    for _ in 0..2 {
        let activate = bench.activate(Addressing::Off).unwrap_err().to_string();
        assert!(activate.contains("activate is refused"), "{activate}");
        assert!(activate.contains("call own() first"), "{activate}");
        let stop = bench.device.stop().unwrap_err().to_string();
        assert!(stop.contains("stop is refused"), "{stop}");
        bench.device.reset().unwrap();
        assert!(!bench.device.is_running());
    }
    bench.device.own().unwrap();
    drop(bench.activate(Addressing::Off).unwrap());
    assert!(bench.device.is_running());
}

#[test]
fn an_idle_device_can_be_owned_again_reset_and_activated_but_not_stopped() {
    let mut bench = overloaded();
    bench.device.own().unwrap();
    bench.device.reset().unwrap();
    let stop = bench.device.stop().unwrap_err().to_string();
    assert!(stop.contains("the device is idle"), "{stop}");
    assert!(!bench.device.is_running());
    drop(bench.activate(Addressing::Off).unwrap());
}

#[test]
fn a_running_device_can_be_owned_again_stopped_and_reset_but_not_activated() {
    let mut bench = overloaded();
    let mut monitor = bench.activate(Addressing::Identity).unwrap();
    let again = bench.activate(Addressing::Off).unwrap_err().to_string();
    assert!(again.contains("the device is running"), "{again}");
    bench.device.own().unwrap();
    assert!(bench.device.is_running() && bench.kernel.is_running());
    bench.assert_flows(&mut monitor, Mode::Identity);

    bench.device.stop().unwrap();
    assert!(!bench.device.is_running() && bench.kernel.is_cut_off());
    assert!(bench.device.iotlb().is_none());
    drop(bench.activate(Addressing::Identity).unwrap());
    bench.device.reset().unwrap();
    assert!(!bench.device.is_running() && bench.kernel.is_quiet());
}

#[test]
fn the_iotlb_service_is_there_exactly_while_a_mode_that_has_one_runs() {
    let mut bench = overloaded();
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        assert!(bench.device.iotlb().is_none());
        let monitor = bench.activate(addressing).unwrap();
        assert_eq!(bench.device.iotlb().is_some(), mode.wants_iotlb());
        let watched = if mode.wants_iotlb() { 3 } else { 2 };
        assert_eq!(monitor.descriptors().len(), watched, "{mode}");
        bench.device.stop().unwrap();
    }
}

#[test]
fn a_dropped_device_runs_no_more_while_its_monitor_lingers() {
    let mut bench = overloaded();
    let kernel = bench.kernel.clone();
    let monitor = bench.activate(Addressing::Identity).unwrap();
    assert!(kernel.is_running());
    drop(bench);
    assert!(!kernel.is_running());
    drop(monitor);
}

#[test]
fn a_descriptor_of_another_process_is_refused() {
    let mut bench = Bench::unowned(ModelKernel::new(KernelKind::Overloaded).owned_elsewhere());
    let error = bench.device.own().unwrap_err();
    assert!(matches!(error, Error::OwnedElsewhere), "{error}");
    assert!(error.to_string().contains("another process"), "{error}");
    assert!(bench.activate(Addressing::Off).is_err());
}

#[test]
fn a_failed_own_can_be_repeated() {
    let mut bench = Bench::unowned(ModelKernel::new(KernelKind::Overloaded));
    bench.kernel.fail(name::SET_OWNER, 0, libc::ENOMEM);
    let error = bench.device.own().unwrap_err().to_string();
    assert!(error.contains("VHOST_SET_OWNER"), "{error}");
    assert!(error.contains("out of memory"), "{error}");
    assert!(bench.activate(Addressing::Off).is_err());
    bench.device.own().unwrap();
    drop(bench.activate(Addressing::Off).unwrap());
}
