// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets and descriptor chains, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crosvm_vsock_fuzz::packets::run(data));
