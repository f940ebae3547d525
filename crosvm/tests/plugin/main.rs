// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The plugin on a model of the kernel, driven by crosvm's calls alone: the stand-in
//! of its transport, or the trait itself where a transport would not go.

mod board;
mod failures;
mod features;
mod hostile_guest;
mod interrupts;
mod jail;
mod logs;
mod module;
mod restore;
mod rings;
mod states;
mod vm;
