//! Where an invite or a party code comes from: the command line, standard input, a file, or a question.
#![expect(clippy::print_stderr, reason = "a question stands beside its answer, not in the output")]

use std::fs::{self, File};
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

use crate::config::filter::MAX_FILTER;

/// Most bytes read: an invite has at most 2400 characters, and a mail or a script may add blank lines.
const MAX_INPUT: usize = 8192;

/// Whether `argument` is the secret itself.
pub(super) fn is_literal(argument: &str) -> bool {
    argument != "-" && !argument.starts_with('@')
}

/// The text of the invite that `argument` means: itself, `-` or `@FILE`.
pub(super) fn invite(argument: &str) -> Result<Zeroizing<String>> {
    let text = text(argument)?;
    if text.trim().is_empty() && !is_literal(argument) {
        bail!("{} is empty; an invite begins with `meshd1-`", source(argument));
    }
    Ok(text)
}

/// The text of the party code that `words` mean: themselves, `-` or `@FILE`; without any, who sits there is asked.
pub(super) fn party_code(words: &[String]) -> Result<Zeroizing<String>> {
    match words {
        [] if io::stdin().is_terminal() => {
            eprint!("Party code: ");
            let mut line = Zeroizing::new(String::with_capacity(MAX_INPUT));
            io::stdin().lock().take(MAX_INPUT as u64).read_line(&mut line)?;
            Ok(line)
        }
        [] => text("-"),
        [word] => text(word),
        words => Ok(Zeroizing::new(words.join(" "))),
    }
}

/// The text of a packet filter in `file`, or on standard input if that is `-`.
pub(super) fn filter(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .lock()
            .take(MAX_FILTER as u64 + 1)
            .read_to_string(&mut text)
            .context("cannot read standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn text(argument: &str) -> Result<Zeroizing<String>> {
    if argument == "-" {
        return read(io::stdin().lock(), source(argument));
    }
    match argument.strip_prefix('@') {
        Some(path) => read(File::open(path).with_context(|| format!("cannot open {path}"))?, path),
        None => Ok(Zeroizing::new(argument.to_owned())),
    }
}

fn source(argument: &str) -> &str {
    argument.strip_prefix('@').unwrap_or("standard input")
}

fn read(source: impl Read, name: &str) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_INPUT + 2));
    let read = source.take(MAX_INPUT as u64 + 1).read_to_string(&mut text);
    read.with_context(|| format!("cannot read {name}"))?;
    if text.len() > MAX_INPUT {
        bail!("{name} is too long; give nothing but what is asked for");
    }
    Ok(text)
}
