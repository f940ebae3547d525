// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! IOTLB messages and the mirror of the kernel's table, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crosvm_vsock_fuzz::iotlb::run(data));
