// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has the interface of `aidl/` compiled, where the feature `control` asks for it. Under
//! Soong an `aidl_interface` module does that, and this file is not run.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(soong)");
    #[cfg(feature = "control")]
    interface();
}

#[cfg(feature = "control")]
fn interface() {
    println!("cargo::rerun-if-changed=aidl");
    let compiled = rsbinder_aidl::Builder::new()
        .source("aidl")
        .include_dir("aidl")
        .output("android_system_vsock.rs")
        .generate();
    if let Err(error) = compiled {
        eprintln!("aidl/ does not compile: {error}");
        std::process::exit(1);
    }
}
