//! What the daemon asks of a client that has mapped a file.
//!
//! The client's mappings are of its own address space, so only it can make accesses of them wait. The daemon
//! gives it one end of a socket pair ([`Request::Callbacks`](crate::Request::Callbacks)) and asks on the other, one thing
//! at a time; who does not answer is taken for gone.

use serde::{Deserialize, Serialize};

use crate::codec::{at_most, decode, encode};
use crate::{Malformed, Span, TooLarge};

/// Runs in one [`Told`], at most; who has more tells of none, which means all.
pub const STORED_RUNS_MAX: usize = 2048;

/// A mapping, by the client's choice of a number; never used again within the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MapId(pub u64);

/// What the daemon asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Of which mapping.
    pub map: MapId,
    /// What.
    pub task: Task,
}

/// What a client does with a mapping of its. Spans are of the file, and whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Which pages were stored to since last asked?
    Scan(Span),
    /// Makes accesses wait; which pages were stored to before, since last asked?
    Trap(Span),
    /// Lets accesses reach the file again.
    Untrap(Span),
    /// Ends the waiting for the page of a byte with an error, and makes later accesses wait.
    Expel(u64),
}

/// What the client answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// As asked. Pages stored to, ascending; for tasks that ask for them, `None` means that it cannot tell.
    Done(Option<Vec<Span>>),
    /// It could not be done; why, for people.
    Failed(String),
    /// The limit on mappings of the client's process is reached.
    OutOfVmas {
        /// The limit in force.
        max_map_count: u64,
    },
}

/// A question as a packet.
///
/// # Errors
/// None that is known of.
pub fn encode_ask(ask: &Ask) -> Result<Vec<u8>, TooLarge> {
    encode(ask)
}

/// A packet as a question.
///
/// # Errors
/// The packet is none.
pub fn decode_ask(packet: &[u8]) -> Result<Ask, Malformed> {
    decode(packet)
}

/// An answer as a packet.
///
/// # Errors
/// It holds more than a message may.
pub fn encode_told(told: &Told) -> Result<Vec<u8>, TooLarge> {
    limit(told)?;
    encode(told)
}

/// A packet as an answer.
///
/// # Errors
/// The packet is none.
pub fn decode_told(packet: &[u8]) -> Result<Told, Malformed> {
    let told = decode(packet)?;
    limit(&told)?;
    Ok(told)
}

fn limit(told: &Told) -> Result<(), TooLarge> {
    match told {
        Told::Done(Some(runs)) => at_most("runs", runs.len(), STORED_RUNS_MAX),
        Told::Done(None) | Told::Failed(_) | Told::OutOfVmas { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_go_there_and_back() {
        let span = Span::new(4096..8192).expect("a span");
        for task in [Task::Scan(span), Task::Trap(span), Task::Untrap(span), Task::Expel(5000)] {
            let ask = Ask { map: MapId(7), task };
            assert_eq!(decode_ask(&encode_ask(&ask).expect("fits")), Ok(ask));
        }
        let answers = [
            Told::Done(None),
            Told::Done(Some(vec![span; STORED_RUNS_MAX])),
            Told::Failed("why".into()),
            Told::OutOfVmas { max_map_count: 65530 },
        ];
        for told in answers {
            assert_eq!(decode_told(&encode_told(&told).expect("fits")), Ok(told));
        }
        let many = Told::Done(Some(vec![span; STORED_RUNS_MAX + 1]));
        assert!(encode_told(&many).is_err());
    }

    #[test]
    fn no_bytes_do_harm() {
        let mut state = 1_u64;
        for len in 0..2000_usize {
            let bytes: Vec<u8> = (0..len % 60)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                    (state >> 56) as u8 & if len % 2 == 0 { 0x7 } else { 0xff }
                })
                .collect();
            if let Ok(ask) = decode_ask(&bytes) {
                assert_eq!(decode_ask(&encode_ask(&ask).expect("fits")), Ok(ask));
            }
            if let Ok(told) = decode_told(&bytes) {
                assert_eq!(decode_told(&encode_told(&told).expect("fits")), Ok(told));
            }
        }
    }
}
