// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event-loop tokens of this data path.

use super::slab::Id;
use crate::epoll::Token;
use crate::path::PATH_KINDS;

/// A queue's kick event; the slot is the queue's index.
pub(super) const KICK: u8 = PATH_KINDS;
/// A connection's socket.
pub(super) const CONNECTION: u8 = PATH_KINDS + 1;
/// A client that has not said what it wants.
pub(super) const CLIENT: u8 = PATH_KINDS + 2;
/// Something host programs connect to.
pub(super) const LISTENER: u8 = PATH_KINDS + 3;
const MAIL: u8 = PATH_KINDS + 4;

/// Siblings have put something into the mailbox.
pub(super) const MAILBOX: Token = Token::lasting(MAIL, 0);

pub(super) const fn kick(queue: usize) -> Token {
    Token::lasting(KICK, queue as u32)
}

pub(super) const fn listener(slot: usize) -> Token {
    Token::lasting(LISTENER, slot as u32)
}

pub(super) const fn connection(id: Id) -> Token {
    named(CONNECTION, id)
}

pub(super) const fn client(id: Id) -> Token {
    named(CLIENT, id)
}

const fn named(kind: u8, id: Id) -> Token {
    Token {
        kind,
        slot: id.slot,
        generation: id.generation,
    }
}

/// The entry a token names.
pub(super) const fn id(token: Token) -> Id {
    Id {
        slot: token.slot,
        generation: token.generation,
    }
}
