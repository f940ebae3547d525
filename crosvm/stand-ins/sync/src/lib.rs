// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `sync`: a mutex that panics where the standard one
//! reports poison. Host tests only; never built by Soong.

use std::sync::{Mutex as StdMutex, MutexGuard};

/// A mutex whose methods panic when another thread panicked holding it.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(StdMutex<T>);

impl<T> Mutex<T> {
    /// An unlocked mutex around `value`.
    pub const fn new(value: T) -> Self {
        Self(StdMutex::new(value))
    }

    /// The value, consuming the mutex.
    pub fn into_inner(self) -> T {
        self.0.into_inner().expect("mutex is poisoned")
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("mutex is poisoned")
    }

    /// The value, without locking: the borrow proves that nobody else has it.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().expect("mutex is poisoned")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_the_value() {
        let mut mutex = Mutex::new(1);
        *mutex.lock() += 1;
        *mutex.get_mut() += 1;
        assert_eq!(mutex.into_inner(), 3);
    }
}
