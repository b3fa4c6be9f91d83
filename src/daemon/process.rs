//! The process: what it hides from others on this machine, and whom and how little it is once it has started.
//!
//! Every command [begins](begin) by making itself unreadable: no core dumps, no debugger of the same user; what stood on the
//! command line as a secret is [concealed](conceal). A node, when it has opened what needs root (folders, sockets, the TAP), [confines](confine)
//! itself before it starts a thread: it becomes an account of its own, keeps one capability, and tells the kernel that it will never again
//! run a program, write outside its two folders, or ask for what no VPN needs. Threads inherit all of that, so the order matters.

#![expect(unsafe_code, reason = "credentials, capabilities, prctl(2) and seccomp(2) have no safe wrapper")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use landlock::{
    ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
    path_beneath_rules,
};

use crate::config::UpConfig;

use super::store;

/// The account to become, if there is one of this name.
const ACCOUNT: &str = "meshd";

/// The user and group to become otherwise. It needs no entry anywhere, and is the container image's too.
const UNNAMED: u32 = 4747;

/// The one capability that every running node needs: for addresses and MTU of the TAP, and for large socket buffers.
pub const NET_ADMIN: u64 = 1 << 12;

/// To listen again at a port below 1024, which the directory does when the network has a new secret. Kept only where there is such a port.
pub const NET_BIND_SERVICE: u64 = 1 << 10;

/// What a node may go on reading: name resolution, the kernel's figures, devices of randomness. Its own files are apart.
const READABLE: &[&str] = &["/etc", "/usr", "/lib", "/lib64", "/proc", "/sys", "/run", "/dev"];

/// What no node ever asks of the kernel, and whoever has broken into one would: run programs, look into others, change mounts,
/// namespaces, modules or the clock, and the parts of the kernel with the longest history of holes. A list of what is refused, not of
/// what is allowed: the latter depends on C library, architecture and kernel, and breaks in the field.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// The architecture as seccomp names it (linux/audit.h); elsewhere numbers of system calls would mean something else.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const AUDIT_ARCH: Option<u32> = None;

/// From here on numbers mean x32's system calls, the same ones with shorter pointers.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// Keeps what this process knows out of core dumps, and out of reach of other programs of the same user. For every command: all of
/// them handle keys or invites.
pub fn begin() {
    unreadable();
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is valid for the call, which only reads it.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
}

/// From now on the calling thread has a processor when nobody else wants it, or every tenth moment. For who decides, beside who forwards: a
/// flood of initiations keeps it busy for ever, and must not cost those with a session their share.
pub fn give_way() {
    // SAFETY: numbers only; 0 is the calling thread (setpriority(2), "C library/kernel differences").
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) } != 0 {
        tracing::debug!("the control thread keeps its priority: {}", io::Error::last_os_error());
    }
}

/// No core dump, no ptrace, no /proc/PID/{mem,environ,fd} but for root. A change of the user undoes it.
fn unreadable() {
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Overwrites `secret` in the command line and the environment with which this process was started, where `ps` shows it. Only
/// before there are threads. Somebody who looked earlier has seen it, so files and standard input are the better way.
pub fn conceal(secret: &str) {
    if secret.is_empty() {
        return;
    }
    for (start, end) in argument_areas().unwrap_or_default() {
        // SAFETY: the kernel says that from `start` to `end` there are the strings with which the program was started: its own stack,
        // writable. They are only ever read through pointers, of which nobody holds one now: there is no other thread, and
        // std copies what it gives out.
        let area = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
        overwrite(area, secret.as_bytes());
    }
}

/// Whole strings only, or what follows an equals sign: a short word may stand in a path that is still needed.
fn overwrite(area: &mut [u8], secret: &[u8]) {
    for text in area.split_mut(|byte| *byte == 0) {
        let before = text.len().wrapping_sub(secret.len());
        if text.ends_with(secret) && (before == 0 || text[before - 1] == b'=') {
            text[before..].fill(b'x');
        }
    }
}

/// Where arguments and environment lie: the fields 48 to 51 of /proc/self/stat (proc_pid_stat(5)).
fn argument_areas() -> Option<[(usize, usize); 2]> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name, in parentheses, and may hold anything.
    let fields: Vec<usize> =
        stat[stat.rfind(')')? + 1..].split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let &[arguments, arguments_end, environment, environment_end] = fields.get(45..49)? else { return None };
    let areas = [(arguments, arguments_end), (environment, environment_end)];
    areas.iter().all(|(start, end)| *start > 0 && start <= end).then_some(areas)
}

/// Whom a node becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name, or its number if it has none.
    pub name: String,
    /// User id, not root's.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The account that `chosen` (a name or a number) or, by default, `meshd` or 4747 means. `None`: stay who we are, because we are not
/// root, were told `root`, or are root of a user namespace that has nobody else.
///
/// # Errors
/// When there is no such account, when it cannot be taken, or when 4747 is somebody's.
pub fn account(chosen: Option<&str>) -> Result<Option<Account>> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = match chosen {
        Some("root" | "0") => return Ok(None),
        Some(chosen) => find(&passwd, chosen).with_context(|| {
            format!("there is no account {chosen}; make it (useradd --system {chosen}), or say a number")
        })?,
        None => usual(&passwd)?,
    };
    // SAFETY: no arguments.
    let ourselves = unsafe { libc::geteuid() };
    if ourselves == account.uid || (ourselves != 0 && chosen.is_none()) {
        return Ok(None);
    }
    ensure!(ourselves == 0, "only root can become {}; start meshd as root, or leave --user away", account.name);
    if !is_mapped("/proc/self/uid_map", account.uid) || !is_mapped("/proc/self/gid_map", account.gid) {
        ensure!(chosen.is_none(), "{} does not exist in this user namespace; leave --user away", account.name);
        return Ok(None);
    }
    Ok(Some(account))
}

fn usual(passwd: &str) -> Result<Account> {
    if let Some(account) = find(passwd, ACCOUNT) {
        return Ok(account);
    }
    let account = find(passwd, &UNNAMED.to_string()).expect("a number is an account");
    if account.name != UNNAMED.to_string() {
        bail!(
            "user {UNNAMED} is {} here; make an account for meshd (useradd --system {ACCOUNT}), or say --user",
            account.name
        );
    }
    Ok(account)
}

/// The account called `name` in /etc/passwd, or of that number whether it is there or not; root is none.
fn find(passwd: &str, name: &str) -> Option<Account> {
    let entries = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, uid, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Account { name: name.to_owned(), uid, gid })
    });
    let number = name.parse().ok();
    let mut found = entries.filter(|entry| entry.name == name || Some(entry.uid) == number);
    let unnamed = || Some(Account { name: name.to_owned(), uid: number?, gid: number? });
    found.next().or_else(unnamed).filter(|account| account.uid != 0)
}

/// Whether this user namespace has `id` (user_namespaces(7)).
fn is_mapped(map: &str, id: u32) -> bool {
    let Ok(map) = fs::read_to_string(map) else { return true };
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        matches!(numbers[..], [inside, _, count] if (inside..inside + count).contains(&u64::from(id)))
    })
}

/// A folder held open: it is found by [`Pinned::path`] even when the folders above it are closed to us by then.
#[derive(Debug)]
pub struct Pinned(File);

impl Pinned {
    /// Holds `folder`.
    ///
    /// # Errors
    /// As the system says.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        Ok(Self(File::options().read(true).custom_flags(flags).open(folder)?))
    }

    /// Its path for this process, as long as it is held.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// What the kernel has granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confined {
    /// Landlock: all of what was asked, part of it (an older kernel), or `None` at all.
    pub landlock: Option<bool>,
    /// The filter of system calls.
    pub seccomp: bool,
}

impl Confined {
    /// In words, for the log.
    pub fn told(self) -> String {
        let landlock = match self.landlock {
            Some(true) => "with Landlock",
            Some(false) => "with part of Landlock",
            None => "without Landlock",
        };
        format!("confined {landlock} and {} seccomp", if self.seccomp { "with" } else { "without" })
    }
}

/// Makes of this process what the node of `config` needs and no more: gives `folder` and the runtime folder to `account`, and
/// [confines](confine) itself to them.
///
/// # Errors
/// As [`confine`], and when the folders cannot be given away.
pub fn settle(account: Option<&Account>, config: &UpConfig, folder: Option<&Pinned>) -> Result<()> {
    if let Some(account) = account {
        let given = folder.map_or(Ok(()), |folder| store::hand_over(&folder.path(), account));
        let given = given.and_then(|()| chown(&config.runtime, Some(account.uid), Some(account.gid)));
        given.with_context(|| {
            format!("cannot give the folders of {} to user {}", config.node.network.name, account.name)
        })?;
    }
    let runtime = Pinned::open(&config.runtime)?;
    let folders: Vec<_> = [Some(&runtime), folder].into_iter().flatten().map(Pinned::path).collect();
    let low = config.port.is_some_and(|port| port < 1024);
    let confined = confine(account, &folders, NET_ADMIN | if low { NET_BIND_SERVICE } else { 0 })?;
    let as_whom = account.map_or_else(String::new, |account| format!("runs as user {}, ", account.name));
    tracing::info!("{as_whom}{}", confined.told());
    Ok(())
}

/// Gives up everything but what a running node needs, for good: becomes `account`, if any; keeps `capabilities` (of the first 32) alone, as far as they
/// were there; may
/// write only in `folders`. Call it before the first thread is started: threads that are there already keep what they have.
///
/// # Errors
/// When the kernel refuses to change the user or the capabilities. That it has no Landlock or no seccomp is none.
pub fn confine(account: Option<&Account>, folders: &[PathBuf], capabilities: u64) -> Result<Confined> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    ensure!(threads == 1, "{threads} threads run already: what they may do could not be limited any more");
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).context("cannot give up new privileges")?;
    for capability in 0..64 {
        // Refused without CAP_SETPCAP, and then it does not matter: nothing is executed any more.
        let _ = prctl(libc::PR_CAPBSET_DROP, capability);
    }
    if let Some(account) = account {
        become_account(account).with_context(|| format!("cannot become user {}", account.name))?;
    }
    keep(capabilities).context("cannot give up capabilities")?;
    unreadable();
    let landlock = match landlocked(folders) {
        Ok(RulesetStatus::FullyEnforced) => Some(true),
        Ok(RulesetStatus::PartiallyEnforced) => Some(false),
        Ok(RulesetStatus::NotEnforced) => None,
        Err(error) => {
            tracing::warn!("Landlock does not work here: {error}");
            None
        }
    };
    let seccomp = refuse_system_calls().inspect_err(|error| tracing::warn!("seccomp does not work here: {error}"));
    Ok(Confined { landlock, seccomp: seccomp.unwrap_or(false) })
}

fn become_account(account: &Account) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1)?;
    let Account { uid, gid, .. } = *account;
    // SAFETY: numbers only, and a null list of no groups.
    checked(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: as above.
    checked(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: as above.
    checked(unsafe { libc::setresuid(uid, uid, uid) })?;
    prctl(libc::PR_SET_KEEPCAPS, 0)
}

/// Leaves of what is permitted `capabilities` alone, and nothing inheritable; the ambient set goes with that (capabilities(7)).
fn keep(capabilities: u64) -> io::Result<()> {
    /// linux/capability.h, version 3: two halves of 32 capabilities each.
    const VERSION: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        process: libc::c_int,
    }
    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header { version: VERSION, process: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: both are of the layout that this version has, and live for the call.
    checked(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) })?;
    let kept = halves[0].permitted & capabilities as u32;
    let halves = [Half { effective: kept, permitted: kept, inheritable: 0 }, Half::default()];
    // SAFETY: as above; it only reads them.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) })
}

/// The version of Landlock that this kernel has; 0 if none.
pub fn landlock_version() -> i64 {
    /// linux/landlock.h
    const RULESET_VERSION: libc::c_ulong = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: without attributes, of length 0, the call only answers.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, RULESET_VERSION) };
    version.max(0)
}

/// Beneath `folders` everything but to execute; reading in a few places; no file anywhere else. Nobody outside is signalled.
fn landlocked(folders: &[PathBuf]) -> Result<RulesetStatus, landlock::RulesetError> {
    // The first with everything that we ask for; on a kernel with less, less of it is enforced.
    let abi = ABI::V6;
    let everything = AccessFs::from_all(abi);
    let own = everything & !AccessFs::Execute;
    let status = Ruleset::default()
        .handle_access(everything)?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(READABLE, AccessFs::from_read(abi) & !AccessFs::Execute))?
        .add_rules(path_beneath_rules(folders, own))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Has the kernel answer [`REFUSED`] with EPERM. False on an architecture whose numbers we do not know.
fn refuse_system_calls() -> io::Result<bool> {
    /// linux/seccomp.h: do not slow the whole process down against speculation; it would cost a tenth on kernels before 5.16.
    const SPEC_ALLOW: libc::c_ulong = 1 << 2;
    const SET_MODE_FILTER: libc::c_ulong = 1;
    let Some(architecture) = AUDIT_ARCH else { return Ok(false) };
    let filter = program(architecture);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` and the filter it points to live for the call, which copies them.
    checked(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, SPEC_ALLOW, &raw const program) })?;
    Ok(true)
}

/// In classic BPF: is it our architecture, is the number one of those? It depends on nothing else, so that the kernel
/// keeps its verdicts in a bitmap and what is allowed costs next to nothing.
fn program(architecture: u32) -> Vec<libc::sock_filter> {
    // Offsets in struct seccomp_data.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    let give = |verdict| step(libc::BPF_RET | libc::BPF_K, verdict, 0, 0);
    let equal = |value, yes, no| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
    let refusal = give(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let mut filter = vec![load(ARCHITECTURE), equal(architecture, 1, 0), refusal, load(NUMBER)];
    #[cfg(target_arch = "x86_64")]
    filter.extend([step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32, 0, 1), refusal]);
    for (index, number) in REFUSED.iter().enumerate() {
        // To the last step, over what is left of the list and the one that allows.
        filter.push(equal(*number as u32, (REFUSED.len() - index) as u8, 0));
    }
    filter.extend([give(libc::SECCOMP_RET_ALLOW), refusal]);
    filter
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: numbers only.
    checked(unsafe { libc::prctl(option, value, 0, 0, 0) })
}

fn checked(result: impl Into<i64>) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nmallory:x:4747:100::/:/bin/sh\nmeshd:x:990:980::/:/usr/sbin/nologin\n";

    fn account(name: &str, uid: u32, gid: u32) -> Account {
        Account { name: name.to_owned(), uid, gid }
    }

    #[test]
    fn an_account_is_found_by_name_or_number_and_root_is_none() {
        assert_eq!(find(PASSWD, "meshd"), Some(account("meshd", 990, 980)));
        assert_eq!(find(PASSWD, "990"), Some(account("meshd", 990, 980)));
        assert_eq!(find(PASSWD, "5000"), Some(account("5000", 5000, 5000)));
        for none in ["root", "0", "nobody", ""] {
            assert_eq!(find(PASSWD, none), None, "{none}");
        }
    }

    #[test]
    fn the_usual_account_is_never_somebody_elses() {
        assert_eq!(usual(PASSWD).expect("there is one"), account("meshd", 990, 980));
        assert_eq!(usual("").expect("none is needed"), account("4747", 4747, 4747));
        let taken = usual("mallory:x:4747:100::/:/bin/sh\n").expect_err("it is mallory's").to_string();
        assert!(taken.contains("is mallory here") && taken.contains("useradd"), "{taken}");
    }

    #[test]
    fn a_secret_is_overwritten_wherever_it_stands() {
        let mut area = *b"secret\0--code=secret\0A=secret\0B=/secret\0asecret\0sec\0\0";
        overwrite(&mut area, b"secret");
        assert_eq!(&area, b"xxxxxx\0--code=xxxxxx\0A=xxxxxx\0B=/secret\0asecret\0sec\0\0");
    }

    #[test]
    fn every_refused_system_call_ends_at_the_refusal_and_all_others_at_the_permission() {
        let filter = program(7);
        let run = |architecture: u32, number: u32| {
            let (mut at, mut loaded) = (0, 0);
            loop {
                let libc::sock_filter { code, jt, jf, k } = filter[at];
                let jump = |met: bool| 1 + usize::from(if met { jt } else { jf });
                match u32::from(code) {
                    code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                        loaded = if k == 0 { number } else { architecture };
                        at += 1;
                    }
                    code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => at += jump(loaded == k),
                    code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => at += jump(loaded >= k),
                    _ => return k == libc::SECCOMP_RET_ALLOW,
                }
            }
        };
        for number in 0..600 {
            assert_eq!(run(7, number), !REFUSED.contains(&number.into()), "{number}");
            assert!(!run(8, number), "{number} of another architecture");
        }
        #[cfg(target_arch = "x86_64")]
        assert!(!run(7, X32 + 1));
    }

    #[test]
    fn the_strings_of_our_own_start_are_found() {
        let [(start, end), (environment, _)] = argument_areas().expect("the kernel says where they are");
        let length: usize = std::env::args_os().map(|argument| argument.len() + 1).sum();
        assert_eq!(end - start, length);
        assert!(environment >= end);
    }

    #[test]
    fn who_is_confined_runs_no_program_and_writes_into_its_folder_only() {
        use std::os::unix::process::CommandExt as _;
        let folder = std::env::temp_dir().join(format!("meshd-confined-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let (inside, outside) = (folder.join("inside"), std::env::temp_dir().join("meshd-outside"));
        let pinned = Pinned::open(&folder).expect("it is there");
        let mut command = std::process::Command::new("/bin/true");
        let confined = move || {
            let confined =
                confine(None, &[pinned.path()], NET_ADMIN).map_err(|error| io::Error::other(format!("{error:#}")))?;
            let found = format!("{confined:?} {:?}", File::create(&outside).map_err(|error| error.kind()));
            fs::write(pinned.path().join("new"), found)?;
            fs::rename(pinned.path().join("new"), &inside)
        };
        // SAFETY: what runs between fork and exec allocates, which the C library's allocator is ready for, and takes no lock of ours.
        let ran = unsafe { command.pre_exec(confined) }.status();
        let found = fs::read_to_string(folder.join("inside")).expect("the child wrote it");
        fs::remove_dir_all(&folder).expect("clean up");
        let landlock = if landlock_version() >= 6 { "Some(true)" } else { "" };
        assert!(found.contains(landlock) && found.contains("seccomp: true"), "{found}");
        assert!(landlock.is_empty() || found.ends_with("Err(PermissionDenied)"), "{found}");
        assert_eq!(ran.map_err(|error| error.kind()).expect_err("nothing is run"), io::ErrorKind::PermissionDenied);
    }
}
