//! What a network's folder keeps beside the network itself: what was learned of others, what was decided, what is let in.
//!
//! Each file is replaced whole. Lists of what others know as well are caches: one that is damaged is as good as none. The packet
//! filter is not: without it more would be let in than was meant.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use zeroize::Zeroizing;

use crate::config::filter::{MAX_FILTER, Rules};
use crate::dht::ledger::MAX_STATEMENTS;
use crate::dht::statement::MAX_STATEMENT;
use crate::identity::{NetworkSecret, canonical};

use super::{read_bounded, replace};

const PEERS: &str = "peers";
const LEDGER: &str = "ledger";
const INVITES: &str = "invites";
const SECRETS: &str = "secrets";
const FILTER: &str = "filter";

/// Records kept of other members. At 1 KiB each that is 4 MiB; a larger mesh refills its cache from the directory.
const MAX_RECORDS: usize = 4096;

/// Largest `peers` file read, bytes: [`MAX_RECORDS`] of them with their lengths.
const MAX_PEERS_FILE: usize = MAX_RECORDS * (crate::dht::record::MAX_RECORD + 3) + 8;

/// Largest `ledger` file read, bytes.
const MAX_LEDGER_FILE: usize = MAX_STATEMENTS * (MAX_STATEMENT + 3) + 8;

/// Invites made here that are remembered: the latest. Older ones are known by who joined by them.
const MAX_INVITES: usize = 256;

/// Largest `invites` file read, bytes: certificates of 256 bytes at most.
const MAX_INVITES_FILE: usize = MAX_INVITES * 260 + 8;

/// Largest `secrets` file read, bytes: the few that a node keeps, many times over.
const MAX_SECRETS_FILE: usize = 4096;

/// Keeps the records of other members in a network's folder, at most 4096 of them.
///
/// # Errors
/// When they cannot be written; the old ones are still there then.
pub fn save_records(dir: &Path, records: &[Vec<u8>]) -> Result<()> {
    let kept = &records[..records.len().min(MAX_RECORDS)];
    replace(dir, PEERS, &canonical::encode(&kept))
}

/// The records kept in a network's folder. They are a cache: none, if there are none or the file is damaged.
pub fn load_records(dir: &Path) -> Vec<Vec<u8>> {
    load_list(&dir.join(PEERS), MAX_PEERS_FILE)
}

fn load_list(path: &Path, max: usize) -> Vec<Vec<u8>> {
    let bytes = match read_bounded(path, max) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("ignoring {}: {error}", path.display());
            return Vec::new();
        }
    };
    canonical::decode(&bytes, max).unwrap_or_else(|error| {
        tracing::warn!("ignoring {}: {error}", path.display());
        Vec::new()
    })
}

/// The packet filter of a network's folder: none if there is no such file.
///
/// # Errors
/// With the file's name, and the line if it is no filter: a node must not start with less protection than was meant.
pub fn load_filter(dir: &Path) -> Result<Rules> {
    if !dir.join(FILTER).exists() {
        return Ok(Rules::default());
    }
    read_filter(dir)?.parse().with_context(|| dir.join(FILTER).display().to_string())
}

/// Its text.
///
/// # Errors
/// When there is none, or it is no text.
pub fn read_filter(dir: &Path) -> Result<String> {
    let path = dir.join(FILTER);
    let bytes = read_bounded(&path, MAX_FILTER).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(bytes.to_vec()).with_context(|| format!("{} is no text", path.display()))
}

/// Keeps a packet filter for the next starts.
///
/// # Errors
/// As the system says.
pub fn save_filter(dir: &Path, text: &str) -> Result<()> {
    replace(dir, FILTER, text.as_bytes())
}

/// Keeps the ledger in a network's folder.
///
/// # Errors
/// When it cannot be written; the old one is still there then.
pub fn save_statements(dir: &Path, statements: &[Vec<u8>]) -> Result<()> {
    replace(dir, LEDGER, &canonical::encode(&statements))
}

/// The statements kept in a network's folder. None, if there are none or the file is damaged: others tell us again.
pub fn load_statements(dir: &Path) -> Vec<Vec<u8>> {
    load_list(&dir.join(LEDGER), MAX_LEDGER_FILE)
}

/// The network's secrets since somebody was expelled, newest first; none if nobody was.
pub fn load_secrets(dir: &Path) -> Vec<NetworkSecret> {
    match read_bounded(&dir.join(SECRETS), MAX_SECRETS_FILE) {
        Ok(bytes) => canonical::decode(&bytes, MAX_SECRETS_FILE).unwrap_or_else(|error| {
            tracing::warn!("the newer secrets of the network cannot be read: {error}; others tell them again");
            Vec::new()
        }),
        Err(_) => Vec::new(),
    }
}

/// Keeps the network's secrets, newest first.
///
/// # Errors
/// When they cannot be written; the old ones are still there then.
pub fn save_secrets(dir: &Path, secrets: &[NetworkSecret]) -> Result<()> {
    replace(dir, SECRETS, &Zeroizing::new(canonical::encode(&secrets)))
}

/// The certificates of the invites made here.
pub fn load_invites(dir: &Path) -> Vec<Vec<u8>> {
    load_list(&dir.join(INVITES), MAX_INVITES_FILE)
}

/// Remembers an invite made here by its certificate.
///
/// # Errors
/// When it cannot be written.
pub fn add_invite(dir: &Path, certificate: Vec<u8>) -> Result<()> {
    let mut invites = load_invites(dir);
    invites.push(certificate);
    let first = invites.len().saturating_sub(MAX_INVITES);
    replace(dir, INVITES, &canonical::encode(&&invites[first..]))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn records_are_a_cache_that_may_be_damaged_or_gone() {
        let dir = std::env::temp_dir().join(format!("meshd-kept-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        assert_eq!(load_records(&dir), Vec::<Vec<u8>>::new());
        let records = vec![vec![1, 2, 3], vec![0xff; 1024]];
        save_records(&dir, &records).expect("saved");
        assert_eq!(load_records(&dir), records);
        let bytes = fs::read(dir.join(PEERS)).expect("file");
        fs::write(dir.join(PEERS), &bytes[..bytes.len() - 1]).expect("write");
        assert_eq!(load_records(&dir), Vec::<Vec<u8>>::new());
        save_records(&dir, &vec![vec![9; 10]; MAX_RECORDS + 5]).expect("saved");
        assert_eq!(load_records(&dir).len(), MAX_RECORDS);
        fs::remove_dir_all(dir).expect("clean up");
    }

    #[test]
    fn secrets_and_the_latest_invites_are_kept_for_our_eyes_only() {
        let dir = std::env::temp_dir().join(format!("meshd-kept-secrets-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        assert_eq!(load_secrets(&dir), Vec::new());
        let secrets = [NetworkSecret::new([2; 32]), NetworkSecret::new([1; 32])];
        save_secrets(&dir, &secrets).expect("saved");
        assert_eq!(load_secrets(&dir), secrets);
        let mode = fs::metadata(dir.join(SECRETS)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for n in 0..MAX_INVITES + 2 {
            add_invite(&dir, vec![(n % 251) as u8; 3]).expect("saved");
        }
        let invites = load_invites(&dir);
        assert_eq!((invites.len(), &invites[0]), (MAX_INVITES, &vec![2; 3]));
        fs::remove_dir_all(dir).expect("clean up");
    }
}
