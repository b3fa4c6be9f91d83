//! The one way bytes become values and back: postcard, made canonical.
//!
//! postcard alone ignores trailing bytes and accepts non-minimal varints, so two byte strings could mean one value.
//! Here a value has exactly one encoding: the size is capped first, the rest must be empty, and the value is encoded
//! again and compared.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are not a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the cap for this type.
    #[error("{len} bytes exceed the limit of {max}")]
    TooLong {
        /// Bytes offered.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not an encoding of the type.
    #[error("malformed encoding")]
    Malformed,
    /// A valid encoding with bytes after it.
    #[error("trailing bytes")]
    Trailing,
    /// An encoding of the value other than the canonical one.
    #[error("non-canonical encoding")]
    NonCanonical,
}

/// The canonical encoding of `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("our types have known lengths and memory is not a bounded buffer")
}

/// The value of which `bytes` is the canonical encoding, at most `max` bytes long.
///
/// # Errors
/// A [`CodecError`] that says which rule was broken.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CodecError> {
    if bytes.len() > max {
        return Err(CodecError::TooLong { len: bytes.len(), max });
    }
    let (value, rest) = postcard::take_from_bytes::<T>(bytes).map_err(|_| CodecError::Malformed)?;
    if !rest.is_empty() {
        return Err(CodecError::Trailing);
    }
    if encode(&value) != bytes {
        return Err(CodecError::NonCanonical);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_the_round_trip() {
        let value = (7u32, String::from("laptop"), vec![1u8, 2, 3]);
        assert_eq!(decode::<(u32, String, Vec<u8>)>(&encode(&value), 64), Ok(value));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7u32);
        bytes.push(0);
        assert_eq!(decode::<u32>(&bytes, 64), Err(CodecError::Trailing));
    }

    #[test]
    fn a_non_minimal_varint_is_refused() {
        assert_eq!(decode::<u32>(&[0x87, 0x00], 64), Err(CodecError::NonCanonical));
    }

    #[test]
    fn the_cap_is_checked_before_anything_is_parsed() {
        assert_eq!(decode::<Vec<u8>>(&[9; 65], 64), Err(CodecError::TooLong { len: 65, max: 64 }));
    }

    #[test]
    fn a_length_beyond_the_bytes_is_malformed() {
        assert_eq!(decode::<Vec<u8>>(&[0xff, 0xff, 0xff, 0x7f], 64), Err(CodecError::Malformed));
    }
}
