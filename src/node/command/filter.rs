//! What an operator is told of the packet filter.

use serde::{Deserialize, Serialize};

/// The rules that hold now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterInfo {
    /// In order.
    pub rules: Vec<FilterRuleInfo>,
    /// `allow` or `deny`: what becomes of packets that no rule fits.
    pub default: String,
    /// Packets that were refused because no rule fitted.
    pub refused_by_default: u64,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRuleInfo {
    /// The line it stands in.
    pub line: usize,
    /// As it is written.
    pub rule: String,
    /// Packets that it has refused since the rules were loaded.
    pub refused: u64,
}

/// What becomes of a packet that begins something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterVerdictInfo {
    /// The sender's name.
    pub from: String,
    /// The receiver's.
    pub to: String,
    /// Whether it is delivered.
    pub allowed: bool,
    /// The line of the rule that decides; `None`: the default.
    pub line: Option<usize>,
    /// That rule.
    pub rule: String,
}
