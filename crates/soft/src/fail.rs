//! Failures on demand, in the manner of the kernel's test_hmm.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What shall fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    /// The next allocations of a frame.
    Alloc,
    /// The next copies in, after about half of their bytes.
    CopyIn,
    /// The next copies out, after about half of their bytes.
    CopyOut,
    /// The device, for good, at the next operation.
    Lost,
}

/// No such fail point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no fail point {0:?}; there are alloc, copy-in, copy-out, device-lost")]
pub struct UnknownFailPoint(String);

impl FailPoint {
    /// All of them.
    pub const ALL: [FailPoint; 4] =
        [FailPoint::Alloc, FailPoint::CopyIn, FailPoint::CopyOut, FailPoint::Lost];

    fn name(self) -> &'static str {
        match self {
            FailPoint::Alloc => "alloc",
            FailPoint::CopyIn => "copy-in",
            FailPoint::CopyOut => "copy-out",
            FailPoint::Lost => "device-lost",
        }
    }
}

impl fmt::Display for FailPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FailPoint {
    type Err = UnknownFailPoint;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let name = s.replace('_', "-");
        let found = Self::ALL.into_iter().find(|p| p.name() == name);
        found.ok_or_else(|| UnknownFailPoint(s.to_owned()))
    }
}

/// How often what is still to fail.
#[derive(Default)]
pub(crate) struct FailPoints {
    counts: [AtomicU32; 3],
    lose_next: AtomicBool,
    lost: AtomicBool,
}

impl FailPoints {
    pub(crate) fn arm(&self, point: FailPoint, count: u32) {
        match point {
            FailPoint::Lost => self.lose_next.store(true, Ordering::SeqCst),
            other => self.counts[other as usize].store(count, Ordering::SeqCst),
        }
    }

    pub(crate) fn disarm(&self) {
        self.lose_next.store(false, Ordering::SeqCst);
        for count in &self.counts {
            count.store(0, Ordering::SeqCst);
        }
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    /// The device is lost. Does not spend an armed loss.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// To be asked at each operation's begin: the device is, or just now becomes, lost.
    pub(crate) fn lost(&self) -> bool {
        if self.lose_next.load(Ordering::Relaxed) && self.lose_next.swap(false, Ordering::SeqCst) {
            self.lose();
        }
        self.is_lost()
    }

    /// This operation shall fail.
    pub(crate) fn fails(&self, point: FailPoint) -> bool {
        let spend = |n: u32| n.checked_sub(1);
        match point {
            FailPoint::Lost => self.lost(),
            other => self.counts[other as usize]
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend)
                .is_ok(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for point in FailPoint::ALL {
            assert_eq!(point.to_string().parse(), Ok(point));
            assert_eq!(point.to_string().replace('-', "_").parse(), Ok(point));
        }
        let error = "copyin".parse::<FailPoint>().unwrap_err().to_string();
        assert!(error.contains("device-lost"), "{error}");
    }

    #[test]
    fn fails_as_often_as_armed() {
        let points = FailPoints::default();
        assert!(!points.fails(FailPoint::CopyIn));
        points.arm(FailPoint::CopyIn, 2);
        assert!(points.fails(FailPoint::CopyIn) && points.fails(FailPoint::CopyIn));
        assert!(!points.fails(FailPoint::CopyIn));
        points.arm(FailPoint::Lost, 1);
        assert!(!points.is_lost());
        assert!(points.lost() && points.is_lost());
    }
}
