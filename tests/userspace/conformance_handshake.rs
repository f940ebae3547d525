// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections come about, in both directions, or are refused at once.

use crate::harness::Vm;

#[test]
fn both_directions_connect() {
    let vm = Vm::start();
    vm.assert_alive();
    vm.assert_clean();
}
