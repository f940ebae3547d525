// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections between VMs of one process.
//!
//! Two guests that share a group may connect to each other. To each of their devices
//! the other guest is one more host program behind a socket: the device of the guest
//! that asks makes a socket pair, keeps one end and puts the other into the
//! [`Mailbox`] of the device of the guest that is asked. That one asks its guest as it
//! would for a host client and, when the guest accepts, says so with one byte
//! ([`YES`]); a refusal is an end of file. From then on credit, half-close, fairness
//! and limits are those of any connection, each VM's on its own thread, and the queue
//! between the two is the socket's buffer: bounded, and the kernel's.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::packet::SocketType;
use super::socket::Socket;
use crate::address::{Cid, GuestCid, Port};
use crate::event::EventFd;

/// What a device sends through the pair when its guest has accepted.
pub const YES: u8 = b'+';

/// A connection that a sibling asks for.
#[derive(Debug)]
pub struct Offer {
    /// The guest that asks.
    pub from: Cid,
    /// Its port.
    pub from_port: Port,
    /// The port it asks for.
    pub to_port: Port,
    /// Bytes or messages.
    pub socket_type: SocketType,
    /// The other end of its connection.
    pub socket: Socket,
}

/// Where a VM's thread finds what siblings ask for.
#[derive(Debug)]
pub struct Mailbox {
    offers: Mutex<VecDeque<Offer>>,
    most: usize,
    wake: EventFd,
}

impl Mailbox {
    /// The oldest offer.
    pub fn take(&self) -> Option<Offer> {
        lock(&self.offers).pop_front()
    }

    /// No longer signals what is known.
    pub fn clear_wake(&self) {
        // The descriptor is ours: reading a count cannot fail but for there being none.
        let _ = self.wake.take();
    }

    /// Signals what is left: a burst of it was taken.
    pub fn wake_again(&self) {
        // As above.
        let _ = self.wake.signal();
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[derive(Debug)]
struct Member {
    groups: Vec<String>,
    mailbox: Arc<Mailbox>,
}

/// The VMs of this process by CID.
#[derive(Debug, Default)]
pub struct Neighbourhood {
    members: Mutex<HashMap<Cid, Member>>,
}

/// Two VMs with one CID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CID {0} is taken: each VM of this process needs one of its own")]
pub struct CidTaken(GuestCid);

/// A VM's place in the neighbourhood; given up when dropped.
#[derive(Debug)]
pub struct Membership {
    cid: Cid,
    groups: Vec<String>,
    neighbourhood: Arc<Neighbourhood>,
    mailbox: Arc<Mailbox>,
}

impl Neighbourhood {
    /// Moves a VM in. Siblings may have `most` offers waiting for it.
    pub fn join(
        self: &Arc<Self>,
        cid: GuestCid,
        groups: Vec<String>,
        most: usize,
    ) -> Result<Membership, JoinError> {
        let mailbox = Arc::new(Mailbox {
            offers: Mutex::default(),
            most,
            wake: EventFd::new()?,
        });
        let mut members = lock(&self.members);
        if members.contains_key(&cid.cid()) {
            return Err(CidTaken(cid).into());
        }
        let member = Member {
            groups: groups.clone(),
            mailbox: mailbox.clone(),
        };
        members.insert(cid.cid(), member);
        drop(members);
        Ok(Membership {
            cid: cid.cid(),
            groups,
            neighbourhood: self.clone(),
            mailbox,
        })
    }
}

/// Why a VM cannot move in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its CID is another's.
    #[error(transparent)]
    Cid(#[from] CidTaken),
    /// No descriptor for its mailbox.
    #[error("no mailbox for siblings: {0}")]
    Mailbox(#[from] std::io::Error),
}

/// Why an [`Offer`] reaches nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// There is no other VM with this CID in a common group.
    #[error("no sibling has this CID")]
    Nobody,
    /// Its mailbox is full.
    #[error("too many requests wait for the sibling")]
    Full,
}

impl Membership {
    /// This VM's mailbox.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Whether a VM of this process has the CID `to`, this one included.
    pub fn knows(&self, to: Cid) -> bool {
        lock(&self.neighbourhood.members).contains_key(&to)
    }

    /// Puts `offer` into the mailbox of the VM with CID `to`.
    pub fn offer(&self, to: Cid, offer: Offer) -> Result<(), OfferError> {
        let members = lock(&self.neighbourhood.members);
        // A guest's own CID is for its own loopback, not for us.
        let member = members.get(&to).filter(|member| {
            let common = |group| self.groups.contains(group);
            to != self.cid && member.groups.iter().any(common)
        });
        let mailbox = member.ok_or(OfferError::Nobody)?.mailbox.clone();
        drop(members);
        let mut offers = lock(&mailbox.offers);
        if offers.len() >= mailbox.most {
            return Err(OfferError::Full);
        }
        offers.push_back(offer);
        // Cannot fail but for a count near 2^64, and then it is awake.
        let _ = mailbox.wake.signal();
        Ok(())
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        lock(&self.neighbourhood.members).remove(&self.cid);
        // Dropping the offers hangs up on whoever waits.
        lock(&self.mailbox.offers).clear();
    }
}

/// A thread that panicked left a queue or a map behind, both whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cid(raw: u64) -> GuestCid {
        GuestCid::new(raw).unwrap()
    }

    fn offer(socket: Socket) -> Offer {
        Offer {
            from: Cid(3),
            from_port: Port(1),
            to_port: Port(2),
            socket_type: SocketType::Stream,
            socket,
        }
    }

    #[test]
    fn only_a_common_group_opens_the_door_and_mailboxes_are_bounded() {
        let street = Arc::new(Neighbourhood::default());
        let groups = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let a = street.join(cid(3), groups(&["x", "y"]), 1).unwrap();
        let b = street.join(cid(4), groups(&["y"]), 1).unwrap();
        let _c = street.join(cid(5), groups(&["z"]), 1).unwrap();
        assert!(street.join(cid(4), groups(&["y"]), 1).is_err());
        let socket = || Socket::pair(SocketType::Stream).unwrap().0;
        let offer_to = |to| a.offer(Cid(to), offer(socket()));
        assert_eq!(offer_to(4), Ok(()));
        assert_eq!(offer_to(4), Err(OfferError::Full));
        assert_eq!(offer_to(5), Err(OfferError::Nobody), "no common group");
        assert_eq!(offer_to(6), Err(OfferError::Nobody));
        assert_eq!(offer_to(3), Err(OfferError::Nobody), "itself");
        assert!(a.knows(Cid(5)) && a.knows(Cid(3)) && !a.knows(Cid(6)));
        assert_eq!(b.mailbox().take().unwrap().to_port, Port(2));
        drop(b);
        assert_eq!(offer_to(4), Err(OfferError::Nobody), "moved out");
        assert!(!a.knows(Cid(4)));
    }
}
