//! Where an invite comes from: the command line, standard input or a file.

use std::fs::File;
use std::io::{self, Read};

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

/// Most bytes read: an invite has at most 2400 characters, and a mail or a script may add blank lines.
const MAX_INPUT: usize = 8192;

/// Whether `argument` is the invite itself.
pub(super) fn is_literal(argument: &str) -> bool {
    argument != "-" && !argument.starts_with('@')
}

/// The text of the invite that `argument` means: itself, `-` or `@FILE`.
pub(super) fn invite(argument: &str) -> Result<Zeroizing<String>> {
    if argument == "-" {
        return read(io::stdin().lock(), "standard input");
    }
    match argument.strip_prefix('@') {
        Some(path) => read(File::open(path).with_context(|| format!("cannot open {path}"))?, path),
        None => Ok(Zeroizing::new(argument.to_owned())),
    }
}

fn read(source: impl Read, name: &str) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_INPUT + 2));
    source
        .take(MAX_INPUT as u64 + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read an invite from {name}"))?;
    if text.len() > MAX_INPUT {
        bail!("{name} is too long for an invite; give it the invite alone");
    }
    if text.trim().is_empty() {
        bail!("{name} is empty; an invite begins with `meshd1-`");
    }
    Ok(text)
}
