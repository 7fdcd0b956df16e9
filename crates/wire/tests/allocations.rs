//! What decoding costs. One test alone in its process, because all allocations of the process are counted.

use std::alloc::System;

use pageferry_wire::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes allocated for each byte of a packet: an outcome of a release takes two bytes at least, and some 90
/// decoded.
const MULTIPLE: usize = 64;
/// What a list begins with, and what the thread that runs the tests may allocate beside.
const SLACK: usize = 4 << 10;

fn cost(packet: &[u8]) -> usize {
    let region = Region::new(COUNTED);
    let _ = (decode_call(packet), decode_return(packet));
    region.change().bytes_allocated
}

fn assert_cheap(packet: &[u8]) {
    let (cost, limit) = (cost(packet), packet.len() * MULTIPLE + SLACK);
    assert!(
        cost <= limit,
        "{cost} bytes for a packet of {}: {:02x?}",
        packet.len(),
        &packet[..packet.len().min(40)]
    );
}

#[test]
fn decoding_costs_what_the_packet_has_whatever_it_says() {
    // Every kind of message, saying that it holds very much, with nothing, little or much behind.
    let mut counts =
        vec![vec![0xFF, 0xFF, 0xFF, 0xFF, 0x0F], vec![0xFF; 9], vec![0x80, 0x80, 0x04]];
    counts[1].push(1);
    for (kind, lead) in (0..32_u8).flat_map(|kind| (0..4).map(move |lead| (kind, lead))) {
        for count in &counts {
            for (fill, rest) in [(0, 0), (0, 100), (0, 60_000), (1, 60_000)] {
                for head in [vec![0, kind], vec![0, 0, kind], vec![0, 1, kind]] {
                    let filled = vec![fill; rest];
                    assert_cheap(&[&head[..], &vec![0; lead], count, &filled].concat());
                }
            }
        }
    }
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 24
    };
    for _ in 0..20_000 {
        let mut packet = vec![0; (random() % 400) as usize];
        for byte in &mut packet {
            // Small numbers are the numbers of variants.
            *byte = random() as u8 & if random() % 2 == 0 { 15 } else { 255 };
        }
        assert_cheap(&packet);
    }
}
