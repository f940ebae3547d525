// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Being the first process of a machine: mounts, kernel modules, the way out.
//!
//! The initramfs holds one program as `/init` and the kernel modules it is to load.
//!
//! `unsafe` because init talks to the kernel by system calls that the standard library
//! has no names for: `mount`, `finit_module`, `reboot`, `kill`, and those of a terminal.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result};

use crate::protocol::About;

/// Paths of the modules to load, one a line, in load order. After a `-` stands one that
/// the machine can do without.
const MODULE_LIST: &str = "/modules.list";
/// The virtio ID of a socket device (VIRTIO 1.2, 5), as sysfs writes it.
const VSOCK_DEVICE: &str = "0x0013";

/// Mounts what programs expect: `/proc`, `/sys`, `/dev`, `/tmp`.
///
/// # Errors
/// When a mount fails.
pub fn mount_all() -> Result<()> {
    mount(c"proc", c"/proc")?;
    mount(c"sysfs", c"/sys")?;
    mount(c"devtmpfs", c"/dev")?;
    mount(c"tmpfs", c"/tmp")
}

fn mount(kind: &CStr, target: &CStr) -> Result<()> {
    // SAFETY: all three strings end in NUL and outlive the call; these file
    // systems take no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // CONFIG_DEVTMPFS_MOUNT kernels have /dev already.
    if error.raw_os_error() == Some(libc::EBUSY) {
        return Ok(());
    }
    Err(error).with_context(|| format!("cannot mount {kind:?} on {target:?}"))
}

/// Loads the modules of the initramfs.
///
/// # Errors
/// When the kernel refuses one that must be there; the error names it.
pub fn load_modules() -> Result<()> {
    let list =
        fs::read_to_string(MODULE_LIST).with_context(|| format!("cannot read {MODULE_LIST}"))?;
    for line in list.lines() {
        match line.strip_prefix('-') {
            None => load_module(line)?,
            Some(path) => {
                if let Err(error) = load_module(path) {
                    eprintln!("without {path}: {error:#}");
                }
            }
        }
    }
    Ok(())
}

fn load_module(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open the module {path}"))?;
    // SAFETY: the descriptor is open and the parameter string ends in NUL;
    // the kernel only reads both. Flags 0: neither vermagic nor symbol
    // versions are ignored.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            c"".as_ptr(),
            0 as libc::c_int,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(error).with_context(|| format!("the kernel does not take the module {path}"))
}

/// Opens a serial port for lines in both directions: no echo, no translation.
///
/// # Errors
/// When it is not there or is no terminal.
pub fn open_port(path: &str) -> Result<File> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .with_context(|| format!("cannot open the serial port {path}"))?;
    // SAFETY: a termios is plain integers.
    let mut settings: libc::termios = unsafe { zeroed() };
    // SAFETY: the descriptor is open and `settings` is valid for writing.
    let mut result = unsafe { libc::tcgetattr(port.as_raw_fd(), &mut settings) };
    if result == 0 {
        // SAFETY: `settings` is valid; the call only computes.
        unsafe { libc::cfmakeraw(&mut settings) };
        // SAFETY: the descriptor is open and `settings` is valid for reading.
        result = unsafe { libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &settings) };
    }
    if result == 0 {
        return Ok(port);
    }
    Err(io::Error::last_os_error()).with_context(|| format!("{path} is no serial port"))
}

/// Waits until a serial port has sent everything.
pub fn drain(port: &File) {
    // SAFETY: the descriptor is open for the length of the call, which takes no pointers.
    unsafe { libc::tcdrain(port.as_raw_fd()) };
}

/// Switches the machine off.
pub fn power_off() -> ! {
    restart(libc::RB_POWER_OFF)
}

/// Boots the machine again.
pub fn reboot() -> ! {
    restart(libc::RB_AUTOBOOT)
}

fn restart(how: libc::c_int) -> ! {
    // SAFETY: takes no pointers. It returns only without CAP_SYS_BOOT, and
    // then the exit of init below ends the machine as well, as a panic.
    unsafe { libc::reboot(how) };
    std::process::exit(1)
}

/// Asks a process of this one to end, by SIGTERM.
///
/// # Errors
/// As `kill`.
pub fn terminate(child: &mut Child) -> io::Result<()> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: takes no pointers; the child is not waited for yet, so the number is its own.
    if unsafe { libc::kill(pid, libc::SIGTERM) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// What can be said of this machine.
///
/// # Errors
/// When `/proc` is not there.
pub fn about() -> io::Result<About> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(About {
        kernel: kernel.trim().to_owned(),
        acked: acked_features(Path::new("/sys/bus/virtio/devices")),
        cid: local_cid(),
    })
}

/// `features` in sysfs is a row of 64 digits, bit 0 first (kernel: `features_show`).
fn acked_features(devices: &Path) -> Option<u64> {
    let read = |path: &Path, name| fs::read_to_string(path.join(name)).unwrap_or_default();
    let devices = fs::read_dir(devices).ok()?;
    let mut devices = devices.flatten().map(|entry| entry.path());
    let device = devices.find(|path| read(path, "device").trim() == VSOCK_DEVICE)?;
    let digits = read(&device, "features");
    let bits = digits.trim().bytes().take(64).enumerate();
    Some(bits.fold(0, |all, (bit, digit)| all | u64::from(digit == b'1') << bit))
}

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID` (linux/vm_sockets.h).
fn local_cid() -> Option<u32> {
    const GET_LOCAL_CID: libc::c_ulong = 0x7b9;
    let device = File::open("/dev/vsock").ok()?;
    let mut cid: u32 = 0;
    // SAFETY: the descriptor is open and `cid` is valid for the u32 that the call writes.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            GET_LOCAL_CID as _,
            std::ptr::from_mut(&mut cid),
        )
    };
    // Any of the CIDs above 2^32 - 1 means that there is none.
    (result == 0 && cid != u32::MAX).then_some(cid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_bit_by_bit() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(acked_features(place.path()), None);
        for (name, device, features) in [
            ("virtio0", "0x0003\n", "1".repeat(64)),
            (
                "virtio1",
                "0x0013\n",
                format!("01{}11{}\n", "0".repeat(30), "0".repeat(30)),
            ),
        ] {
            let path = place.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("device"), device).unwrap();
            fs::write(path.join("features"), features).unwrap();
        }
        let expected = 1 << 1 | 1 << 32 | 1 << 33;
        assert_eq!(acked_features(place.path()), Some(expected));
    }
}
