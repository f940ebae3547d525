// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each kind of kernel is told by what it does, whatever its bits are called.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crosvm_vsock::compat::{IotlbBit, KernelKind, Mode};
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::probe::{probe, Report};
use crosvm_vsock::kernel::{Error, Vhost};
use model_kernel::{name, Call, ModelKernel};

fn ask(model: impl Fn() -> ModelKernel, bit: IotlbBit) -> Report {
    let open = || Ok(Arc::new(model()) as Arc<dyn Vhost>);
    probe(open, bit).unwrap()
}

fn bit(number: u8) -> IotlbBit {
    IotlbBit::new(number).unwrap()
}

#[test]
fn each_kind_is_found_by_what_it_does() {
    for kind in KernelKind::ALL {
        for sticky in [false, true] {
            let model = || match sticky {
                true => ModelKernel::new(kind).sticky(),
                false => ModelKernel::new(kind),
            };
            let report = ask(model, IotlbBit::default());
            assert_eq!(report.kind, kind);
            let alone = (report.platform_alone, report.separate_alone);
            let expected = match kind {
                KernelKind::NoIotlb => (false, false),
                KernelKind::Overloaded | KernelKind::SplitCompat => (true, false),
                KernelKind::Split => (false, true),
            };
            assert_eq!(alone, expected, "{kind}");
            let backend = if kind == KernelKind::NoIotlb { 0 } else { 2 };
            assert_eq!(report.backend_features, backend, "{kind}");
        }
    }
}

#[test]
fn an_alias_is_of_kind_split_compat_too() {
    let model = || ModelKernel::new(KernelKind::SplitCompat).alias();
    let report = ask(model, IotlbBit::default());
    assert_eq!(report.kind, KernelKind::SplitCompat);
    assert!(report.platform_alone && report.separate_alone);
}

#[test]
fn another_separate_bit_is_found_where_it_is_looked_for() {
    for number in [3, 31, 50, 62] {
        let split = || ModelKernel::new(KernelKind::Split).separate_bit(number);
        assert_eq!(ask(split, bit(number)).kind, KernelKind::Split);
        // Elsewhere it is a bit that nobody knows: no IOTLB can be had by it.
        let missed = ask(split, IotlbBit::default());
        assert_eq!(missed.kind, KernelKind::NoIotlb);
        assert!(missed.mode(Mode::Identity).is_err());
        assert!(missed.mode(Mode::Off).is_ok());

        let compat = || ModelKernel::new(KernelKind::SplitCompat).separate_bit(number);
        assert_eq!(ask(compat, bit(number)).kind, KernelKind::SplitCompat);
        assert_eq!(
            ask(compat, IotlbBit::default()).kind,
            KernelKind::Overloaded
        );
    }
}

#[test]
fn without_a_separate_bit_only_the_old_one_counts() {
    for kind in KernelKind::ALL {
        let report = ask(|| ModelKernel::new(kind), IotlbBit::NONE);
        let expected = match kind {
            KernelKind::NoIotlb | KernelKind::Split => KernelKind::NoIotlb,
            KernelKind::Overloaded | KernelKind::SplitCompat => KernelKind::Overloaded,
        };
        assert_eq!(report.kind, expected, "{kind}");
        assert!(!report.separate_alone);
    }
}

/// A bit that is offered but does something else is not the IOTLB's.
#[test]
fn an_offered_bit_is_not_believed_before_it_is_tried() {
    let offering = FeatureSet::from_bits(1 << 63);
    let model = || ModelKernel::new(KernelKind::NoIotlb).offering(offering);
    let report = ask(model, IotlbBit::default());
    assert_eq!(report.kind, KernelKind::NoIotlb);
    assert!(report.mode(Mode::Restricted).is_err());
}

#[test]
fn each_mode_is_told_what_the_kernel_would_be_told() {
    for kind in KernelKind::ALL {
        let report = ask(|| ModelKernel::new(kind), IotlbBit::default());
        for mode in Mode::ALL {
            let possible = mode == Mode::Off || kind != KernelKind::NoIotlb;
            assert_eq!(report.mode(mode).is_ok(), possible, "{kind} {mode}");
        }
    }
}

#[test]
fn probing_leaves_no_trace_on_the_host() {
    let opened = AtomicUsize::new(0);
    let kernels = std::sync::Mutex::new(Vec::new());
    let open = || {
        opened.fetch_add(1, Ordering::Relaxed);
        let kernel = Arc::new(ModelKernel::new(KernelKind::Split));
        kernels.lock().unwrap().push(kernel.clone());
        Ok(kernel as Arc<dyn Vhost>)
    };
    probe(open, IotlbBit::default()).unwrap();
    assert!(opened.load(Ordering::Relaxed) > 1);
    for kernel in kernels.into_inner().unwrap() {
        assert_eq!(kernel.cid(), None);
        assert!(!kernel.is_running());
        assert_eq!(kernel.violations(), [""; 0]);
        let features = kernel
            .calls()
            .iter()
            .filter(|call| matches!(call, Call::SetFeatures(_)))
            .count();
        assert!(features <= 1, "one question for each descriptor");
    }
}

#[test]
fn a_refusal_says_which_call_was_refused() {
    let refused = |call: &'static str, errno| {
        let open = || {
            let kernel = ModelKernel::new(KernelKind::Overloaded);
            kernel.fail_always(call, errno);
            Ok(Arc::new(kernel) as Arc<dyn Vhost>)
        };
        probe(open, IotlbBit::default()).unwrap_err()
    };
    let other = refused(name::GET_FEATURES, libc::ENOTTY);
    assert!(matches!(other, Error::NotVhostVsock(_)), "{other}");
    let owner = refused(name::SET_OWNER, libc::ENOMEM).to_string();
    assert!(owner.contains("VHOST_SET_OWNER"), "{owner}");
    let features = refused(name::SET_FEATURES, libc::EFAULT).to_string();
    assert!(features.contains("VHOST_SET_FEATURES"), "{features}");
}
