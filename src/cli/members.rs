//! What people and programs read of members' comings and goings: invites, revocations.

use anyhow::Result;

use crate::daemon::admin::{Expelled, InviteInfo};

use super::render::{print, print_json, table};

/// After `revoke`.
pub(super) fn expelled(json: bool, typed: &str, expelled: &Expelled) -> Result<()> {
    if json {
        return print_json(expelled);
    }
    let name = expelled.name.as_deref().unwrap_or(typed);
    let mut text = match expelled.missing {
        0 => format!("{name} is no member any more.\n"),
        1 => format!("{name} is out once another admin says so too: `meshd revoke {typed}` there.\n"),
        more => format!("{name} is out once {more} other admins say so too: `meshd revoke {typed}` there.\n"),
    };
    for (names, what) in [(&expelled.fallen, "Expelled with it"), (&expelled.kept, "Kept")] {
        if !names.is_empty() {
            text.push_str(&format!("{what}: {}\n", names.join(", ")));
        }
    }
    if !expelled.told {
        text.push_str("meshd is not running here: the others hear of it once it runs.\n");
    }
    print(&text)
}

/// After `invites --withdraw`.
pub(super) fn withdrawn(json: bool, invite: &InviteInfo) -> Result<()> {
    if json {
        return print_json(invite);
    }
    print(&format!(
        "Nobody joins any more by the invite {} ({}). Members that had joined and been met stay: {}.\n",
        invite.name,
        short(&invite.key),
        invite.redeemed
    ))
}

/// The answer to `invites`.
pub(super) fn invites(json: bool, invites: &[InviteInfo]) -> Result<()> {
    if json {
        return print_json(&invites);
    }
    if invites.is_empty() {
        return print("no invite is known here; `meshd invite` makes one\n");
    }
    let rows = invites.iter().map(|invite| {
        let uses = if invite.uses == 0 { "any".to_owned() } else { invite.uses.to_string() };
        let roles = if invite.roles.is_empty() { "member".to_owned() } else { invite.roles.join(",") };
        let members = if invite.members.is_empty() { "-".to_owned() } else { invite.members.join(",") };
        [
            short(&invite.key).to_owned(),
            invite.name.clone(),
            invite.state.to_owned(),
            format!("{}/{uses}", invite.redeemed),
            roles,
            members,
        ]
    });
    print(&table(["KEY", "NAME", "STATE", "USED", "ROLES", "MEMBERS"], rows))
}

/// The last eight characters, as for peers.
fn short(key: &str) -> &str {
    key.get(key.len().saturating_sub(8)..).unwrap_or(key)
}
