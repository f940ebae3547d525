// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Log lines on their way to a writer that may block.
//!
//! Standard error is often a pipe, and one that nobody reads takes no more. Whoever logs
//! must not wait for it: a VM's neighbours and the end of the process would wait, too. So
//! lines that find no room here are dropped and counted. The descriptor itself cannot be
//! made not to block, since other processes share it.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many lines may wait.
const MOST_LINES: usize = 1024;

/// Lines that wait for the thread that writes them.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// How many found no room behind `lines`.
    dropped: u64,
    /// Lines were taken and are being written.
    writing: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.dropped == 0
    }
}

impl Queue {
    /// Adds a line, or drops it if there is no room. Never waits.
    pub fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.lines.len() < MOST_LINES {
            waiting.lines.push_back(line.to_vec());
        } else {
            waiting.dropped += 1;
        }
        self.changed.notify_all();
    }

    /// Writes lines as they come, for ever.
    pub fn write_to(&self, out: &mut impl Write) -> ! {
        let mut waiting = self.lock();
        loop {
            if waiting.is_empty() {
                waiting = self
                    .changed
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let lines = std::mem::take(&mut waiting.lines);
            let dropped = std::mem::take(&mut waiting.dropped);
            waiting.writing = true;
            drop(waiting);
            for line in lines {
                // There is nobody to tell that this fails.
                let _ = out.write_all(&line);
            }
            if dropped > 0 {
                let _ = writeln!(out, "crosvm-vsock: {dropped} log lines were dropped");
            }
            waiting = self.lock();
            waiting.writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits until all lines are written, `patience` at most.
    pub fn flush(&self, patience: Duration) {
        let is_busy = |waiting: &mut Waiting| !waiting.is_empty() || waiting.writing;
        let _ = self
            .changed
            .wait_timeout_while(self.lock(), patience, is_busy);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{channel, Receiver, Sender};
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A pipe that is full until it is read, write by write.
    struct Pipe(Receiver<()>, Sender<String>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.1.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_find_no_room_are_counted_and_nobody_waits_for_a_reader() {
        let queue = Arc::new(Queue::default());
        let (read, full) = channel();
        let (out, written) = channel();
        let writer = queue.clone();
        std::thread::spawn(move || writer.write_to(&mut Pipe(full, out)));
        queue.push(b"the first\n");
        while !queue.lock().writing {
            std::thread::yield_now();
        }
        for number in 0..MOST_LINES + 3 {
            queue.push(format!("line {number}\n").as_bytes());
        }
        queue.flush(Duration::from_millis(10));

        // More than the writes that there are.
        for _ in 0..2 * MOST_LINES {
            read.send(()).unwrap();
        }
        let start = Instant::now();
        queue.flush(SOON);
        assert!(start.elapsed() < SOON);
        let text: String = written.try_iter().collect();
        let end = format!(
            "line {}\ncrosvm-vsock: 3 log lines were dropped\n",
            MOST_LINES - 1
        );
        assert!(text.starts_with("the first\nline 0\nline 1\n"), "{text}");
        assert!(text.ends_with(&end), "{text}");
    }
}
