// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host client says something, in pieces or messages, and perhaps leaves. What is made
//! of it, and what is left for the guest, is held against a reader that has all bytes
//! before it.

use std::io::IoSlice;

use crosvm_vsock::userspace::hybrid::{read_line, Line, MAX_LINE};
use crosvm_vsock::userspace::packet::SocketType;
use crosvm_vsock::userspace::socket::Socket;

use super::input::Input;

/// Plays one client.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 2 {
        0 => stream(&mut input),
        _ => message(&mut input),
    }
}

/// Something that looks like a line, or not at all.
fn words<'a>(input: &mut Input<'a>) -> Vec<u8> {
    let mut said = Vec::new();
    if !input.once_in(8) {
        said.extend(input.pick(&[&b"CONNECT "[..], b"connect ", b"CoNnEcT\t ", b" connect  "]));
        let port = match input.u8() % 3 {
            0 => u64::from(input.u8()),
            1 => u64::from(input.u32()),
            _ => input.u64(),
        };
        said.extend(port.to_string().into_bytes());
        said.extend(input.pick(&[&b"\n"[..], b"\r\n", b" \n", b""]));
    }
    let more = usize::from(input.u8() % 64);
    said.extend(input.bytes(more));
    said
}

fn expected(line: &[u8]) -> Line {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | 0x0c | b'\n');
    let words: Vec<&[u8]> = line.split(blank).filter(|word| !word.is_empty()).collect();
    let [command, port] = words[..] else {
        return Line::Nonsense;
    };
    let mut number = 0u128;
    for digit in port {
        if !digit.is_ascii_digit() {
            return Line::Nonsense;
        }
        number = number * 10 + u128::from(digit - b'0');
    }
    match (
        command.to_ascii_lowercase().as_slice(),
        u32::try_from(number),
    ) {
        (b"connect", Ok(number)) => Line::Connect(crosvm_vsock::address::Port(number)),
        _ => Line::Nonsense,
    }
}

fn stream(input: &mut Input<'_>) {
    let (client, device) = Socket::pair(SocketType::Stream).expect("a pair of sockets");
    let said = words(input);
    let mut heard = 0;
    while heard < said.len() {
        let piece = (1 + usize::from(input.u8() % 40)).min(said.len() - heard);
        let sent = client.send_bytes(&[IoSlice::new(&said[heard..heard + piece])]);
        heard += sent.expect("a socket takes a line");
        let looked = read_line(&device, SocketType::Stream).expect("a socket can be read");
        let window = &said[..heard.min(MAX_LINE)];
        let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
            let wanted = if heard < MAX_LINE {
                Line::Partial
            } else {
                Line::Nonsense
            };
            assert_eq!(
                looked,
                wanted,
                "{:?}",
                String::from_utf8_lossy(&said[..heard])
            );
            if wanted == Line::Nonsense {
                return;
            }
            continue;
        };
        assert_eq!(
            looked,
            expected(&said[..end]),
            "{:?}",
            String::from_utf8_lossy(&said)
        );
        // What came after the line belongs to the guest, every byte of it.
        let mut rest = [0; 256];
        let left = device.receive_bytes(&mut rest).unwrap_or(0);
        assert_eq!(&rest[..left], &said[end + 1..heard]);
        return;
    }
    drop(client);
    let looked = read_line(&device, SocketType::Stream).expect("a socket can be read");
    assert_eq!(looked, Line::Gone);
}

fn message(input: &mut Input<'_>) {
    let (client, device) = Socket::pair(SocketType::SeqPacket).expect("a pair of sockets");
    let said = words(input);
    if said.is_empty() {
        return;
    }
    client
        .send_bytes(&[IoSlice::new(&said)])
        .expect("a socket takes a message");
    let window = &said[..said.len().min(MAX_LINE)];
    let wanted = match window.iter().position(|byte| *byte == b'\n') {
        Some(end) if end + 1 == said.len() => expected(&said[..end]),
        _ => Line::Nonsense,
    };
    let looked = read_line(&device, SocketType::SeqPacket).expect("a socket can be read");
    assert_eq!(looked, wanted, "{:?}", String::from_utf8_lossy(&said));
}
