//! The packet filter as it is written: one rule a line, the first that fits decides.
//!
//! ```text
//! allow from ada, role:admin to any tcp 22     # who may use SSH
//! deny  from any to server tcp 22, 5900-5910
//! deny  from eve
//! default allow
//! ```
//!
//! `from` and `to` name members (by name or peer id) or roles and may be left out (any); then `tcp` or `udp` with ports or without, `icmp`, `protocol` and
//! a number, or nothing (everything). One file serves every machine: each applies the rules whose `to` it is.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::identity::{Name, PeerId, Roles};

/// Rules of a filter: more is a list that nobody reads, and each frame may be held against all of them.
const MAX_RULES: usize = 256;

/// Subjects or ports in one rule.
const MAX_ITEMS: usize = 64;

/// Longest text, bytes: every rule at 200.
pub const MAX_FILTER: usize = MAX_RULES * 200;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is delivered.
    Allow,
    /// It is dropped and counted.
    Deny,
}

/// Who sends or receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Everybody.
    Any,
    /// The member of this name.
    Member(Name),
    /// The member with this key.
    Peer(PeerId),
    /// Every member with this role.
    Role(Roles),
}

/// IP protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP of either family.
    Icmp,
    /// Any other, by its number (IANA).
    Number(u8),
}

impl Protocol {
    /// Its numbers in IPv4 and in IPv6.
    pub fn numbers(self) -> [u8; 2] {
        match self {
            Self::Tcp => [6, 6],
            Self::Udp => [17, 17],
            Self::Icmp => [1, 58],
            Self::Number(number) => [number, number],
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The line it stands in, from 1.
    pub line: usize,
    /// As it is written, without the comment.
    pub text: String,
    /// What it says.
    pub action: Action,
    /// Of packets from one of these.
    pub from: Vec<Subject>,
    /// To one of these.
    pub to: Vec<Subject>,
    /// Of this protocol; `None`: of all.
    pub protocol: Option<Protocol>,
    /// To one of these ports; none: to all.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// In order.
    pub rules: Vec<Rule>,
    /// What becomes of packets that no rule fits.
    pub default: Action,
}

impl Default for Rules {
    fn default() -> Self {
        Self { rules: Vec::new(), default: Action::Allow }
    }
}

impl Rules {
    /// Whether nothing can ever be denied.
    pub fn allow_everything(&self) -> bool {
        self.default == Action::Allow && self.rules.iter().all(|rule| rule.action == Action::Allow)
    }
}

/// Why text is no filter, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct FilterError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Neither `allow` nor `deny` nor `default`.
    #[error("a rule begins with allow, deny or default, not `{0}`")]
    Begin(String),
    /// `default` without one action.
    #[error("`default` wants allow or deny, and nothing else")]
    Default,
    /// A list that is empty or too long.
    #[error("`{0}` wants 1 to {MAX_ITEMS} names, roles (role:NAME) or any")]
    List(&'static str),
    /// No name and no role.
    #[error("`{0}` is no name of a member, no role (role:NAME) and not any")]
    Subject(String),
    /// No protocol.
    #[error("`{0}` is no protocol: tcp, udp, icmp, or protocol and a number")]
    Protocol(String),
    /// No port.
    #[error("`{0}` is no port and no range such as 80-90")]
    Port(String),
    /// Too many rules.
    #[error("a filter has at most {MAX_RULES} rules")]
    Rules,
    /// The text is too long.
    #[error("a filter has at most {MAX_FILTER} bytes")]
    Length,
}

impl FromStr for Rules {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > MAX_FILTER {
            return Err(FilterError { line: 1, fault: Fault::Length });
        }
        let mut all = Self::default();
        for (index, line) in text.lines().enumerate() {
            let at = |fault| FilterError { line: index + 1, fault };
            let line = line.split('#').next().unwrap_or_default().trim();
            let mut words =
                Words(line.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty()).peekable());
            let Some(first) = words.0.next() else { continue };
            match first {
                "default" => match (words.0.next().map(action), words.0.next()) {
                    (Some(Some(action)), None) => all.default = action,
                    (Some(_) | None, _) => return Err(at(Fault::Default)),
                },
                _ if all.rules.len() >= MAX_RULES => return Err(at(Fault::Rules)),
                word => {
                    let action = action(word).ok_or_else(|| at(Fault::Begin(word.chars().take(32).collect())))?;
                    all.rules.push(words.rule(action, line, index + 1).map_err(at)?);
                }
            }
        }
        Ok(all)
    }
}

fn action(word: &str) -> Option<Action> {
    match word {
        "allow" => Some(Action::Allow),
        "deny" => Some(Action::Deny),
        _ => None,
    }
}

/// The words of one line.
struct Words<I: Iterator>(std::iter::Peekable<I>);

impl<'a, I: Iterator<Item = &'a str>> Words<I> {
    fn rule(mut self, action: Action, text: &str, line: usize) -> Result<Rule, Fault> {
        let from = self.subjects("from")?;
        let to = self.subjects("to")?;
        let mut rule = Rule { line, text: text.to_owned(), action, from, to, protocol: None, ports: Vec::new() };
        let Some(word) = self.0.next() else { return Ok(rule) };
        let protocol: Protocol = match word {
            "protocol" => {
                let number = self.0.next().unwrap_or_default();
                Protocol::Number(number.parse().map_err(|_| Fault::Protocol(shortened(number)))?)
            }
            word => word.parse()?,
        };
        rule.protocol = Some(protocol);
        for word in self.0 {
            if !matches!(protocol, Protocol::Tcp | Protocol::Udp) || rule.ports.len() >= MAX_ITEMS {
                return Err(Fault::Port(shortened(word)));
            }
            rule.ports.push(ports(word).ok_or_else(|| Fault::Port(shortened(word)))?);
        }
        Ok(rule)
    }

    /// The list after `keyword`; everybody, if it is not there.
    fn subjects(&mut self, keyword: &'static str) -> Result<Vec<Subject>, Fault> {
        if self.0.next_if_eq(&keyword).is_none() {
            return Ok(vec![Subject::Any]);
        }
        let mut list = Vec::new();
        while let Some(word) =
            self.0.next_if(|word| !matches!(*word, "from" | "to" | "tcp" | "udp" | "icmp" | "protocol"))
        {
            list.push(subject(word)?);
        }
        if list.is_empty() || list.len() > MAX_ITEMS { Err(Fault::List(keyword)) } else { Ok(list) }
    }
}

fn subject(word: &str) -> Result<Subject, Fault> {
    let wrong = || Fault::Subject(shortened(word));
    match word.strip_prefix("role:") {
        Some(role) => role.parse().map(Subject::Role).map_err(|_| wrong()),
        None if word == "any" => Ok(Subject::Any),
        None => {
            let peer = word.parse().map(Subject::Peer).map_err(|_| wrong());
            peer.or_else(|_| word.parse().map(Subject::Member).map_err(|_| wrong()))
        }
    }
}

fn ports(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn shortened(word: &str) -> String {
    word.chars().take(32).collect()
}

impl FromStr for Protocol {
    type Err = Fault;

    fn from_str(word: &str) -> Result<Self, Fault> {
        match word {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "icmp" => Ok(Self::Icmp),
            _ => word.parse().map(Self::Number).map_err(|_| Fault::Protocol(shortened(word))),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_read_as_it_is_written() {
        let text = "# SSH\nallow from ada, role:admin to any tcp 22  # and nobody else\n\ndeny from any to server tcp 22,5900-5910\n\
                    deny from eve\ndeny udp\nallow to bob icmp\ndeny protocol 47\ndefault deny\n";
        let rules: Rules = text.parse().expect("a filter");
        assert_eq!(rules.default, Action::Deny);
        let [ssh, server, eve, udp, ping, gre] = &rules.rules[..] else { panic!("{rules:?}") };
        assert_eq!((ssh.line, ssh.text.as_str()), (2, "allow from ada, role:admin to any tcp 22"));
        assert_eq!(ssh.from, [Subject::Member("ada".parse().expect("a name")), Subject::Role(Roles::ADMIN)]);
        assert_eq!((&ssh.to[..], ssh.protocol), (&[Subject::Any][..], Some(Protocol::Tcp)));
        assert_eq!(server.ports, [22..=22, 5900..=5910]);
        assert_eq!((eve.protocol, eve.action), (None, Action::Deny));
        assert_eq!((udp.protocol, &udp.from[..], &udp.ports[..]), (Some(Protocol::Udp), &[Subject::Any][..], &[][..]));
        assert_eq!(ping.protocol, Some(Protocol::Icmp));
        assert_eq!(gre.protocol, Some(Protocol::Number(47)));
        assert!(!rules.allow_everything() && Rules::default().allow_everything());
    }

    #[test]
    fn a_fault_is_named_with_its_line() {
        for (text, fault) in [
            ("allow\n\nforbid eve", "line 3: a rule begins with allow, deny or default, not `forbid`"),
            ("default", "line 1: `default` wants allow or deny"),
            ("default deny tcp", "line 1: `default` wants allow or deny"),
            ("deny from", "line 1: `from` wants 1 to 64 names"),
            ("deny from tcp 22", "line 1: `from` wants 1 to 64 names"),
            ("deny from role:king", "line 1: `role:king` is no name of a member"),
            ("deny from e_ve", "line 1: `e_ve` is no name of a member"),
            ("deny eve", "line 1: `eve` is no protocol"),
            ("deny protocol", "line 1: `` is no protocol"),
            ("deny protocol 256", "line 1: `256` is no protocol"),
            ("deny tcp ssh", "line 1: `ssh` is no port"),
            ("deny tcp 90-80", "line 1: `90-80` is no port"),
            ("deny icmp 8", "line 1: `8` is no port"),
        ] {
            let said = text.parse::<Rules>().expect_err(text).to_string();
            assert!(said.starts_with(fault), "{text}: {said}");
        }
        assert!("deny\n".repeat(MAX_RULES + 1).parse::<Rules>().is_err());
        assert!("#".repeat(MAX_FILTER + 1).parse::<Rules>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "((allow|deny|default|from|to|tcp|udp|icmp|protocol|role:|any|[0-9]{1,6}|-|,|#|\n|.) ?){0,20}") {
            let _ = text.parse::<Rules>();
        }
    }
}
