//! Those who call: initiations, which anybody can send, have a socket of their own at our port, and the control thread reads it.
//!
//! So a flood of them is between its sender, the kernel and a thread that gives way: what finds no room is dropped before anybody is
//! woken, and no session's datagram waits behind it. The kernel tells them by their first byte ([`super::udp`]); what it
//! has put behind one in a train takes the way that it takes in a lane, through a half of a forwarder.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Cache};
use tokio::io::Interest;
use tokio::sync::mpsc;

use crate::switch::{Fib, Ingress};
use crate::tap::queue::Queue;
use crate::wire::{Counters, DropReason};

use super::direction::{Direction, FromLane, Port};
use super::lane::TO_CONTROL;
use super::sockets::Sockets;
use super::udp::UdpSocket;

/// The socket for initiations and what becomes of them.
pub struct Callers {
    socket: Arc<UdpSocket>,
    readiness: tokio::net::UdpSocket,
    direction: Direction<Ingress>,
    fib: Cache<Arc<ArcSwap<Fib>>, Arc<Fib>>,
    punts: mpsc::Receiver<FromLane>,
    counters: Arc<Mutex<Counters>>,
}

impl Callers {
    /// Reads `socket`. What is no initiation goes on to `queue` or to `sockets`, as in a lane.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(socket: UdpSocket, queue: Queue, sockets: Arc<Sockets>, fib: Arc<ArcSwap<Fib>>) -> io::Result<Self> {
        let socket = Arc::new(socket);
        let counters = Arc::<Mutex<Counters>>::default();
        let (to_us, punts) = mpsc::channel(TO_CONTROL);
        let port = Port::new(Arc::new(queue), Arc::clone(&socket), (sockets, false), to_us, Arc::clone(&counters));
        Ok(Self {
            readiness: socket.readiness()?,
            socket,
            direction: Direction::new(Ingress::default(), port),
            fib: Cache::new(fib),
            punts,
            counters,
        })
    }

    /// Waits until somebody has called, and reads a batch. Cancel-safe.
    ///
    /// # Errors
    /// When the socket is gone.
    pub async fn turn(&mut self) -> anyhow::Result<()> {
        loop {
            self.readiness.readable().await?;
            let turn = self.readiness.try_io(Interest::READABLE, || match self.direction.turn(self.fib.load()) {
                Ok(turn) if !turn.worked => Err(io::ErrorKind::WouldBlock.into()),
                turn => Ok(turn),
            });
            match turn {
                Ok(turn) => return turn.map(drop),
                Err(_) => self.direction.rest(),
            }
        }
    }

    /// What of that batch is for the node.
    pub fn next_punt(&mut self) -> Option<FromLane> {
        self.punts.try_recv().ok()
    }

    /// What was dropped here, or before it got here.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone();
        counters.count_many(DropReason::PuntFull, self.socket.overflows());
        counters
    }
}
