//! Every message there is, and bytes that are none.

mod limits;
mod strategies;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::Range;

use pageferry_wire::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use strategies::{answer, call, change, device_failure, failure, reply};

/// Cases of each property.
fn cases() -> u32 {
    std::env::var("WIRE_CASES").map_or(3000, |n| n.parse().expect("WIRE_CASES is a number"))
}

fn check<S: Strategy>(strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&strategy, test).unwrap_or_else(|e| panic!("{e}"));
}

/// The number of the variant that an encoded enum begins with.
fn variant(bytes: &[u8]) -> u8 {
    assert!(bytes[0] < 128, "one byte");
    bytes[0]
}

/// Values of an enum came with every variant that it has: those seen are the first so many, and the next
/// number is none.
fn assert_all_seen<T: serde::de::DeserializeOwned + Debug>(seen: &BTreeSet<u8>) {
    let count = seen.len() as u8;
    assert!(seen.iter().copied().eq(0..count), "{seen:?}");
    // Zeros are values of anything, so only the number can be wrong.
    let mut next = [0; 200];
    next[0] = count;
    let beyond = postcard::take_from_bytes::<T>(&next).map(|(value, _)| value);
    assert_eq!(beyond.err(), Some(postcard::Error::SerdeDeCustom), "{seen:?}");
}

fn every_variant_comes<S>(strategy: S)
where
    S: Strategy,
    S::Value: serde::Serialize + serde::de::DeserializeOwned,
{
    let seen = RefCell::default();
    check(strategy, |value| {
        let bytes = postcard::to_allocvec(&value).expect("encodes");
        RefCell::<BTreeSet<u8>>::borrow_mut(&seen).insert(variant(&bytes));
        Ok(())
    });
    assert_all_seen::<S::Value>(&seen.take());
}

#[test]
fn the_strategies_leave_no_variant_out() {
    every_variant_comes(call().prop_map(|call| call.request));
    every_variant_comes(change());
    every_variant_comes(failure());
    every_variant_comes(device_failure());
    every_variant_comes(reply());
}

#[test]
fn every_request_arrives_as_it_was_sent() {
    check(call(), |call| {
        let packet = encode_call(&call).expect("fits");
        prop_assert_eq!(decode_call(&packet), Ok(call));
        Ok(())
    });
}

#[test]
fn every_answer_arrives_as_it_was_sent() {
    check(answer(), |answer| {
        let packet = encode_return(&answer).expect("fits");
        prop_assert_eq!(decode_return(&packet), Ok(answer));
        Ok(())
    });
}

/// Whatever the bytes are, they are refused or are a message, which has the same meaning when it is sent on.
fn take(packet: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(call) = decode_call(packet) {
        let again = encode_call(&call).expect("what was taken can be sent");
        prop_assert!(again.len() <= packet.len());
        prop_assert_eq!(decode_call(&again), Ok(call));
    }
    if let Ok(answer) = decode_return(packet) {
        let again = encode_return(&answer).expect("what was taken can be sent");
        prop_assert!(again.len() <= packet.len());
        prop_assert_eq!(decode_return(&again), Ok(answer));
    }
    Ok(())
}

#[test]
fn any_bytes_are_a_message_or_none() {
    // Small numbers are the numbers of variants.
    let byte = prop_oneof![any::<u8>(), 0..24_u8];
    check(vec(byte, 0..300), |packet| take(&packet));
}

/// A packet with some bytes changed, left out, put in or cut off.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let calls = call().prop_map(|call| encode_call(&call).expect("fits"));
    let answers = answer().prop_map(|answer| encode_return(&answer).expect("fits"));
    let damage = (any::<prop::sample::Index>(), 0..4_u8, any::<u8>());
    (prop_oneof![calls, answers], vec(damage, 1..5)).prop_map(|(mut packet, damages)| {
        for (at, what, byte) in damages {
            let at = at.index(packet.len().max(1));
            match what {
                _ if at >= packet.len() => packet.push(byte),
                0 => packet[at] = byte,
                1 => packet[at] ^= 1 << (byte % 8),
                2 => drop(packet.remove(at)),
                _ => packet.insert(at, byte),
            }
        }
        packet
    })
}

#[test]
fn a_damaged_message_is_a_message_or_none() {
    check(damaged(), |packet| take(&packet));
}

#[test]
fn a_part_of_a_message_is_none() {
    check((call(), any::<prop::sample::Index>()), |(call, end)| {
        let packet = encode_call(&call).expect("fits");
        let part = &packet[..end.index(packet.len())];
        let expected = if part.is_empty() { Malformed::Empty } else { Malformed::Truncated };
        prop_assert_eq!(decode_call(part), Err(expected));
        Ok(())
    });
    check((answer(), any::<prop::sample::Index>()), |(answer, end)| {
        let packet = encode_return(&answer).expect("fits");
        prop_assert!(decode_return(&packet[..end.index(packet.len())]).is_err());
        Ok(())
    });
}

#[test]
fn nothing_may_follow_a_message() {
    check((call(), 1..20_usize), |(call, bytes)| {
        let mut packet = encode_call(&call).expect("fits");
        packet.resize(packet.len() + bytes, 0);
        prop_assert_eq!(decode_call(&packet), Err(Malformed::Trailing { bytes }));
        Ok(())
    });
}

/// What other versions must understand: written down byte by byte.
#[test]
fn the_greeting_is_the_same_in_every_version() {
    let hello = Call { id: 300, request: Request::Hello { version: 7 } };
    assert_eq!(encode_call(&hello), Ok(vec![0xAC, 2, 0, 7]));
    let refusal = Return { id: 300, result: Err(Failure::Version { daemon: 8 }) };
    assert_eq!(encode_return(&refusal), Ok(vec![0xAC, 2, 1, 0, 8]));
}

#[test]
fn a_range_that_ends_before_it_begins_is_none() {
    // A flush of 9..8 of file 1 for nobody.
    let flush = |start, end| {
        let span = Span::new(1..2).expect("span");
        let call = Call { id: 0, request: Request::Flush { file: FileId(1), span, owner: None } };
        let mut packet = encode_call(&call).expect("fits");
        let at = packet.len() - 3;
        assert_eq!(packet[at..], [1, 2, 0]);
        packet[at..at + 2].copy_from_slice(&[start, end]);
        decode_call(&packet)
    };
    assert!(flush(8, 9).is_ok() && flush(9, 9).is_ok());
    assert_eq!(flush(9, 8), Err(Malformed::Meaningless));
    let reversed = Range { start: 9, end: 8 };
    assert_eq!(Span::new(reversed.clone()), None);
    assert_eq!(Span::or_empty(reversed).range(), 9..9);
}

#[test]
fn descriptors_are_told_by_the_request() {
    let open = Request::Open { name: "f".into(), writable: true };
    let stores = Some(Stores { file: FileId(1), runs: 0, bytes: 0 });
    assert_eq!(open.descriptors(), 1);
    assert_eq!(Request::Release { pins: Vec::new(), stores }.descriptors(), 1);
    assert_eq!(Request::Release { pins: Vec::new(), stores: None }.descriptors(), 0);
    assert_eq!(Request::Stats.descriptors(), 0);
    // Not known, the same, another, gone, none.
    let (known, serials) = ([0, 5, 5, 5, 0], [4, 5, 6, 0, 0]);
    assert_eq!(frames_sent(&known, &serials).collect::<Vec<_>>(), [0, 2]);
}
