// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`WorkerThread`]: a thread that ends when its event is signalled.

use std::panic::resume_unwind;
use std::thread::{Builder, JoinHandle, Thread};

use crate::{Event, Result};

/// A running thread; stopped when dropped.
pub struct WorkerThread<T: Send + 'static>(Option<(Event, JoinHandle<T>)>);

impl<T: Send + 'static> WorkerThread<T> {
    /// Starts `thread_func`, which must return when the event it is given is
    /// signalled.
    ///
    /// # Panics
    /// When there are no more descriptors or threads to be had.
    pub fn start<F>(thread_name: impl Into<String>, thread_func: F) -> Self
    where
        F: FnOnce(Event) -> T + Send + 'static,
    {
        let stop = Event::new().expect("an event for the thread");
        let theirs = stop.try_clone().expect("the thread's clone of its event");
        let handle = Builder::new()
            .name(thread_name.into())
            .spawn(move || thread_func(theirs))
            .expect("a thread");
        Self(Some((stop, handle)))
    }

    /// Signals the event, waits for the thread and returns what it returned.
    ///
    /// # Panics
    /// When the thread panicked, with the same panic.
    pub fn stop(mut self) -> T {
        self.join().expect("the thread is joined only once")
    }

    /// Signals the event and does not wait.
    pub fn signal(&mut self) -> Result<()> {
        match &self.0 {
            Some((stop, _)) => stop.signal(),
            None => Ok(()),
        }
    }

    /// The running thread.
    pub fn thread(&self) -> &Thread {
        let (_, handle) = self
            .0
            .as_ref()
            .expect("the thread runs until it is stopped");
        handle.thread()
    }

    fn join(&mut self) -> Option<T> {
        let (stop, handle) = self.0.take()?;
        stop.signal().expect("an eventfd takes one more count");
        Some(handle.join().unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl<T: Send + 'static> Drop for WorkerThread<T> {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::Arc;

    use super::*;

    #[test]
    fn stops_and_returns() {
        let worker = WorkerThread::start("returns", |stop| {
            stop.wait().unwrap();
            42
        });
        assert_eq!(worker.thread().name(), Some("returns"));
        assert_eq!(worker.stop(), 42);
    }

    #[test]
    fn a_drop_stops_too() {
        let ended = Arc::new(AtomicBool::new(false));
        let flag = ended.clone();
        let mut worker = WorkerThread::start("drops", move |stop| {
            stop.wait().unwrap();
            flag.store(true, Ordering::SeqCst);
        });
        worker.signal().unwrap();
        drop(worker);
        assert!(ended.load(Ordering::SeqCst));
    }
}
