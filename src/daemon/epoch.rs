//! What speaks with the network's newest secret beside the sessions: the control network and mDNS. They are started
//! together, and anew with each epoch; whoever has not heard of it yet is met by sessions, and told.

use std::thread::JoinHandle;

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::dht::beacon::{Beacon, BeaconConfig};
use crate::dht::swarm::{self, Guests, SwarmConfig};
use crate::dht::{Command, Event};
use crate::identity::{Ipv4Prefix, NetworkId, NetworkSecret, SigningKey};

/// Sightings that wait for us, beyond what the beacon keeps itself.
const SIGHTINGS: usize = 64;

/// What both need besides the secret.
pub(super) struct Speaker {
    /// Our key.
    pub(super) key: SigningKey,
    /// Of which network.
    pub(super) network: NetworkId,
    /// Its IPv4 network.
    pub(super) prefix: Ipv4Prefix,
    /// Our UDP and TCP port.
    pub(super) port: u16,
    /// Whether others behind NATs may be reached through us.
    pub(super) relay: bool,
    /// Who takes the streams that come to the port.
    pub(super) guests: Guests,
}

/// Both, running.
pub(super) struct Speech {
    pub(super) beacon: Beacon,
    pub(super) sightings: mpsc::Receiver<Event>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) events: mpsc::Receiver<Event>,
    /// The directory's; it ends soon after `commands` and `events` are dropped.
    pub(super) thread: JoinHandle<()>,
}

impl Speaker {
    /// Starts both with the first of `secrets`; mDNS is heard in the others too. `statements` is the ledger,
    /// `seed` the beacon's randomness.
    ///
    /// # Errors
    /// When the port is taken, or the operating system gives no socket or thread.
    pub(super) fn start(
        &self,
        secrets: &[NetworkSecret],
        statements: Vec<Vec<u8>>,
        seed: [u8; 32],
    ) -> anyhow::Result<Speech> {
        self.guests.set_secrets(secrets);
        let (secret, older) = secrets.split_first().context("a network has a secret")?;
        let config = SwarmConfig::new(self.key.clone(), self.network, secret.clone(), self.prefix, self.port);
        let directory =
            swarm::spawn(SwarmConfig { statements, relay: self.relay, guests: Some(self.guests.clone()), ..config })?;
        let (to_us, sightings) = mpsc::channel(SIGHTINGS);
        let beacon = BeaconConfig {
            key: secret.beacon_key(),
            older: older.iter().map(NetworkSecret::beacon_key).collect(),
            peer: self.key.peer_id(),
            noise: self.key.noise_secret().public(),
            port: self.port,
        };
        let beacon = Beacon::start(beacon, seed, to_us)?;
        let swarm::SwarmHandle { commands, events, thread, .. } = directory;
        Ok(Speech { beacon, sightings, commands, events, thread })
    }
}
