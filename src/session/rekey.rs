//! When a session is to be replaced, and when it is dead. Times and counts as WireGuard has them (section 6.1).

use std::time::Duration;

/// After this a session in use is replaced: two minutes bound what one stolen key opens; half would double the
/// handshakes of every pair for little.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);

/// After this a session neither seals nor opens: a minute of grace for a replacement on a bad path.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// After this many datagrams a session is replaced: 2^32 keeps AES-GCM with 64 KiB messages far below its bound
/// (RFC 8446, section 5.5), and lasts 2 hours at 500,000 a second, so time nearly always comes first.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 32;

/// After this many nothing is sealed any more.
pub const REJECT_AFTER_MESSAGES: u64 = 1 << 33;
