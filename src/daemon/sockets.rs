//! The sockets besides the first: for fresh mappings in our NAT, and as witnesses for others' ([`crate::wire::socket`]).
//!
//! The control side opens one with the first datagram that goes through it, and closes it when the node says so. The first lane
//! reads them all: an epoll instance tells which have something, so a lane that has none beside the first pays nothing, and
//! with hundreds one system call a turn.

#![expect(unsafe_code, reason = "epoll(7) has no safe wrapper")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::wire::Batch;

use super::outlets::Outlets;
use super::udp::UdpSocket;

/// Sockets told at a time: what a turn reads from is bounded by its batch anyway.
const READY: usize = 32;

/// The open ones, by number.
#[derive(Debug)]
pub struct Sockets {
    open: ArcSwap<BTreeMap<u16, Arc<UdpSocket>>>,
    epoll: OwnedFd,
    /// Where datagrams go that no UDP socket sends.
    pub outlets: Outlets,
}

impl Sockets {
    /// None yet.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointer.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        Ok(Self { open: ArcSwap::default(), epoll, outlets: Outlets::default() })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open.load().is_empty()
    }

    /// Socket `number`, if it is open.
    pub fn get(&self, number: u16) -> Option<Arc<UdpSocket>> {
        self.open.load().get(&number).cloned()
    }

    /// Socket `number`, opened if it is not. Only the control side opens and closes.
    ///
    /// # Errors
    /// When there are no descriptors or ports left.
    pub fn open(&self, number: u16) -> io::Result<Arc<UdpSocket>> {
        if let Some(socket) = self.get(number) {
            return Ok(socket);
        }
        let socket = Arc::new(UdpSocket::beside(number)?);
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number.into() };
        // SAFETY: `event` is valid for the call; both descriptors are open.
        let added = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, socket.as_fd().as_raw_fd(), &raw mut event)
        };
        if added < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut all = BTreeMap::clone(&self.open.load());
        all.insert(number, Arc::clone(&socket));
        self.open.store(Arc::new(all));
        Ok(socket)
    }

    /// Closes all but `kept`. A lane that is just using one closes it when it is done; epoll forgets it then.
    pub fn keep(&self, kept: &BTreeSet<u16>) {
        let all = self.open.load();
        if all.keys().any(|number| !kept.contains(number)) {
            let left = all.iter().filter(|(number, _)| kept.contains(number));
            self.open.store(Arc::new(left.map(|(number, socket)| (*number, Arc::clone(socket))).collect()));
        }
    }

    /// Receives into slots of `batch`, about `limit` of them, from those that have something. Whether there may be more.
    ///
    /// # Errors
    /// What the kernel says of a socket itself.
    pub fn receive(&self, batch: &mut Batch, limit: usize) -> io::Result<bool> {
        let open = self.open.load();
        if open.is_empty() {
            return Ok(false);
        }
        let mut ready = [libc::epoll_event { events: 0, u64: 0 }; READY];
        // SAFETY: `ready` is valid for as many events as are said, for the call.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), ready.as_mut_ptr(), READY as libc::c_int, 0) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(error) };
        };
        let mut more = count == READY;
        for event in &ready[..count] {
            let number = event.u64 as u16;
            if let Some(socket) = open.get(&number) {
                more |= socket.receive(batch, limit)?.1;
            }
        }
        Ok(more)
    }
}

impl AsFd for Sockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::wire::socket::split;

    fn received(sockets: &Sockets) -> Vec<(u16, Vec<u8>)> {
        let mut batch = Batch::new(1 << 18, 64);
        for _ in 0..100 {
            sockets.receive(&mut batch, 32).expect("a receive");
            if !batch.is_empty() {
                break;
            }
            #[expect(clippy::disallowed_methods, reason = "a test waits for the kernel")]
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let slots = batch.slots().iter().enumerate();
        slots.map(|(index, slot)| (split(slot.source.expect("a source")).0, batch.bytes(index).to_vec())).collect()
    }

    #[test]
    fn what_comes_to_one_of_many_says_to_which() {
        let sockets = Sockets::new().expect("an epoll instance");
        assert!(sockets.is_empty() && !sockets.receive(&mut Batch::new(1 << 18, 4), 4).expect("nothing"));
        let opened: Vec<_> = (1..=50).map(|number| sockets.open(number).expect("a socket")).collect();
        let sender = UdpSocket::beside(99).expect("a socket");
        for number in [7_u16, 43] {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, opened[usize::from(number) - 1].port()));
            sender.try_send(to, &number.to_be_bytes()).expect("sent");
            assert_eq!(received(&sockets), [(number, number.to_be_bytes().to_vec())]);
        }
        let port = opened[6].port();
        drop(opened);
        assert_eq!(sockets.open(7).expect("it is open").port(), port);
        sockets.keep(&BTreeSet::from([43]));
        assert!(sockets.get(7).is_none() && sockets.get(43).is_some());
        let _ = sender.try_send((Ipv4Addr::LOCALHOST, port).into(), b"closed");
        sockets.keep(&BTreeSet::new());
        assert!(sockets.is_empty() && !sockets.receive(&mut Batch::new(1 << 18, 4), 4).expect("nothing"));
    }
}
