//! Party mode: a network out of five words.
//!
//! Whoever has the words has the network: its root key and its secret are made of them by Argon2id, the same on every machine, and nothing
//! is kept. So everybody with the code is equal, can let others in, and cannot be expelled.
//!
//! What a stranger on the same LAN records can be tried against guesses at home, so the code must withstand that: it is drawn, never
//! chosen, and a guess is made dear. Five of 1024 words are 50 bits; at a quarter of a second of a processor and 128 MiB of memory for
//! each guess, half of all codes take 4000 years of a thousand processor cores. A graphics card is bound by its memory: 128 MiB moved eight
//! times for a guess are about a thousand guesses a second at 1 TB/s, so a thousand of them need twenty years on average.

use std::fmt;
use std::str::FromStr;

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::key::{NetworkSecret, SigningKey};
use super::words::WORDS;

/// Words of a code. Four would be 40 bits: a week of a thousand graphics cards.
const LENGTH: usize = 5;

/// Bits that a word stands for.
const BITS: u32 = 10;

/// Letters by which a word is known.
const TELLING: usize = 4;

/// What a guess costs (RFC 9106, section 4): KiB of memory, passes over it, threads. Twice as much memory would not fit beside a
/// game on a small machine; more passes would keep people waiting.
const MEMORY: u32 = 128 * 1024;
const PASSES: u32 = 3;
const THREADS: u32 = 1;

/// The same for everybody: there is nothing else that all know before they meet. So a table of all codes would break every party; it
/// takes as long as breaking two.
const SALT: &[u8] = b"meshd party code v1";

/// Why text is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartyCodeError {
    /// Too few or too many words.
    #[error("a party code has {LENGTH} words, this has {0}; `meshd party` without --code makes one")]
    Count(usize),
    /// A word that is not in the list.
    #[error("`{word}` is no word of a party code{hint}; `meshd party` without --code makes one")]
    Word {
        /// As it was typed, cut short.
        word: String,
        /// One that begins alike.
        hint: Hint,
    },
}

/// A word that may have been meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint(Option<&'static str>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |word| write!(f, " (`{word}`?)"))
    }
}

/// Five words. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PartyCode([u16; LENGTH]);

impl PartyCode {
    /// The code of 8 random bytes, drawn by the caller.
    pub fn of_random(bytes: [u8; 8]) -> Self {
        let bits = u64::from_le_bytes(bytes);
        Self(std::array::from_fn(|index| (bits >> (BITS * index as u32)) as u16 & ((1 << BITS) - 1)))
    }

    /// The network that these words are: its root key and its secret. Takes a quarter of a second and 128 MiB.
    pub fn network(&self) -> (SigningKey, NetworkSecret) {
        let params = Params::new(MEMORY, PASSES, THREADS, None).expect("the constants are in range");
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut keys = Zeroizing::new([0; 64]);
        let text = Zeroizing::new(self.to_string());
        argon2
            .hash_password_into(text.as_bytes(), SALT, &mut *keys)
            .expect("lengths are in range, and there is memory");
        let half = |from: usize| Zeroizing::new(std::array::from_fn(|at| keys[from + at]));
        (SigningKey::from_seed(&half(0)), NetworkSecret::new(*half(32)))
    }
}

impl fmt::Display for PartyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, number) in self.0.iter().enumerate() {
            let dash = if index == 0 { "" } else { "-" };
            write!(f, "{dash}{}", words().nth(usize::from(*number)).expect("ten bits are a word"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for PartyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartyCode(..)")
    }
}

impl FromStr for PartyCode {
    type Err = PartyCodeError;

    /// Words in any case, with anything but letters between them; of each the first four letters count.
    fn from_str(text: &str) -> Result<Self, PartyCodeError> {
        let typed = || text.split(|letter: char| !letter.is_alphabetic()).filter(|word| !word.is_empty());
        let count = typed().count();
        if count != LENGTH {
            return Err(PartyCodeError::Count(count));
        }
        let mut numbers = [0; LENGTH];
        for (number, word) in numbers.iter_mut().zip(typed()) {
            *number = number_of(word)?;
        }
        Ok(Self(numbers))
    }
}

fn words() -> impl Iterator<Item = &'static str> {
    WORDS.split_whitespace()
}

fn number_of(typed: &str) -> Result<u16, PartyCodeError> {
    let word: String = typed.chars().take(16).flat_map(char::to_lowercase).collect();
    let telling = |word: &str| word.chars().take(TELLING).collect::<String>();
    let start = telling(&word);
    let found = words().position(|listed| telling(listed) == start);
    found.map(|number| number as u16).ok_or_else(|| {
        let alike = |letters: usize| {
            let begin: String = word.chars().take(letters).collect();
            words().find(|listed| listed.starts_with(&begin))
        };
        PartyCodeError::Word { hint: Hint(alike(3).or_else(|| alike(2))), word: word.clone() }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_words_are_1024_sorted_and_told_apart_by_four_letters() {
        let list: Vec<_> = words().collect();
        assert_eq!(list.len(), 1 << BITS);
        assert!(list.is_sorted());
        assert!(
            list.iter().all(|word| (3..=8).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_lowercase()))
        );
        let telling: BTreeSet<_> = list.iter().map(|word| &word[..word.len().min(TELLING)]).collect();
        assert_eq!(telling.len(), list.len());
    }

    #[test]
    fn a_code_is_read_however_it_is_said() {
        let code = PartyCode::of_random([0x5a; 8]);
        let text = code.to_string();
        assert_eq!(text.split('-').count(), LENGTH);
        let shortened: Vec<_> = text.split('-').map(|word| &word[..word.len().min(TELLING)]).collect();
        for said in
            [text.clone(), text.to_uppercase(), text.replace('-', " , "), format!("\n{text}\n"), shortened.join(" ")]
        {
            assert_eq!(said.parse(), Ok(code.clone()), "{said}");
        }
        assert_eq!(format!("{code:?}"), "PartyCode(..)");
    }

    #[test]
    fn a_slip_is_named_and_a_code_of_ones_own_is_refused() {
        assert_eq!("hunter2".parse::<PartyCode>(), Err(PartyCodeError::Count(1)));
        let slip = "tiger lamp ocean violin bick".parse::<PartyCode>().expect_err("bick is none").to_string();
        assert!(slip.starts_with("`bick` is no word of a party code (`bicycle`?)"), "{slip}");
        let long = format!("tiger lamp ocean {} brick", "ü".repeat(9999)).parse::<PartyCode>().expect_err("no word");
        assert!(long.to_string().len() < 200, "{long}");
    }

    #[test]
    fn the_same_words_are_the_same_network_on_every_machine_and_other_words_another() {
        let of = |text: &str| {
            let (root, secret) = text.parse::<PartyCode>().expect("a code").network();
            (root.peer_id(), *secret.as_bytes())
        };
        let (root, secret) = of("tiger lamp ocean violin brick");
        // What every version must make of these words, or two versions never meet: the reference implementation does.
        assert_eq!(root.to_string(), "12D3KooWCDASVZVKyA4H1v9aCCJ13koeuqSfq2m6CxumacxMW9R7");
        assert_eq!(
            data_encoding::HEXLOWER.encode(&secret),
            "78b328a89900122af5ba60641992b05a46a8f4849923355390778edd506c43de"
        );
        let (other_root, other_secret) = of("tiger lamp ocean violin bridge");
        assert!(root != other_root && secret != other_secret);
        assert_ne!(root.0, secret);
    }

    proptest! {
        #[test]
        fn every_random_code_is_read_back(bytes: [u8; 8]) {
            let code = PartyCode::of_random(bytes);
            prop_assert_eq!(code.to_string().parse(), Ok(code));
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = text.parse::<PartyCode>();
        }
    }
}
