use super::*;
use proptest::prelude::*;

const FRAME: u64 = 4 * PAGE_BYTES;
const END: u64 = 3 * FRAME;

fn pages(bytes: u64) -> Pages {
    let mut pages = Pages::new(FRAME);
    pages.resize(bytes);
    for folio in 0..3 {
        pages.add_folio(folio, FrameId(folio as u32), 0);
    }
    pages
}

#[derive(Clone, Debug)]
enum Op {
    Dirty(u64, u64),
    Clean(u64, u64),
    Valid(u64, u64),
    Invalid(u64, u64),
    Resize(u64),
    Distrust(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    // Offsets near page borders are where the mistakes are.
    let at = (0u64..13, -3i64..4)
        .prop_map(|(page, by)| (page * PAGE_BYTES).saturating_add_signed(by).min(END));
    let pair = (at.clone(), at.clone()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    prop_oneof![
        pair.clone().prop_map(|(a, b)| Op::Dirty(a, b)),
        pair.clone().prop_map(|(a, b)| Op::Clean(a, b)),
        pair.clone().prop_map(|(a, b)| Op::Valid(a, b)),
        pair.clone().prop_map(|(a, b)| Op::Invalid(a, b)),
        pair.prop_map(|(a, b)| Op::Distrust(a, b)),
        at.prop_map(Op::Resize),
    ]
}

proptest! {
    /// Byte-exact dirtiness and page-exact validity equal those of plain arrays.
    #[test]
    fn equals_arrays(start in 0..END, ops in prop::collection::vec(op(), 1..50)) {
        let mut real = pages(start);
        let mut size = start;
        let mut dirty = vec![false; END as usize];
        let mut valid = [false; (END / PAGE_BYTES) as usize];
        for op in ops {
            let limit = ceil(size);
            match op {
                Op::Dirty(a, b) => {
                    real.mark_dirty(&(a..b), 1);
                    dirty[a.min(size) as usize..b.min(size) as usize].fill(true);
                }
                Op::Clean(a, b) => {
                    real.clear_dirty(&(a..b));
                    dirty[a as usize..b as usize].fill(false);
                }
                Op::Valid(a, b) => {
                    real.set_valid(&(a..b));
                    for p in page_span(&clip(&(a..b), &(0..limit))).step_by(4096) {
                        valid[(p / PAGE_BYTES) as usize] = true;
                    }
                }
                Op::Invalid(a, b) => {
                    real.clear_valid(&(a..b));
                    for p in page_span(&(a..b)).step_by(4096) {
                        valid[(p / PAGE_BYTES) as usize] = false;
                    }
                }
                Op::Resize(to) => {
                    real.resize(to);
                    if to < size {
                        dirty[to as usize..].fill(false);
                        valid[(to / PAGE_BYTES) as usize..].fill(false);
                    }
                    size = to;
                }
                Op::Distrust(a, b) => {
                    let before = real.valid_bytes(&(0..END));
                    let dropped = real.clear_valid_copies(&page_span(&(a..b)));
                    prop_assert_eq!(before - dropped, real.valid_bytes(&(0..END)));
                    for p in page_span(&(a..b)).step_by(4096) {
                        let page = p as usize..p as usize + 4096;
                        valid[(p / PAGE_BYTES) as usize] &= dirty[page].iter().all(|d| *d);
                    }
                }
            }
            real.check().map_err(TestCaseError::fail)?;
            for run in real.dirty_runs(&(0..END)) {
                for at in run { prop_assert!(std::mem::replace(&mut dirty[at as usize], false), "{at} is not dirty"); }
            }
            prop_assert!(dirty.iter().all(|d| !d), "a dirty byte was not reported");
            for run in real.dirty_runs(&(0..END)) { dirty[run.start as usize..run.end as usize].fill(true); }
            for (p, v) in valid.iter().enumerate() {
                let page = p as u64 * PAGE_BYTES;
                prop_assert_eq!(real.is_valid(&(page..page + 1)), *v, "page {}", p);
            }
            let all = valid[..(ceil(size) / PAGE_BYTES) as usize].iter().all(|v| *v);
            if size > 0 { prop_assert_eq!(real.is_valid(&(0..size)), all); }
        }
    }
}

#[test]
fn a_full_folio_at_end_of_file_stops_being_full_when_the_file_grows() {
    let mut p = pages(PAGE_BYTES);
    p.set_valid(&(0..PAGE_BYTES));
    assert!(p.is_valid(&(0..PAGE_BYTES)));
    p.resize(2 * PAGE_BYTES);
    assert!(!p.is_valid(&(0..2 * PAGE_BYTES)));
    assert!(p.is_valid(&(0..PAGE_BYTES)));
}
