//! Messages as bytes, and back.
//!
//! The encoding is postcard's: numbers in groups of seven bits, lists with their length before them, variants
//! by number. It makes room for a list only if as many bytes are there as the list says it has elements.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    COUNTERS_MAX, Call, Change, DATA_BYTES_MAX, FOLIOS_MAX, MESSAGE_BYTES_MAX, NAME_BYTES_MAX,
    PLACEMENT_RUNS_MAX, RANGES_MAX, RELEASES_MAX, Reply, Request, Return, SESSIONS_MAX,
    STORE_RUNS_MAX,
};

/// A message holds more than one may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} {what}; at most {max}")]
pub struct TooLarge {
    /// Of what: "bytes of a packet", "ranges", ...
    pub what: &'static str,
    /// How many it holds.
    pub count: u64,
    /// How many it may hold.
    pub max: u64,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// There are none.
    #[error("the message is empty")]
    Empty,
    /// It ends in the middle.
    #[error("the message ends in the middle")]
    Truncated,
    /// It goes on behind its end.
    #[error("{bytes} bytes follow the message's end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A number, flag or text is not written as one.
    #[error("{0}")]
    Encoding(&'static str),
    /// Of a kind that this version does not have, or with a range that ends before it begins.
    #[error("of an unknown kind, or with a range that ends before it begins")]
    Meaningless,
    /// A list that must have elements has none.
    #[error("no {0}")]
    Missing(&'static str),
    /// It holds more than one may.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// A request as a packet.
///
/// # Errors
/// It holds more than a message may.
pub fn encode_call(call: &Call) -> Result<Vec<u8>, TooLarge> {
    limit_request(&call.request)?;
    encode(call)
}

/// A packet as a request.
///
/// # Errors
/// The packet is none.
pub fn decode_call(packet: &[u8]) -> Result<Call, Malformed> {
    let call: Call = decode(packet)?;
    limit_request(&call.request)?;
    match &call.request {
        Request::Pin { ranges, .. } if ranges.is_empty() => Err(Malformed::Missing("ranges")),
        Request::Frames { known, .. } if known.is_empty() => Err(Malformed::Missing("folios")),
        _ => Ok(call),
    }
}

/// An answer as a packet. Texts for people are cut, as short as they must be to fit: an answer that could not be
/// sent would leave its client waiting.
///
/// # Errors
/// It holds more than a message may, apart from texts.
pub fn encode_return(answer: &Return) -> Result<Vec<u8>, TooLarge> {
    limit_return(answer)?;
    let mut encoded = encode(answer);
    let mut cut = answer.clone();
    let mut text_bytes = NAME_BYTES_MAX;
    while encoded.is_err() && text_bytes > 0 {
        text_bytes /= 4;
        cut.texts().into_iter().for_each(|text| shorten(text, text_bytes));
        encoded = encode(&cut);
    }
    encoded
}

/// A packet as an answer.
///
/// # Errors
/// The packet is none.
pub fn decode_return(packet: &[u8]) -> Result<Return, Malformed> {
    let answer = decode(packet)?;
    limit_return(&answer)?;
    Ok(answer)
}

fn shorten(text: &mut String, bytes: usize) {
    let fits = |(at, c): (usize, char)| Some(at + c.len_utf8()).filter(|end| *end <= bytes);
    let end = text.char_indices().map_while(fits).last().unwrap_or(0);
    text.truncate(end);
}

pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>, TooLarge> {
    let packet = postcard::to_allocvec(message).expect("a vector takes any message");
    at_most("bytes of a packet", packet.len(), MESSAGE_BYTES_MAX)?;
    Ok(packet)
}

pub(crate) fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, Malformed> {
    if packet.is_empty() {
        return Err(Malformed::Empty);
    }
    at_most("bytes of a packet", packet.len(), MESSAGE_BYTES_MAX)?;
    match postcard::take_from_bytes(packet) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(Malformed::Trailing { bytes: rest.len() }),
        Err(error) => Err(malformed(&error)),
    }
}

fn malformed(error: &postcard::Error) -> Malformed {
    use postcard::Error as E;
    match error {
        E::DeserializeUnexpectedEnd => Malformed::Truncated,
        E::SerdeDeCustom => Malformed::Meaningless,
        E::DeserializeBadVarint => Malformed::Encoding("a number is too large for its place"),
        E::DeserializeBadBool => Malformed::Encoding("a flag is neither 0 nor 1"),
        E::DeserializeBadUtf8 => Malformed::Encoding("a text is not UTF-8"),
        E::DeserializeBadOption => Malformed::Encoding("an optional value neither is nor is not"),
        _ => Malformed::Encoding("not a message"),
    }
}

fn limit_request(request: &Request) -> Result<(), TooLarge> {
    match request {
        Request::Open { name, .. } => at_most("bytes of a name", name.len(), NAME_BYTES_MAX),
        Request::Pin { ranges, .. } => at_most("ranges", ranges.len(), RANGES_MAX),
        Request::Frames { known, .. } => at_most("folios", known.len(), FOLIOS_MAX),
        Request::Read { bytes, .. } => at_most("bytes to read", *bytes as usize, DATA_BYTES_MAX),
        Request::Change { change: Change::Write { bytes, .. }, .. } => {
            at_most("bytes to write", bytes.len(), DATA_BYTES_MAX)
        }
        Request::Store { bytes, .. } => at_most("bytes stored", bytes.len(), DATA_BYTES_MAX),
        Request::Release { pins, stores } => {
            at_most("releases", pins.len(), RELEASES_MAX)?;
            match stores {
                Some(stores) if stores.runs > STORE_RUNS_MAX => Err(TooLarge {
                    what: "runs of stores",
                    count: stores.runs,
                    max: STORE_RUNS_MAX,
                }),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn limit_return(answer: &Return) -> Result<(), TooLarge> {
    match &answer.result {
        Ok(Reply::Pinned { pins, .. }) => at_most("pins", pins.len(), RANGES_MAX),
        Ok(Reply::Released { pins }) => at_most("releases", pins.len(), RELEASES_MAX),
        Ok(Reply::Frames { serials, .. }) => at_most("folios", serials.len(), FOLIOS_MAX),
        Ok(Reply::Data(bytes)) => at_most("bytes read", bytes.len(), DATA_BYTES_MAX),
        Ok(Reply::Placement(runs)) => at_most("runs", runs.len(), PLACEMENT_RUNS_MAX),
        Ok(Reply::Stats(counters)) => at_most("counters", counters.len(), COUNTERS_MAX),
        Ok(Reply::Sessions { sessions, .. }) => at_most("sessions", sessions.len(), SESSIONS_MAX),
        Ok(_) | Err(_) => Ok(()),
    }
}

pub(crate) fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), TooLarge> {
    let (count, max) = (count as u64, max as u64);
    if count <= max { Ok(()) } else { Err(TooLarge { what, count, max }) }
}
