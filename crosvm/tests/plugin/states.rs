// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! crosvm's state diagram: every call in every state.

use std::collections::BTreeMap;
use std::sync::Arc;

use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::VhostVsock;
use device_virtio_vsock::snapshot::Snapshot;
use device_virtio_vsock::{Config, Vsock};
use devices::virtio::{Queue, VirtioDevice};
use model_kernel::ModelKernel;
use snapshot::AnySnapshot;

use crate::board::{config, device, Board, ACKED};

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    New,
    Active,
    Inactive,
    AsleepNew,
    AsleepActive,
    AsleepInactive,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Activate,
    Reset,
    Sleep,
    Wake,
    WakeWithQueues,
    Snapshot,
    RestoreInactive,
    RestoreActive,
}

use Call::*;
use State::*;

const STATES: [State; 6] = [
    New,
    Active,
    Inactive,
    AsleepNew,
    AsleepActive,
    AsleepInactive,
];

const CALLS: [Call; 8] = [
    Activate,
    Reset,
    Sleep,
    Wake,
    WakeWithQueues,
    Snapshot,
    RestoreInactive,
    RestoreActive,
];

/// Where a call leads; a call that is not here is refused. A reset where nothing
/// is active and a snapshot change nothing.
const ARROWS: [(State, Call, State); 18] = [
    (New, Activate, Active),
    (New, Reset, New),
    (New, Sleep, AsleepNew),
    (Active, Reset, Inactive),
    (Active, Sleep, AsleepActive),
    (Inactive, Activate, Active),
    (Inactive, Reset, Inactive),
    (Inactive, Sleep, AsleepInactive),
    (AsleepNew, Wake, New),
    (AsleepNew, Snapshot, AsleepNew),
    (AsleepNew, RestoreInactive, AsleepInactive),
    (AsleepNew, RestoreActive, AsleepActive),
    (AsleepInactive, Wake, Inactive),
    (AsleepInactive, Snapshot, AsleepInactive),
    (AsleepInactive, RestoreInactive, AsleepInactive),
    (AsleepInactive, RestoreActive, AsleepActive),
    (AsleepActive, WakeWithQueues, Active),
    (AsleepActive, Snapshot, AsleepActive),
];

struct Bench {
    board: Board,
    kernel: Arc<ModelKernel>,
    config: Config,
    device: Vsock,
    queues: BTreeMap<usize, Queue>,
}

impl Bench {
    fn new(state: State) -> Self {
        let kernel = Arc::new(ModelKernel::new(KernelKind::Overloaded));
        let config = config();
        let mut bench = Self {
            board: Board::new(),
            device: device(&kernel, config.clone()),
            config,
            kernel,
            queues: BTreeMap::new(),
        };
        bench.device.ack_features(ACKED.bits());
        if matches!(state, Active | AsleepActive | Inactive | AsleepInactive) {
            bench.call(Activate).unwrap();
        }
        if matches!(state, Inactive | AsleepInactive) {
            bench.call(Reset).unwrap();
            bench.device.ack_features(ACKED.bits());
        }
        if matches!(state, AsleepNew | AsleepActive | AsleepInactive) {
            bench.call(Sleep).unwrap();
        }
        bench
    }

    fn call(&mut self, call: Call) -> anyhow::Result<()> {
        let restored = match call {
            RestoreActive => self.snapshot(Some([0, 0])),
            _ => self.snapshot(None),
        };
        let device = &mut self.device;
        match call {
            Activate => self.board.activate(device, self.board.queues()),
            Reset => device.reset(),
            Sleep => {
                if let Some(queues) = device.virtio_sleep()? {
                    assert_eq!(queues.len(), 3);
                    self.queues = queues;
                }
                Ok(())
            }
            Wake => device.virtio_wake(None),
            WakeWithQueues => {
                let queues = std::mem::take(&mut self.queues);
                let queues = match queues.is_empty() {
                    true => self.board.queues(),
                    false => queues,
                };
                self.board.wake(device, queues)
            }
            Snapshot => device.virtio_snapshot().map(drop),
            RestoreInactive | RestoreActive => device.virtio_restore(restored),
        }
    }

    fn snapshot(&self, vring_bases: Option<[u16; 2]>) -> AnySnapshot {
        AnySnapshot::to_any(Snapshot {
            version: 1,
            cid: self.config.cid.raw(),
            offered: self.device.features(),
            acked: ACKED.bits(),
            queues: 3,
            vring_bases,
        })
        .unwrap()
    }

    /// The state by what the device says: of itself when it refuses, and in its
    /// snapshot.
    fn state(&mut self) -> State {
        let refused = self.device.virtio_restore(AnySnapshot::to_any(()).unwrap());
        let text = format!("{:#}", refused.unwrap_err());
        let snapshot = self.device.virtio_snapshot();
        let snapshot = snapshot.map(|any| AnySnapshot::from_any::<Snapshot>(any).unwrap());
        match snapshot {
            Err(_) if text.ends_with("the device is new") => New,
            Err(_) if text.ends_with("the device is active") => Active,
            Err(_) if text.ends_with("the device is inactive") => Inactive,
            Err(_) => panic!("{text}"),
            Ok(snapshot) if snapshot.vring_bases.is_some() => {
                assert!(text.ends_with("asleep, and was active"), "{text}");
                AsleepActive
            }
            // One that wakes as new has said so at a call that it refuses.
            Ok(_) => {
                let refused = format!("{:#}", self.device.reset().unwrap_err());
                match refused.ends_with("and was new") {
                    true => AsleepNew,
                    false => AsleepInactive,
                }
            }
        }
    }

    /// Goes the shortest way to a device that works, with these features.
    fn assert_goes_on(&mut self, acked: FeatureSet) {
        match self.state() {
            New | Inactive => self.call(Activate).unwrap(),
            Active => {}
            AsleepNew | AsleepInactive => {
                self.call(Wake).unwrap();
                self.call(Activate).unwrap();
            }
            AsleepActive => self.call(WakeWithQueues).unwrap(),
        }
        self.board.assert_runs(&self.kernel);
        assert_eq!(self.kernel.acked(), acked);
    }
}

#[test]
fn every_call_in_every_state_leads_where_the_diagram_says_or_changes_nothing() {
    for state in STATES {
        for call in CALLS {
            let mut bench = Bench::new(state);
            assert_eq!(bench.state(), state);
            let arrow = ARROWS
                .iter()
                .find(|(from, by, _)| (*from, *by) == (state, call));
            let ran = bench.kernel.is_running();
            bench.kernel.forget_calls();
            let result = bench.call(call);
            let Some((_, _, to)) = arrow else {
                let text = result
                    .expect_err(&format!("{call:?} in {state:?}"))
                    .to_string();
                assert!(text.contains("is refused"), "{text}");
                assert_eq!(bench.kernel.calls(), [], "{call:?} in {state:?}");
                assert_eq!(bench.kernel.is_running(), ran);
                assert_eq!(bench.state(), state, "{call:?}");
                bench.assert_goes_on(ACKED);
                continue;
            };
            result.unwrap_or_else(|error| panic!("{call:?} in {state:?}: {error:#}"));
            assert_eq!(bench.state(), *to, "{call:?} in {state:?}");
            // A reset forgets what was acknowledged; nothing else does.
            bench.assert_goes_on(match call {
                Reset => FeatureSet::EMPTY,
                _ => ACKED,
            });
        }
    }
}

#[test]
fn a_device_without_an_owner_says_so_and_works_once_it_has_one() {
    let kernel = Arc::new(ModelKernel::new(KernelKind::Overloaded));
    let vhost = VhostVsock::with_kernel(kernel.clone()).unwrap();
    let mut device = Vsock::new(vhost, config()).unwrap();
    let board = Board::new();
    for _ in 0..2 {
        let refused = board.activate(&mut device, board.queues()).unwrap_err();
        assert!(refused.to_string().contains("not owned"), "{refused}");
    }
    device.on_device_sandboxed();
    board.assert_activates(&kernel, &mut device);
}

#[test]
fn a_life_of_many_rounds() {
    let mut bench = Bench::new(New);
    for _ in 0..3 {
        bench.device.ack_features(ACKED.bits());
        for call in [
            Activate,
            Sleep,
            WakeWithQueues,
            Sleep,
            Snapshot,
            WakeWithQueues,
        ] {
            bench.call(call).unwrap();
            if bench.state() == Active {
                bench.board.assert_runs(&bench.kernel);
            }
        }
        for call in [Reset, Sleep, Wake] {
            bench.call(call).unwrap();
            assert!(bench.kernel.is_quiet());
        }
    }
}
