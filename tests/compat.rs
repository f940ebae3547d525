// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every cell of guest x kernel x VM x mode against an independent model.
//!
//! The model knows nothing of the shim's code. It knows who writes an address in
//! which sense, what a kernel of each kind does with the bits it is given, and
//! who reads an address in which sense. From that it says what may happen in a
//! cell, and the shim must agree. The same walk renders `docs/compat.md`;
//! `UPDATE_DOCS=1 cargo test --test compat` writes it anew.

use crosvm_vsock::address::{Address, BusAddr, Gpa, Iova};
use crosvm_vsock::compat::{
    negotiate, offer, CompatError, IotlbBit, KernelKind, Mode, Plan, Request, Vm,
};
use crosvm_vsock::features::FeatureSet;

const PLATFORM: u64 = 1 << 33;
const SEPARATE: u64 = 1 << 63;
/// Seqpacket, indirect, event index, version 1, the legacy bits that vhost also
/// offers (24, 26, 27), and one that nobody has ever heard of (50).
const KERNEL_BASE: u64 =
    1 << 1 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 32 | UNKNOWN;
const UNKNOWN: u64 = 1 << 50;
const GUESTS: [(&str, u64); 4] = [
    ("neither", 0),
    ("33", PLATFORM),
    ("63", SEPARATE),
    ("33, 63", PLATFORM | SEPARATE),
];

/// In which sense a number is meant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sense {
    GuestPhysical,
    IoVirtual,
}

/// How much of guest memory the kernel can reach.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Reach {
    WhatIsMapped,
    Window,
    Everything,
}

fn kernel_offers(kind: KernelKind) -> u64 {
    KERNEL_BASE
        | match kind {
            KernelKind::NoIotlb => 0,
            KernelKind::Overloaded => PLATFORM,
            KernelKind::Split | KernelKind::SplitCompat => PLATFORM | SEPARATE,
        }
}

/// Whether a kernel turns its IOTLB on when given `bits`.
fn iotlb_on(kind: KernelKind, bits: u64) -> bool {
    match kind {
        KernelKind::NoIotlb => false,
        KernelKind::Overloaded | KernelKind::SplitCompat => bits & PLATFORM != 0,
        KernelKind::Split => bits & SEPARATE != 0,
    }
}

/// A driver uses the DMA API when it acknowledged it; only a vIOMMU makes the
/// result differ from a physical address.
fn guest_writes(vm: Vm, acked: u64) -> Sense {
    match vm {
        Vm::Viommu if acked & (PLATFORM | SEPARATE) != 0 => Sense::IoVirtual,
        _ => Sense::GuestPhysical,
    }
}

/// What the addressing of a mode takes a driver's number for.
fn mode_reads(mode: Mode) -> Sense {
    match mode {
        Mode::Off | Mode::Identity | Mode::Restricted => Sense::GuestPhysical,
        Mode::Translated => Sense::IoVirtual,
    }
}

fn wished_reach(mode: Mode) -> Reach {
    match mode {
        Mode::Off | Mode::Identity => Reach::Everything,
        Mode::Restricted => Reach::Window,
        Mode::Translated => Reach::WhatIsMapped,
    }
}

struct Cell {
    vm: Vm,
    guest: &'static str,
    acked: u64,
    kind: KernelKind,
    mode: Mode,
    outcome: Result<Plan, CompatError>,
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for vm in Vm::ALL {
        for (guest, knows) in GUESTS {
            for mode in Mode::ALL {
                for kind in KernelKind::ALL {
                    let host = FeatureSet::from_bits(kernel_offers(kind));
                    let offered = offer(vm, IotlbBit::default(), host, FeatureSet::EMPTY).bits();
                    // A driver acknowledges what it knows of what it is offered.
                    let acked = offered & (KERNEL_BASE | knows);
                    let request = Request {
                        vm,
                        acked: FeatureSet::from_bits(acked),
                        mode,
                        iotlb_bit: IotlbBit::default(),
                    };
                    cells.push(Cell {
                        vm,
                        guest,
                        acked,
                        kind,
                        mode,
                        outcome: negotiate(&request, host),
                    });
                }
            }
        }
    }
    cells
}

#[test]
fn every_cell_agrees_with_the_model() {
    let mut working = 0;
    let cells = cells();
    assert_eq!(cells.len(), 3 * 4 * 4 * 4);
    for cell in cells {
        let Cell {
            vm,
            acked,
            kind,
            mode,
            ref outcome,
            guest,
        } = cell;
        let name = format!("{vm:?}, guest knows {guest}, {kind}, {mode}");
        let senses_agree = guest_writes(vm, acked) == mode_reads(mode);
        let has_iotlb = kernel_offers(kind) & (PLATFORM | SEPARATE) != 0;
        let possible = senses_agree && (has_iotlb || mode == Mode::Off);
        assert_eq!(outcome.is_ok(), possible, "{name}: {outcome:?}");

        match outcome {
            Ok(plan) => {
                working += 1;
                let told = plan.features.bits();
                let on = iotlb_on(kind, told);
                assert_eq!(told & !kernel_offers(kind), 0, "{name}: not offered");
                assert_eq!(told & UNKNOWN, 0, "{name}: an unknown bit passed down");
                assert_eq!(
                    told & (1 << 26),
                    0,
                    "{name}: dirty logging was never asked for"
                );
                assert_eq!(
                    on,
                    mode != Mode::Off,
                    "{name}: IOTLB {on} without its service"
                );
                let reach = if on {
                    wished_reach(mode)
                } else {
                    Reach::Everything
                };
                assert!(
                    reach <= wished_reach(mode),
                    "{name}: access widened to {reach:?}"
                );
                // The typed readings say the same: an untranslated address is
                // physical, and it is an IOVA exactly when the IOTLB is on.
                let address = BusAddr(0x1234_5000);
                assert_eq!(
                    plan.gpa(address).map(Gpa::raw),
                    (mode_reads(mode) == Sense::GuestPhysical).then_some(0x1234_5000)
                );
                assert_eq!(plan.iova(address).map(Iova::raw), on.then_some(0x1234_5000));
            }
            Err(error @ CompatError::IotlbUnavailable { .. }) => {
                assert!(
                    senses_agree && kind == KernelKind::NoIotlb,
                    "{name}: {error}"
                );
            }
            Err(error) => assert!(!senses_agree, "{name}: {error}"),
        }
    }
    assert_eq!(
        working, 99,
        "the number of working cells changed: look at docs/compat.md"
    );
}

/// A guest's acknowledgement of bits that stand for nothing here must not reach
/// the kernel, whatever the kernel offers.
#[test]
fn arbitrary_acknowledgements_stay_inside_the_allowlist() {
    for bit in 0..64 {
        for vm in Vm::ALL {
            for mode in Mode::ALL {
                let request = Request {
                    vm,
                    acked: FeatureSet::from_bits(1 << bit | PLATFORM),
                    mode,
                    iotlb_bit: IotlbBit::NONE,
                };
                let all = FeatureSet::from_bits(u64::MAX);
                if let Ok(plan) = negotiate(&request, all) {
                    let known = 1 << 1 | 1 << 28 | 1 << 29 | 1 << 32;
                    let platform = if mode == Mode::Off { 0 } else { PLATFORM };
                    let told = plan.features.bits();
                    assert_eq!(told & !(known | platform), 0, "bit {bit}: {told:#x}");
                }
            }
        }
    }
}

fn verdict(cell: &Cell) -> String {
    match &cell.outcome {
        Ok(plan) => {
            let bits = plan.features.bits() & (PLATFORM | SEPARATE);
            match GUESTS.iter().find(|(_, known)| *known == bits) {
                Some((name, _)) => format!("tells {name}"),
                None => unreachable!("both bits are in GUESTS"),
            }
        }
        Err(CompatError::IotlbUnavailable { .. }) => "no IOTLB".into(),
        Err(CompatError::NothingToTranslate { .. }) => "no vIOMMU".into(),
        Err(CompatError::TranslatorIgnored { .. }) => "guest writes IOVAs".into(),
        Err(CompatError::GuestBypasses) => "guest bypasses".into(),
    }
}

fn render() -> String {
    let mut page = String::from(
        "<!-- Generated by `UPDATE_DOCS=1 cargo test --test compat`; checked by `cargo test`. -->\n\
         # What the kernel is told\n\n\
         Rows: the VM, what its guest acknowledges of the two platform-access bits, and the IOTLB mode that is\n\
         wanted. Columns: how the host kernel reads the bits (found by behaviour). *tells* lists what of bits 33\n\
         and 63 goes down in `VHOST_SET_FEATURES`; any other entry is a refusal, before the kernel is touched:\n\n\
         - *no IOTLB*: the mode needs an IOTLB and the kernel has none;\n\
         - *no vIOMMU*: mode translated, and nobody who could translate;\n\
         - *guest writes IOVAs*: the mode would read them as guest physical addresses;\n\
         - *guest bypasses*: the guest writes guest physical addresses, the mode would translate them.\n\n\
         A plain VM offers neither bit, so its guest acknowledges neither.\n\n\
         | VM | guest acks | mode |",
    );
    for kind in KernelKind::ALL {
        page += &format!(" {kind} |");
    }
    page += "\n|---|---|---|---|---|---|---|\n";
    for row in cells().chunks(KernelKind::ALL.len()) {
        let Cell {
            vm,
            guest,
            mode,
            acked,
            ..
        } = row[0];
        if vm == Vm::Plain && guest != "neither" {
            assert_eq!(
                acked & (PLATFORM | SEPARATE),
                0,
                "a plain VM offers neither bit"
            );
            continue;
        }
        page += &format!("| {vm:?} | {guest} | {mode} |");
        for cell in row {
            page += &format!(" {} |", verdict(cell));
        }
        page += "\n";
    }
    page
}

#[test]
fn the_documented_table_is_the_real_one() {
    // Tests run in the package's root under Cargo, and beside their data under Soong.
    const PATH: &str = "docs/compat.md";
    let page = render();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, &page).expect("docs/compat.md can be written");
    }
    let stored = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        stored == page,
        "docs/compat.md is out of date: run `UPDATE_DOCS=1 cargo test --test compat`"
    );
}
