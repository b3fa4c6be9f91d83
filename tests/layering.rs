//! The house keeps its shape: who may import whom, which files may touch the operating system, how long a room may be.
//!
//! The compiler cannot say it (one crate), so this test reads the sources: comments and strings are cut out, the rest is
//! a list of words with their lines. A failure names file, line, what is wrong and what to do about it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Who may import whom: the table of ARCHITECTURE.md.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("identity", &[]),
    ("wire", &["identity"]),
    ("config", &["identity", "wire"]),
    ("session", &["identity", "wire"]),
    ("nat", &["identity", "wire"]),
    ("dht", &["identity", "wire"]),
    ("tap", &["wire"]),
    ("switch", &["identity", "wire", "session"]),
    ("node", &["identity", "wire", "config", "session", "nat", "dht", "switch"]),
    ("daemon", &["identity", "wire", "config", "session", "nat", "dht", "tap", "switch", "node"]),
    ("cli", &["config", "identity", "node", "daemon"]),
    ("main", &["config", "identity", "node", "daemon", "cli"]),
    ("netsim", &["identity", "wire", "config", "dht", "switch", "node"]),
];

/// Files that talk to the operating system; everything else is pure. A name ending in `/` is a folder.
const OS_FILES: &[&str] = &[
    "src/main.rs",
    "src/cli.rs",
    "src/cli/",
    "src/daemon/",
    "src/dht/beacon.rs",
    "src/dht/beacon/",
    "src/dht/swarm.rs",
    "src/dht/swarm/",
    "src/tap/device.rs",
    "src/tap/queue.rs",
    "netsim/src/main.rs",
    "netsim/src/netns.rs",
    "netsim/src/netns/",
];

/// The files of netsim that read a clock once (a virtual world needs some instant to begin at) and the environment (a
/// failed run is repeated by its seed).
const WORLD_FILES: &[&str] = &["netsim/src/world.rs", "netsim/src/seed.rs"];

/// Files that may say `unsafe`, each line of it with a SAFETY comment.
const UNSAFE_FILES: &[&str] = &["src/tap/device.rs", "src/tap/queue.rs", "src/daemon/"];

/// What a pure room never names: the I/O crates, and the parts of std that do I/O or read clocks.
const IMPURE_WORDS: &[&str] = &[
    "libp2p",
    "tokio",
    "libc",
    "socket2",
    "quinn_udp",
    "mdns_sd",
    "tun_rs",
    "rtnetlink",
    "getrandom",
    "anyhow",
    "futures",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "SystemTime",
    "thread_rng",
];

/// `std::…` modules that a pure room never enters.
const IMPURE_STD: &[&str] = &["fs", "thread", "process", "env", "os"];

/// Lines before the tests: a room is about 600; the rest is for the last sentence.
const MAX_LINES: usize = 620;

#[test]
fn rooms_import_only_what_the_table_allows() {
    let mut faults = Faults::default();
    for file in sources() {
        let may = MAY_IMPORT.iter().find(|(room, _)| *room == file.room).map(|(_, may)| *may);
        let Some(may) = may else {
            faults.say(
                &file,
                1,
                format!("the room `{}` is in no table: add it to MAY_IMPORT here and to ARCHITECTURE.md", file.room),
            );
            continue;
        };
        for (line, path) in file.house_paths() {
            let target = path[0].as_str();
            if target == file.room || !MAY_IMPORT.iter().any(|(room, _)| *room == target) {
                continue;
            }
            if !may.contains(&target) {
                let allowed = if may.is_empty() { "nothing".to_owned() } else { may.join(", ") };
                faults.say(&file, line, format!("`{}` imports `{target}`; it may import {allowed}", file.room));
            }
            if matches!(file.room.as_str(), "cli" | "main") && target == "node" && !is_operators(&path) {
                faults.say(
                    &file,
                    line,
                    format!(
                        "`{}` may use only Command, Reply, Status and *Info of `node`, not `{}`",
                        file.room,
                        path.join("::")
                    ),
                );
            }
        }
    }
    faults.verdict();
}

#[test]
fn pure_rooms_name_no_clock_no_socket_and_no_task() {
    let mut faults = Faults::default();
    for file in sources().iter().filter(|file| !file.is_one_of(OS_FILES)) {
        let world = file.is_one_of(WORLD_FILES);
        for (index, word) in file.words.iter().enumerate().take_while(|(_, word)| word.line < file.tests_from) {
            if IMPURE_WORDS.contains(&word.text.as_str()) && !file.is_feature_gate(index) {
                faults.say(
                    file,
                    word.line,
                    format!("a pure room names `{}`; the I/O around it does such things", word.text),
                );
            }
            if word.text == "std"
                && let Some(next) = file.segment_after(index)
                && IMPURE_STD.contains(&next)
                && !(world && matches!(next, "env" | "thread"))
            {
                faults.say(
                    file,
                    word.line,
                    format!("a pure room enters `std::{next}`; the I/O around it does such things"),
                );
            }
        }
    }
    faults.verdict();
}

#[test]
fn only_named_files_lift_the_bans() {
    let mut faults = Faults::default();
    for file in sources() {
        for word in file.words.iter().take_while(|word| word.line < file.tests_from) {
            let (may, what) = match word.text.as_str() {
                "disallowed_methods" => (file.is_one_of(OS_FILES) || file.is_one_of(WORLD_FILES), "OS_FILES"),
                "unsafe_code" | "unsafe" => (file.is_one_of(UNSAFE_FILES), "UNSAFE_FILES"),
                _ => continue,
            };
            if !may {
                faults.say(&file, word.line, format!("`{}` here, but this file is not among {what}", word.text));
            }
        }
    }
    faults.verdict();
}

#[test]
fn a_file_opens_with_its_story_and_is_no_longer_than_a_room() {
    let mut faults = Faults::default();
    for file in sources() {
        if !file.text.starts_with("//! ") {
            faults.say(&file, 1, "the file does not open with its `//!` story".to_owned());
        }
        let lines = (file.tests_from - 1).min(file.text.lines().count());
        if lines > MAX_LINES {
            faults.say(
                &file,
                MAX_LINES,
                format!("{lines} lines before the tests, {MAX_LINES} at most: split the room"),
            );
        }
    }
    faults.verdict();
}

/// What `cli` and `main` may use of the node: what goes over the API socket.
fn is_operators(path: &[String]) -> bool {
    let name = path.iter().skip(1).find(|name| *name != "command");
    name.is_none_or(|name| matches!(name.as_str(), "Command" | "Reply" | "Status") || name.ends_with("Info"))
}

#[derive(Default)]
struct Faults(String);

impl Faults {
    fn say(&mut self, file: &Source, line: usize, what: String) {
        writeln!(self.0, "  {}:{line}: {what}", file.path).expect("a String takes everything");
    }

    fn verdict(self) {
        assert!(self.0.is_empty(), "the house has lost its shape:\n{}", self.0);
    }
}

struct Word {
    line: usize,
    text: String,
}

struct Source {
    /// From the root of the workspace.
    path: String,
    room: String,
    /// Module depth below the crate root: how many `super` lead out of the crate's rooms.
    depth: usize,
    text: String,
    words: Vec<Word>,
    /// The line of `#[cfg(test)] mod`, or one beyond the last; 1 in a file that is nothing but tests.
    tests_from: usize,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a source file is readable");
        let words = words(&text);
        let tests_from = match path.file_stem().and_then(|stem| stem.to_str()) {
            Some("tests" | "testing") => 1,
            _ => begin_of_tests(&words).unwrap_or(text.lines().count() + 1),
        };
        let path = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        let (room, depth) = match path.strip_prefix("src/") {
            Some(inside) => {
                let parts: Vec<_> = inside.trim_end_matches(".rs").split('/').collect();
                let depth = parts.len() - usize::from(parts.last() == Some(&"mod"));
                (parts[0].to_owned(), depth)
            }
            None => ("netsim".to_owned(), usize::MAX),
        };
        Self { path, room, depth, text, words, tests_from }
    }

    fn is_one_of(&self, files: &[&str]) -> bool {
        files.iter().any(|file| if file.ends_with('/') { self.path.starts_with(file) } else { self.path == *file })
    }

    /// `feature = "tokio"` and `dep:libc` are strings and already gone; `cfg(…)` idents are not names of crates.
    fn is_feature_gate(&self, index: usize) -> bool {
        index >= 2 && self.words[index - 1].text == "(" && self.words[index - 2].text == "cfg"
    }

    fn segment_after(&self, index: usize) -> Option<&str> {
        let colons = self.words.get(index + 1)?.text == ":" && self.words.get(index + 2)?.text == ":";
        colons.then(|| self.words.get(index + 3).map(|word| word.text.as_str())).flatten()
    }

    /// Every path into a room, from `crate::`, `meshd::` or enough `super::`, with its line; groups are opened.
    fn house_paths(&self) -> Vec<(usize, Vec<String>)> {
        let mut found = Vec::new();
        let mut index = 0;
        while index < self.words.len() {
            let mut at = index;
            let mut supers = 0;
            while self.words[at].text == "super" && self.segment_after(at).is_some() {
                supers += 1;
                at += 3;
            }
            let is_root = match self.words[index].text.as_str() {
                "crate" => self.room != "netsim" && self.words.get(index.wrapping_sub(1)).is_none_or(|w| w.text != "("),
                "meshd" => self.room == "netsim" || self.room == "main",
                "super" => supers >= self.depth,
                _ => false,
            };
            if supers > 0 && is_root {
                self.collect(at, Vec::new(), &mut found);
            } else if is_root && self.segment_after(index).is_some() {
                self.collect(index + 3, Vec::new(), &mut found);
            }
            index = at.max(index + 1);
        }
        found
    }

    /// Reads one path, or a `{…}` of them, from `at` on; returns where it ends.
    fn collect(&self, mut at: usize, mut path: Vec<String>, found: &mut Vec<(usize, Vec<String>)>) -> usize {
        let line = self.words.get(at).map_or(0, |word| word.line);
        while let Some(word) = self.words.get(at) {
            if word.text == "{" {
                at += 1;
                while self.words.get(at).is_some_and(|word| word.text != "}") {
                    at = self.collect(at, path.clone(), found).max(at + 1);
                    if self.words.get(at).is_some_and(|word| word.text == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            path.push(word.text.clone());
            match self.segment_after(at) {
                Some(_) => at += 3,
                None => {
                    at += 1;
                    break;
                }
            }
        }
        if !path.is_empty() {
            found.push((line, path));
        }
        at
    }
}

/// The line of the first `#[cfg(test)]` before a `mod … {`.
fn begin_of_tests(words: &[Word]) -> Option<usize> {
    let is_test = |at: usize| {
        words[at..].iter().take(7).map(|word| word.text.as_str()).eq(["#", "[", "cfg", "(", "test", ")", "]"])
    };
    (0..words.len()).filter(|at| is_test(*at)).find_map(|at| {
        let item = words[at + 7..].iter().position(|word| matches!(word.text.as_str(), "{" | ";"))?;
        let inline = words[at + 7 + item].text == "{";
        let module = words[at + 7..at + 7 + item].iter().any(|word| word.text == "mod");
        (inline && module).then_some(words[at].line)
    })
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    let mut folders: Vec<PathBuf> = vec![root.join("src"), root.join("netsim/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a source folder is readable") {
            let path = entry.expect("an entry is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && path != root.join("src/lib.rs") {
                files.insert(path.clone(), Source::read(root, &path));
            }
        }
    }
    assert!(files.len() > 20, "only {} sources found: is this the root of the house?", files.len());
    files.into_values().collect()
}

/// The words of Rust source: identifiers and single signs, without comments, strings, character literals, lifetimes.
fn words(text: &str) -> Vec<Word> {
    let bytes = text.as_bytes();
    let (mut words, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = match rest {
            [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => block_comment(rest),
            [b'"', ..] => string(rest),
            [b'\'', b'\\', ..] => 3 + rest[3..].iter().position(|&b| b == b'\'').map_or(0, |end| end + 1),
            [b'\'', ..] => quote(rest),
            [b'r' | b'b' | b'c', ..] if literal_prefix(rest).is_some() => literal_prefix(rest).expect("just checked"),
            [first, ..] if first.is_ascii_alphanumeric() || *first == b'_' => {
                let end = rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_').unwrap_or(rest.len());
                words.push(Word { line, text: text[at..at + end].to_owned() });
                end
            }
            [first, ..] => {
                if first.is_ascii() && !first.is_ascii_whitespace() {
                    words.push(Word { line, text: char::from(*first).to_string() });
                }
                1
            }
            [] => 1,
        };
        line += rest[..end.min(rest.len())].iter().filter(|&&b| b == b'\n').count();
        at += end;
    }
    words
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string that begins with its quote.
fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// A character literal or a lifetime.
fn quote(rest: &[u8]) -> usize {
    let text = std::str::from_utf8(rest).unwrap_or_default();
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 1 + rest[1..].iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_').unwrap_or(0),
    }
}

/// The length of a raw, byte or C string or byte literal that begins here.
fn literal_prefix(rest: &[u8]) -> Option<usize> {
    let letters = rest.iter().take(2).take_while(|b| matches!(b, b'r' | b'b' | b'c')).count();
    let raw = rest[..letters].contains(&b'r');
    let hashes = if raw { rest[letters..].iter().take_while(|&&b| b == b'#').count() } else { 0 };
    let start = letters + hashes;
    match rest.get(start)? {
        b'"' if raw => {
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let body = &rest[start + 1..];
            Some(start + 1 + body.windows(close.len()).position(|w| w == close).unwrap_or(body.len()) + close.len())
        }
        b'"' => Some(start + string(&rest[start..])),
        b'\'' if rest[0] == b'b' && letters == 1 => match rest.get(2)? {
            b'\\' => Some(4 + rest[4..].iter().position(|&b| b == b'\'').map_or(0, |end| end + 1)),
            _ => Some(4),
        },
        _ => None,
    }
}

#[test]
fn the_reader_sees_code_and_no_comments_or_strings() {
    let text = "use crate::{wire::Batch, node::{Node, event}}; // crate::daemon\n/* tokio /* libc */ */ let a = \"libp2p \\\" x\";\n\
                let b = r#\"std::fs \"# ; let c = 'x'; let d: &'static str = b\"tokio\"; let e = '\\''; super::super::dht::Event;";
    let words = words(text);
    for gone in ["daemon", "tokio", "libc", "libp2p", "fs", "x"] {
        assert!(words.iter().all(|word| word.text != gone), "{gone} should be gone");
    }
    let file = Source {
        path: "src/tap/queue.rs".into(),
        room: "tap".into(),
        depth: 2,
        text: text.into(),
        tests_from: 99,
        words,
    };
    let paths: Vec<_> =
        file.house_paths().into_iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
    assert_eq!(paths, ["1 wire::Batch", "1 node::Node", "1 node::event", "3 dht::Event"]);
}
