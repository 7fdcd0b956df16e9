use super::*;
use proptest::prelude::*;

/// Places near both ends of what is countable, and around the middle of it.
fn place() -> impl Strategy<Value = u64> {
    let near = |at: u64| (0u64..40).prop_map(move |n| at.saturating_sub(20).saturating_add(n));
    prop_oneof![4 => 0u64..70, 1 => near(1 << 63), 1 => near(u64::MAX), 1 => any::<u64>()]
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (place(), place()).prop_map(|(a, b)| a.min(b)..a.max(b))
}

fn found(spans: &Spans, range: &Range<u64>) -> Vec<PinKey> {
    let mut keys: Vec<_> = spans.over(range.clone()).collect();
    keys.sort_unstable();
    keys
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any sequence of insertions and removals finds what a plain list finds, each once.
    #[test]
    fn equal_a_list(steps in prop::collection::vec((range(), range(), any::<Option<u8>>()), 1..60)) {
        let mut spans = Spans::default();
        let mut list: Vec<(Range<u64>, PinKey)> = Vec::new();
        for (n, (range, asked, ends)) in steps.into_iter().enumerate() {
            match ends {
                Some(ends) if !list.is_empty() => {
                    let (range, key) = list.swap_remove(usize::from(ends) % list.len());
                    spans.remove(&range, key);
                }
                _ => {
                    spans.insert(&range, PinKey(n as u64));
                    list.push((range, PinKey(n as u64)));
                }
            }
            let meets = |r: &Range<u64>| r.start.max(asked.start) < r.end.min(asked.end);
            let mut expected: Vec<_> = list.iter().filter(|(r, _)| meets(r)).map(|(_, k)| *k).collect();
            expected.sort_unstable();
            prop_assert_eq!(found(&spans, &asked), expected);
        }
        for (range, key) in list {
            spans.remove(&range, key);
        }
        prop_assert_eq!(spans, Spans::default());
    }
}

#[test]
fn the_same_range_may_stand_twice() {
    let mut spans = Spans::default();
    spans.insert(&(3..9), PinKey(1));
    spans.insert(&(3..9), PinKey(2));
    spans.insert(&(0..u64::MAX), PinKey(3));
    assert_eq!(found(&spans, &(8..9)), [PinKey(1), PinKey(2), PinKey(3)]);
    spans.remove(&(3..9), PinKey(1));
    assert_eq!(found(&spans, &(0..4)), [PinKey(2), PinKey(3)]);
    assert_eq!(found(&spans, &(9..10)), [PinKey(3)]);
    assert_eq!(found(&spans, &(5..5)), []);
}
