// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The line that host clients begin with, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crosvm_vsock_fuzz::handshake::run(data));
