// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Data that can be checked wherever it arrives: a pseudo-random stream that
//! both sides compute from a seed, and a checksum of it. Works on anything
//! that reads and writes; made of 64-bit words, so cheap under emulation too.

use std::io::{self, Read, Write};

use crate::rng::{word_at, Rng};

/// The largest piece read or written at once, in bytes.
const MAX_PIECE: usize = 256 << 10;

/// How a stream is cut into reads and writes.
#[derive(Clone, Copy, Debug)]
pub enum Pieces {
    /// Always so many bytes.
    Of(usize),
    /// 1 to so many bytes, by this seed.
    Random {
        /// The most.
        max: usize,
        /// The same seed gives the same pieces.
        seed: u64,
    },
}

/// Yields the sizes of pieces.
struct Sizes {
    rng: Rng,
    pieces: Pieces,
}

impl Sizes {
    fn new(pieces: Pieces) -> Self {
        let seed = match pieces {
            Pieces::Of(_) => 0,
            Pieces::Random { seed, .. } => seed,
        };
        Sizes {
            rng: Rng::new(seed),
            pieces,
        }
    }

    fn next(&mut self) -> usize {
        let size = match self.pieces {
            Pieces::Of(n) => n,
            Pieces::Random { max, .. } => self.rng.up_to(max),
        };
        size.clamp(1, MAX_PIECE)
    }
}

/// The pseudo-random stream of a seed, and how far in it we are.
#[derive(Clone, Debug)]
pub struct Data {
    seed: u64,
    at: u64,
    sum: u64,
}

impl Data {
    /// The stream from its beginning.
    pub fn new(seed: u64) -> Self {
        Data {
            seed,
            at: 0,
            sum: 0,
        }
    }

    /// How many bytes have passed.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The checksum of all bytes that have passed: equal on both sides
    /// however they were cut.
    pub fn checksum(&self) -> u64 {
        self.sum
    }

    /// The next bytes of the stream.
    pub fn fill(&mut self, out: &mut [u8]) {
        self.each(out.len(), |range, bytes| out[range].copy_from_slice(bytes));
    }

    /// Compares with the next bytes of the stream; the error names the first
    /// position that differs.
    pub fn verify(&mut self, data: &[u8]) -> io::Result<()> {
        let mut wrong = None;
        let start = self.at;
        self.each(data.len(), |range, bytes| {
            if wrong.is_none() && data[range.clone()] != *bytes {
                let same = data[range.clone()].iter().zip(bytes);
                wrong = Some(range.start + same.take_while(|(a, b)| a == b).count());
            }
        });
        match wrong {
            None => Ok(()),
            Some(at) => {
                let why = format!(
                    "byte {} of the stream of seed {} is wrong: {:#04x}",
                    start + at as u64,
                    self.seed,
                    data[at]
                );
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
        }
    }

    /// Visits the next `len` bytes word by word and adds them to the sum.
    fn each(&mut self, len: usize, mut visit: impl FnMut(std::ops::Range<usize>, &[u8])) {
        let mut done = 0;
        while done < len {
            let word = word_at(self.seed, self.at / 8);
            let skip = (self.at % 8) as usize;
            let n = (8 - skip).min(len - done);
            visit(done..done + n, &word.to_le_bytes()[skip..skip + n]);
            self.at += n as u64;
            done += n;
            if skip + n == 8 {
                self.sum = self.sum.rotate_left(5) ^ word;
            }
        }
    }
}

/// Writes the first `total` bytes of a seed's stream; returns their checksum.
pub fn send(mut to: impl Write, seed: u64, total: u64, pieces: Pieces) -> io::Result<u64> {
    let (mut data, mut sizes) = (Data::new(seed), Sizes::new(pieces));
    let mut piece = Vec::new();
    while data.position() < total {
        let left = total - data.position();
        piece.resize(
            sizes.next().min(usize::try_from(left).unwrap_or(MAX_PIECE)),
            0,
        );
        data.fill(&mut piece);
        to.write_all(&piece)?;
    }
    to.flush()?;
    Ok(data.checksum())
}

/// Reads `total` bytes and holds each against a seed's stream; returns their
/// checksum. An end before that is `UnexpectedEof`.
pub fn receive(mut from: impl Read, seed: u64, total: u64, pieces: Pieces) -> io::Result<u64> {
    let (mut data, mut sizes) = (Data::new(seed), Sizes::new(pieces));
    let mut piece = Vec::new();
    while data.position() < total {
        let left = total - data.position();
        piece.resize(
            sizes.next().min(usize::try_from(left).unwrap_or(MAX_PIECE)),
            0,
        );
        let n = from.read(&mut piece)?;
        if n == 0 {
            let why = format!("the stream ended {left} bytes early, of {total}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        data.verify(&piece[..n])?;
    }
    Ok(data.checksum())
}

/// Reads to the end and wants there to be nothing.
pub fn expect_end(mut from: impl Read) -> io::Result<()> {
    match from.read(&mut [0; 64])? {
        0 => Ok(()),
        n => {
            let why = format!("{n} bytes and more after the end of the stream");
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_do_not_matter_and_changes_do() {
        let mut whole = Vec::new();
        let sum = send(&mut whole, 3, 100_001, Pieces::Of(4096)).unwrap();
        let mut cut = Vec::new();
        let pieces = Pieces::Random { max: 77, seed: 9 };
        assert_eq!(send(&mut cut, 3, 100_001, pieces).unwrap(), sum);
        assert_eq!(whole, cut);
        assert_eq!(receive(&whole[..], 3, 100_001, pieces).unwrap(), sum);

        whole[77_777] ^= 1;
        let error = receive(&whole[..], 3, 100_001, pieces).unwrap_err();
        assert!(error.to_string().contains("byte 77777 "), "{error}");
        let error = receive(&cut[..100_000], 3, 100_001, pieces).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(receive(&cut[..], 4, 8, pieces).is_err());
    }
}
