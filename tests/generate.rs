// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What packagers take from `crosvm-vsock generate`: the man page and completions.

use std::fs;
use std::process::Command;

#[test]
fn man_page_and_completions_name_commands_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_crosvm-vsock"));
    let status = command.arg("generate").arg(dir.path()).status().unwrap();
    assert!(status.success());
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    for name in [
        "crosvm-vsock.1",
        "crosvm-vsock.bash",
        "_crosvm-vsock",
        "crosvm-vsock.fish",
    ] {
        // The man page writes dashes as `\-`.
        let text = read(name).replace('\\', "");
        for expected in ["uds-path", "max-connections", "log-level", "probe"] {
            assert!(text.contains(expected), "{name} lacks {expected}");
        }
    }
    assert!(read("crosvm-vsock-probe.1").contains("probe"));
}
