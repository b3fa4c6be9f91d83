//! The state on disk: one folder a network, holding all that a node has to remember.
//!
//! `STATE/NETWORK/` (0700) has `key` (the node's seed), `root.key` (the founder's alone), `network` (secret, chain,
//! contacts), `boots` (how often this key has started), `peers` (records of other members, a cache), `ledger` (statements: who
//! is expelled, who joined by which invite), `invites` (certificates of those made here, without their keys), `secrets` (the
//! network's, since somebody was expelled, newest first) and `lock`. Files with secrets are 0600; what changes while a node runs is in `files`. A folder appears whole or not at all: it is built under a hidden name, synced and renamed;
//! whatever fails on the way, a full disk above all, removes it. Later changes replace single files the same way.

mod files;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{NetworkConfig, NodeConfig, Relaying};
use crate::identity::{
    Ago, Chain, ChainError, Contact, Mac, Membership, Name, NetworkId, NetworkSecret, SigningKey, UnixSeconds,
};

use super::api;
use super::process::Account;

pub use self::files::{
    add_invite, load_filter, load_invites, load_records, load_secrets, load_statements, read_filter, save_filter,
    save_records, save_secrets, save_statements,
};

const SYSTEM_STATE: &str = "/var/lib/meshd";
const SYSTEM_RUNTIME: &str = "/run/meshd";

const KEY: &str = "key";
const ROOT_KEY: &str = "root.key";
const NETWORK: &str = "network";
const BOOTS: &str = "boots";
const LOCK: &str = "lock";

/// Networks that come of a party code are called this and four digits of their id.
pub const PARTY: &str = "party-";

/// Folders under construction begin with this; no network's name can.
const UNFINISHED: &str = ".new-";

/// Largest `network` file read, bytes. JSON of three certificates and three contacts is under 10 KiB.
const MAX_NETWORK_FILE: usize = 64 * 1024;

/// Largest key file read, bytes: 64 digits, a line end, and what an editor may add.
const MAX_KEY_FILE: usize = 80;

/// The folder with one folder a network.
#[derive(Debug, Clone)]
pub struct Store {
    base: PathBuf,
}

/// What is remembered of one network.
#[derive(Debug)]
pub struct Home {
    /// Its folder.
    pub dir: PathBuf,
    /// The network itself.
    pub network: NetworkConfig,
    /// Our key.
    pub key: SigningKey,
    /// Our membership.
    pub chain: Chain,
    /// Members to try first.
    pub contacts: Vec<Contact>,
}

/// Held while a process uses a folder; the kernel releases it however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The JSON of the file `network`.
#[derive(Serialize, Deserialize)]
struct NetworkFile {
    network: NetworkConfig,
    chain: Chain,
    contacts: Vec<Contact>,
}

impl Store {
    /// The store at `chosen`, else at the usual place: /var/lib/meshd for root, $XDG_STATE_HOME/meshd or
    /// ~/.local/state/meshd for others. Nothing is made yet.
    ///
    /// # Errors
    /// When there is no home folder to fall back to.
    pub fn open(chosen: Option<PathBuf>) -> Result<Self> {
        let base = match chosen {
            Some(base) => base,
            None if is_root() => PathBuf::from(SYSTEM_STATE),
            None => user_state().context("neither XDG_STATE_HOME nor HOME is set; use --state-dir")?,
        };
        Ok(Self { base: std::path::absolute(base)? })
    }

    /// Where the networks' folders are.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The networks there are, in the order of their names.
    ///
    /// # Errors
    /// When the folder may not be read.
    pub fn networks(&self) -> Result<Vec<Name>> {
        let entries = match fs::read_dir(&self.base) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.unreadable(&error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.unreadable(&error))?;
            let name = entry.file_name().into_string().ok().and_then(|name| Name::try_from(name).ok());
            names.extend(name.filter(|_| entry.path().join(NETWORK).exists()));
        }
        names.sort();
        Ok(names)
    }

    /// The network that is meant: the one named, or the only one.
    ///
    /// # Errors
    /// When it does not exist, or when none was named and there is not exactly one. The message lists what there is.
    pub fn choose(&self, named: Option<&Name>) -> Result<Name> {
        self.choose_among(named, &[])
    }

    /// As [`Store::choose`], where `parties` are there too, of which nothing is kept.
    ///
    /// # Errors
    /// As there.
    pub fn choose_among(&self, named: Option<&Name>, parties: &[Name]) -> Result<Name> {
        let mut names = self.networks()?;
        names.extend_from_slice(parties);
        let list = names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
        match (named, names.as_slice()) {
            (Some(name), _) if names.contains(name) => Ok(name.clone()),
            (None, [only]) => Ok(only.clone()),
            (None, []) => bail!("no network in {}; {}", self.base.display(), self.advice()),
            (Some(name), []) => bail!("no network {name} in {}; {}", self.base.display(), self.advice()),
            (Some(name), _) => bail!("no network {name} in {}; there is: {list}", self.base.display()),
            (None, _) => bail!("several networks in {}; name one of: {list}", self.base.display()),
        }
    }

    /// The folder of a network.
    pub fn dir(&self, name: &Name) -> PathBuf {
        self.base.join(name.as_str())
    }

    /// Whether there is a network of this name.
    pub fn contains(&self, name: &Name) -> bool {
        self.base.join(name.as_str()).exists()
    }

    /// Makes the folder of a network, whole or not at all, and returns its path. `root` is the founder's.
    ///
    /// # Errors
    /// When it exists already or cannot be written; then nothing is left behind.
    pub fn create(
        &self,
        network: &NetworkConfig,
        key: &SigningKey,
        chain: &Chain,
        contacts: &[Contact],
        root: Option<&SigningKey>,
    ) -> Result<PathBuf> {
        let name = &network.name;
        let dir = self.base.join(name.as_str());
        let existed = self.base.exists();
        let file = NetworkFile { network: network.clone(), chain: chain.clone(), contacts: contacts.to_vec() };
        let made = private_dir(&self.base).and_then(|()| self.build(&dir, &file, key, root));
        made.map_err(|error| {
            if !existed {
                let _ = fs::remove_dir(&self.base);
            }
            if dir.exists() {
                anyhow!("network {name} exists already in {}; choose another name", self.base.display())
            } else {
                anyhow!("cannot make network {name} in {}: {error}; nothing was kept", self.base.display())
            }
        })?;
        Ok(dir)
    }

    /// Reads a network's folder and checks it: permissions, key, and that the chain is of this network and key.
    ///
    /// # Errors
    /// One line that names the file and what to do about it.
    pub fn load(&self, name: &Name) -> Result<Home> {
        let dir = self.base.join(name.as_str());
        let key = read_key(&dir.join(KEY))?;
        let path = dir.join(NETWORK);
        let damaged = || anyhow!("{} is damaged; restore it from a backup or join again", path.display());
        let bytes = read_private(&path, MAX_NETWORK_FILE)?;
        let file: NetworkFile = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        let subject = file.chain.links.last().map(|link| link.body.subject);
        if file.chain.root != file.network.root || subject.is_none() {
            return Err(damaged());
        }
        if subject != Some(key.peer_id()) {
            bail!("{} is not the key of this membership; restore both from one backup", dir.join(KEY).display());
        }
        // The folder's name is the network's name here: whoever renames the folder renames the network.
        let network = NetworkConfig { name: name.clone(), ..file.network };
        Ok(Home { dir, network, key, chain: file.chain, contacts: file.contacts })
    }

    /// The name under which the network `id` is known here, if it is. Folders that cannot be read are passed over.
    ///
    /// # Errors
    /// As [`Store::networks`].
    pub fn find(&self, id: &NetworkId) -> Result<Option<Home>> {
        let homes = self.networks()?.into_iter().filter_map(|name| self.load(&name).ok());
        Ok(homes.into_iter().find(|home| home.network.id() == *id))
    }

    fn build(&self, dir: &Path, file: &NetworkFile, key: &SigningKey, root: Option<&SigningKey>) -> io::Result<()> {
        // One maker at a time, so whatever unfinished folder is there was left by one that was killed.
        let base = File::open(&self.base)?;
        base.lock()?;
        self.sweep()?;
        if dir.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let unfinished = self.base.join(format!("{UNFINISHED}{}", file.network.name));
        let built = fill(&unfinished, file, key, root)
            .and_then(|()| fs::rename(&unfinished, dir))
            .and_then(|()| base.sync_all());
        if built.is_err() {
            let _ = fs::remove_dir_all(&unfinished);
        }
        built
    }

    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.base)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    fn unreadable(&self, error: &io::Error) -> anyhow::Error {
        let advice = if error.kind() == io::ErrorKind::PermissionDenied { "; use sudo or --state-dir" } else { "" };
        anyhow!("cannot read {}: {error}{advice}", self.base.display())
    }

    fn advice(&self) -> String {
        let make = "make one with `meshd init` or join one with `meshd join INVITE`";
        if !is_root() && self.base != Path::new(SYSTEM_STATE) && Path::new(SYSTEM_STATE).exists() {
            return format!("{make}; networks made with sudo are root's: use sudo for them");
        }
        make.to_owned()
    }
}

impl Home {
    /// The network's root key, if this is the founder's machine.
    ///
    /// # Errors
    /// When there is one and it cannot be used.
    pub fn root_key(&self) -> Result<Option<SigningKey>> {
        let path = self.dir.join(ROOT_KEY);
        if !path.exists() {
            return Ok(None);
        }
        let root = read_key(&path)?;
        if root.peer_id() != self.network.root {
            bail!("{} is not the root key of network {}", path.display(), self.network.name);
        }
        Ok(Some(root))
    }

    /// The network's newest secret, as far as this machine knows.
    pub fn newest_secret(&self) -> NetworkSecret {
        load_secrets(&self.dir).into_iter().next().unwrap_or_else(|| self.network.secret.clone())
    }

    /// What our chain proves at `now`.
    ///
    /// # Errors
    /// When it proves nothing, above all when it has expired.
    pub fn membership(&self, now: UnixSeconds) -> Result<Membership> {
        let (name, dir) = (&self.network.name, self.dir.display());
        self.chain.verify(&self.network.id(), now).map_err(|error| match error {
            ChainError::Expired { not_after, .. } => anyhow!(
                "the membership of network {name} expired {} ago; remove {dir} and join with a new invite",
                Ago(now - not_after)
            ),
            ChainError::NotYetValid { not_before, .. } => anyhow!(
                "the membership of network {name} begins in {}; set this machine's clock, it is behind",
                Ago(not_before - now)
            ),
            error @ (ChainError::ForeignNetwork(_)
            | ChainError::Length(_)
            | ChainError::Signature(_)
            | ChainError::Kind(_)
            | ChainError::Widened(_)
            | ChainError::JoinedLate { .. }) => {
                anyhow!("the membership of network {name} is damaged: {error}; restore {dir} or join again")
            }
        })
    }

    /// What a node is told when it starts for the `boots`-th time; records of other members come from the disk.
    pub fn into_node(self, boots: u32, mac: Option<Mac>, ipv4: Option<Ipv4Addr>, mtu: usize) -> NodeConfig {
        NodeConfig {
            known_records: load_records(&self.dir),
            known_statements: load_statements(&self.dir),
            known_secrets: load_secrets(&self.dir),
            network: self.network,
            key: self.key,
            chain: self.chain,
            mac,
            ipv4,
            mtu,
            boots,
            relaying: Relaying::default(),
            tls: false,
            hardware_aes: has_hardware_aes(),
            post_quantum: true,
            contacts: self.contacts,
        }
    }

    /// Takes the folder for this process.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock(&self) -> Result<Lock> {
        lock(&self.dir, &self.network.name)
    }

    /// Counts one more start of this key, durably, and returns the count. Hold the [`Lock`].
    ///
    /// # Errors
    /// When the count cannot be read or written: a start that others would take for an older one must not happen.
    pub fn next_boot(&self) -> Result<u32> {
        let path = self.dir.join(BOOTS);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let boots = text.trim().parse::<u32>().ok().and_then(|boots| boots.checked_add(1)).ok_or_else(|| {
            anyhow!("{} is damaged; write into it a number above all starts so far, such as 1000000", path.display())
        })?;
        replace(&self.dir, BOOTS, format!("{boots}\n").as_bytes())?;
        Ok(boots)
    }
}

/// Takes `dir` for this process, for the network `name`.
///
/// # Errors
/// When another process has it, with its process id.
pub fn lock(dir: &Path, name: &Name) -> Result<Lock> {
    let path = dir.join(LOCK);
    let failed = || format!("cannot lock {}", path.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&mut file).take(16).read_to_string(&mut holder);
            let holder = holder.trim().parse::<u32>().map(|pid| format!(" (process {pid})")).unwrap_or_default();
            bail!("meshd is already running for network {name}{holder}; stop it first");
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
    }
    // Only for the message above; a full disk must not keep a node from running.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(Lock { _file: file })
}

/// The process that has locked `dir`, by what it wrote there.
pub fn holder(dir: &Path) -> Option<u32> {
    fs::read_to_string(dir.join(LOCK)).ok()?.trim().parse().ok()
}

/// The folder of a network's API socket: below `chosen`, else /run/meshd for root, $XDG_RUNTIME_DIR/meshd for others.
///
/// # Errors
/// When there is no such folder to fall back to.
pub fn runtime_dir(chosen: Option<&Path>, network: &Name) -> Result<PathBuf> {
    Ok(runtime_base(chosen)?.join(network.as_str()))
}

fn runtime_base(chosen: Option<&Path>) -> Result<PathBuf> {
    let base = match chosen {
        Some(base) => base.to_owned(),
        None if is_root() => PathBuf::from(SYSTEM_RUNTIME),
        None => {
            let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|base| !base.is_empty());
            PathBuf::from(base.context("XDG_RUNTIME_DIR is not set; use --runtime-dir")?).join("meshd")
        }
    };
    Ok(std::path::absolute(base)?)
}

/// The parties that this machine takes part in just now, by their sockets.
pub fn parties(chosen: Option<&Path>) -> Vec<Name> {
    let Ok(base) = runtime_base(chosen) else { return Vec::new() };
    let folders = fs::read_dir(base).into_iter().flatten().flatten();
    let names = folders.filter_map(|folder| {
        let name = Name::try_from(folder.file_name().into_string().ok()?).ok()?;
        // One that was killed has left its socket.
        (name.as_str().starts_with(PARTY) && runs(&api::socket_path(&folder.path()))).then_some(name)
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Whether a node listens at this API socket.
pub fn runs(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Makes a folder, and those above it, for our eyes only.
///
/// # Errors
/// As the system says.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Lets `account` work in a network's folder without giving it the keys: it may make files there and replace its own. `key` and `root.key`, which
/// are read before the process becomes that account, stay whoever's they are, and the sticky bit keeps them from being removed.
///
/// # Errors
/// As the system says.
pub fn hand_over(dir: &Path, account: &Account) -> io::Result<()> {
    chown(dir, None, Some(account.gid))?;
    fs::set_permissions(dir, Permissions::from_mode(0o1770))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_file() && name != KEY && name != ROOT_KEY {
            lchown(entry.path(), Some(account.uid), Some(account.gid))?;
        }
    }
    Ok(())
}

/// Writes all files of a new folder and syncs them.
fn fill(dir: &Path, file: &NetworkFile, key: &SigningKey, root: Option<&SigningKey>) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(dir)?;
    write_key(&dir.join(KEY), key)?;
    if let Some(root) = root {
        write_key(&dir.join(ROOT_KEY), root)?;
    }
    // Room from the start: a vector that grows leaves copies of the secret behind.
    let mut json = Zeroizing::new(Vec::with_capacity(MAX_NETWORK_FILE));
    serde_json::to_writer(&mut *json, file)?;
    write_private(&dir.join(NETWORK), &json)?;
    write_private(&dir.join(BOOTS), b"0\n")?;
    File::open(dir)?.sync_all()
}

fn write_key(path: &Path, key: &SigningKey) -> io::Result<()> {
    let mut text = Zeroizing::new([b'\n'; 65]);
    data_encoding::HEXLOWER.encode_mut(&*key.seed(), &mut text[..64]);
    write_private(path, &*text)
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Replaces one file of a folder, whole or not at all.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, unfinished) = (dir.join(name), dir.join(format!("{UNFINISHED}{name}")));
    let _ = fs::remove_file(&unfinished);
    let replaced = write_private(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, &path))
        .and_then(|()| File::open(dir)?.sync_all());
    if replaced.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    replaced.with_context(|| format!("cannot write {}", path.display()))
}

fn read_key(path: &Path) -> Result<SigningKey> {
    let text = read_private(path, MAX_KEY_FILE)?;
    let mut seed = Zeroizing::new([0; 32]);
    let digits = text.trim_ascii();
    let decoded = digits.len() == 64 && data_encoding::HEXLOWER_PERMISSIVE.decode_mut(digits, &mut *seed).is_ok();
    if !decoded {
        bail!("{} is damaged (not 64 hexadecimal digits); restore it from a backup or join again", path.display());
    }
    Ok(SigningKey::from_seed(&seed))
}

fn read_private(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>> {
    let failed = || format!("cannot read {}", path.display());
    let mode = fs::metadata(path).with_context(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!("{0} is readable by others; run: chmod 600 {0}", path.display());
    }
    read_bounded(path, max).with_context(failed)
}

fn read_bounded(path: &Path, max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(max);
    let mut bytes = Zeroizing::new(Vec::with_capacity(size + 2));
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {max} bytes")));
    }
    Ok(bytes)
}

/// Whether this machine has AES and carry-less multiplication in hardware, which AES-GCM needs to be fast.
pub(super) fn has_hardware_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn user_state() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state"))).map(|base| base.join("meshd"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Certificate, CertificateBody, Kind, NetworkSecret, Roles};

    const NOW: UnixSeconds = 1_800_000_000;

    /// A store in a folder of its own, removed at the end.
    struct Scratch(Store);

    impl Scratch {
        fn new(name: &str) -> Self {
            let base = std::env::temp_dir().join(format!("meshd-store-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&base);
            Self(Store::open(Some(base)).expect("a store"))
        }

        fn network(&self, name: &str, n: u8) -> Result<PathBuf> {
            let (root, key) = (SigningKey::from_seed(&[n; 32]), SigningKey::from_seed(&[n + 1; 32]));
            let id = NetworkId::of_root(&root.peer_id());
            let body = CertificateBody {
                subject: key.peer_id(),
                kind: Kind::Member,
                name: name_of("laptop"),
                roles: Roles::NONE,
                not_before: NOW,
                not_after: NOW + 100,
                grant_until: NOW + 100,
                uses: 0,
            };
            let chain = Chain::of_root(root.peer_id(), Certificate::issue(&root, &id, body));
            let network = NetworkConfig {
                name: name_of(name),
                root: root.peer_id(),
                secret: NetworkSecret::new([7; 32]),
                prefix: "10.70.0.0/16".parse().expect("a prefix"),
            };
            self.0.create(&network, &key, &chain, &[], Some(&root))
        }

        fn complaint(&self, name: &str) -> String {
            format!("{:#}", self.0.load(&name_of(name)).expect_err("must not load"))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.base);
        }
    }

    fn name_of(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn what_was_made_is_what_is_loaded() {
        let store = Scratch::new("round-trip");
        let dir = store.network("home", 1).expect("made");
        let home = store.0.load(&name_of("home")).expect("loaded");
        assert_eq!(home.dir, dir);
        assert_eq!(home.key.peer_id(), SigningKey::from_seed(&[2; 32]).peer_id());
        assert_eq!(home.network.secret.as_bytes(), &[7; 32]);
        assert_eq!(home.membership(NOW).expect("a member").name().as_str(), "laptop");
        assert!(home.root_key().expect("readable").is_some());
        assert!(store.0.find(&home.network.id()).expect("searched").is_some());
        assert!(store.0.find(&NetworkId([0; 32])).expect("searched").is_none());
    }

    #[test]
    fn only_the_owner_can_read_what_was_made() {
        let store = Scratch::new("modes");
        let dir = store.network("home", 1).expect("made");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        for file in fs::read_dir(&dir).expect("a folder") {
            let path = file.expect("an entry").path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }

    #[test]
    fn the_network_meant_is_the_named_or_the_only_one() {
        let store = Scratch::new("choose");
        let choose = |name: Option<&str>| store.0.choose(name.map(name_of).as_ref()).map_err(|error| error.to_string());
        assert!(choose(None).expect_err("none").contains("meshd init"));
        store.network("home", 1).expect("made");
        assert_eq!(choose(None), Ok(name_of("home")));
        assert!(choose(Some("work")).expect_err("unknown").contains("there is: home"));
        store.network("work", 3).expect("made");
        assert!(choose(None).expect_err("two").contains("home, work"));
        assert_eq!(choose(Some("work")), Ok(name_of("work")));
    }

    #[test]
    fn a_second_network_of_the_same_name_leaves_the_first_alone() {
        let store = Scratch::new("twice");
        store.network("home", 1).expect("made");
        assert!(store.network("home", 3).expect_err("taken").to_string().contains("exists already"));
        let home = store.0.load(&name_of("home")).expect("loaded");
        assert_eq!(home.network.root, SigningKey::from_seed(&[1; 32]).peer_id());
    }

    #[test]
    fn a_folder_left_unfinished_by_a_killed_maker_is_swept_away() {
        let store = Scratch::new("sweep");
        store.network("home", 1).expect("made");
        let left = store.0.base.join(format!("{UNFINISHED}work"));
        fs::create_dir(&left).expect("a folder");
        fs::write(left.join(KEY), "half").expect("a file");
        assert_eq!(store.0.networks().expect("listed"), [name_of("home")]);
        store.network("work", 3).expect("made");
        assert!(!left.exists());
    }

    #[test]
    fn each_damage_is_named_with_its_file() {
        let store = Scratch::new("damage");
        let dir = store.network("home", 1).expect("made");
        let key = dir.join(KEY);
        fs::set_permissions(&key, Permissions::from_mode(0o640)).expect("chmod");
        assert!(store.complaint("home").contains(&format!("readable by others; run: chmod 600 {}", key.display())));
        fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("chmod");
        let whole = fs::read(&key).expect("key");
        for bytes in [&b""[..], &whole[..40], &[b'z'; 64], &[b'0'; 4096]] {
            fs::write(&key, bytes).expect("write");
            let complaint = store.complaint("home");
            assert!(complaint.contains("key") && !complaint.contains('\n'), "{complaint}");
        }
        fs::write(&key, "00".repeat(32)).expect("write");
        assert!(store.complaint("home").contains("is not the key of this membership"));
        fs::write(&key, &whole).expect("write");
        let network = dir.join(NETWORK);
        let json = fs::read(&network).expect("json");
        fs::write(&network, &json[..json.len() / 2]).expect("write");
        assert!(store.complaint("home").contains("network is damaged"));
    }

    #[test]
    fn an_expired_membership_says_since_when() {
        let store = Scratch::new("expired");
        store.network("home", 1).expect("made");
        let home = store.0.load(&name_of("home")).expect("loaded");
        let late = home.membership(NOW + 100 + 3 * 86400).expect_err("expired").to_string();
        assert!(late.contains("expired 3 days ago"), "{late}");
        let early = home.membership(NOW - 2 * 86400).expect_err("not yet").to_string();
        assert!(early.contains("begins in 2 days"), "{early}");
    }

    #[test]
    fn every_start_counts_and_a_damaged_count_stops_the_start() {
        let store = Scratch::new("boots");
        let dir = store.network("home", 1).expect("made");
        let home = store.0.load(&name_of("home")).expect("loaded");
        assert_eq!(home.next_boot().expect("counted"), 1);
        assert_eq!(home.next_boot().expect("counted"), 2);
        for text in ["", "x", "4294967295"] {
            fs::write(dir.join(BOOTS), text).expect("write");
            assert!(home.next_boot().is_err(), "{text}");
        }
    }

    #[test]
    fn a_folder_serves_one_process_at_a_time() {
        let store = Scratch::new("lock");
        store.network("home", 1).expect("made");
        let home = store.0.load(&name_of("home")).expect("loaded");
        let lock = home.lock().expect("free");
        let second = home.lock().expect_err("taken").to_string();
        assert!(second.contains(&format!("already running for network home (process {})", std::process::id())));
        drop(lock);
        assert!(home.lock().is_ok());
    }
}
