// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls that fail half-way: what is left afterwards, and that all of it can be repeated.

use crosvm_vsock::address::GuestCid;
use crosvm_vsock::compat::{KernelKind, Mode};
use crosvm_vsock::kernel::{Activation, Addressing, Error};
use model_kernel::{name, Bench, Call, Host, ModelKernel};

use crate::overloaded;

/// One call fails, whichever: the activation fails, or it did not need the call.
/// Then nothing runs, nothing is bound, and the next activation works.
#[test]
fn an_activation_that_fails_at_any_call_can_be_repeated() {
    for (kernel, sticky) in [("6.1", true), ("6.12", false)] {
        let model = || match sticky {
            true => ModelKernel::new(KernelKind::Overloaded).sticky(),
            false => ModelKernel::new(KernelKind::Overloaded),
        };
        for at in 0..4 {
            for failing in 0.. {
                // After another mode, so that a sticky IOTLB is on already.
                let mut bench = Bench::new(model());
                drop(bench.activate(Addressing::Identity).unwrap());
                bench.device.reset().unwrap();
                bench.kernel.forget_calls();

                let addressing = bench.addressings()[at].clone();
                let mode = addressing.mode();
                bench.kernel.fail_any(failing, libc::ENOMEM);
                let result = bench.activate(addressing.clone());
                if bench.kernel.has_faults() {
                    assert!(failing > 15, "{kernel} {mode}: {failing} calls in all");
                    break;
                }
                let failed = bench.kernel.calls()[failing].clone();
                let when = format!("{kernel} {mode}: {failed:?} failed");
                match result {
                    Ok(_) => {
                        // Only the question whether the IOTLB stayed on may fail.
                        let asked = mode == Mode::Off && failed.name() == name::WRITE;
                        assert!(asked, "{when}, and nobody noticed");
                        bench.device.reset().unwrap();
                    }
                    Err(error) => {
                        let text = error.to_string();
                        let named = text.contains(failed.name()) || text.contains("IOTLB");
                        assert!(named, "{when}: {text}");
                    }
                }
                assert!(!bench.device.is_running(), "{when}");
                assert!(bench.kernel.is_quiet(), "{when}");

                let mut monitor = bench
                    .activate(addressing)
                    .unwrap_or_else(|error| panic!("{when}, then {error}"));
                bench.assert_flows(&mut monitor, mode);
            }
        }
    }
}

#[test]
fn a_start_that_cannot_even_be_undone_can_be_repeated() {
    let mut bench = overloaded();
    for call in [
        name::SET_RUNNING,
        name::SET_VRING_KICK,
        name::SET_VRING_ERR,
        name::WRITE,
    ] {
        bench.kernel.fail_always(call, libc::EFAULT);
        bench.activate(Addressing::Identity).unwrap_err();
        assert!(!bench.device.is_running(), "{call}");
        bench.kernel.heal();
        let mut monitor = bench.activate(Addressing::Identity).unwrap();
        bench.assert_flows(&mut monitor, Mode::Identity);
        bench.device.stop().unwrap();
    }
}

/// One call fails, whichever: then the queues are stopped for good, or the call
/// did not matter and the device goes on.
#[test]
fn a_stop_that_fails_at_any_call_leaves_no_queue_on_guest_memory() {
    for at in 0..4 {
        for failing in 0.. {
            let mut bench = overloaded();
            let addressing = bench.addressings()[at].clone();
            let mode = addressing.mode();
            let mut monitor = bench.activate(addressing.clone()).unwrap();
            bench.assert_flows(&mut monitor, mode);
            bench.kernel.forget_calls();
            bench.kernel.fail_any(failing, libc::EFAULT);
            let result = bench.device.stop();
            if bench.kernel.has_faults() {
                assert!(failing > 3, "{mode}: {failing} calls in all");
                break;
            }
            let failed = bench.kernel.calls()[failing].clone();
            let when = format!("{mode}: {failed:?} failed");
            assert!(!bench.device.is_running(), "{when}");
            match result {
                Ok(bases) => {
                    let unbound = matches!(
                        failed,
                        Call::SetVringKick(..) | Call::SetVringCall(..) | Call::SetVringErr(..)
                    );
                    assert!(unbound, "{when}, and nobody noticed");
                    assert_eq!(bases, [1, 1], "{when}");
                }
                Err(_) => assert!(bench.kernel.is_quiet(), "{when}"),
            }
            let mut monitor = bench.activate(addressing).unwrap();
            bench.assert_flows(&mut monitor, mode);
        }
    }
}

#[test]
fn a_refused_start_says_what_the_errno_means_here() {
    let mut bench = overloaded();
    let mut text = |addressing: Addressing| {
        bench.kernel.fail(name::SET_RUNNING, 0, libc::EFAULT);
        bench.activate(addressing).unwrap_err().to_string()
    };
    let on = text(Addressing::Identity);
    assert!(
        on.contains("the IOTLB is on and the used ring is not mapped"),
        "{on}"
    );
    let off = text(Addressing::Off);
    assert!(
        off.contains("VHOST_VSOCK_SET_RUNNING") && off.contains("a used ring"),
        "{off}"
    );
    bench.kernel.fail(name::SET_MEM_TABLE, 0, libc::E2BIG);
    let regions = bench.activate(Addressing::Off).unwrap_err().to_string();
    assert!(regions.contains("max_mem_regions"), "{regions}");
}

#[test]
fn a_cid_in_use_is_refused_by_number_and_free_again_afterwards() {
    let host = Host::default();
    let model = || ModelKernel::new(KernelKind::Overloaded).on(&host);
    let (mut first, mut second) = (Bench::new(model()), Bench::new(model()));
    let mut monitor = first.activate(Addressing::Identity).unwrap();
    let error = second.activate(Addressing::Identity).unwrap_err();
    assert!(matches!(error, Error::CidInUse(_)), "{error}");
    assert!(error.to_string().contains("CID 42 is in use"), "{error}");
    assert!(second.kernel.is_quiet());
    first.assert_flows(&mut monitor, Mode::Identity);

    // Two devices side by side, and the number free again.
    let other = |activation: &mut Activation<'_>| activation.cid = GuestCid::new(43).unwrap();
    let mut beside = second.activate_with(Addressing::Off, other).unwrap();
    second.assert_flows(&mut beside, Mode::Off);
    first.assert_flows(&mut monitor, Mode::Identity);
    second.device.stop().unwrap();
    drop((first, monitor));
    drop(second.activate(Addressing::Identity).unwrap());
    assert_eq!(second.kernel.cid(), Some(42));
}
