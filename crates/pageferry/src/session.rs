//! Who uses a daemon's cache.

/// What one client of a daemon holds, at one moment ([`Cache::sessions`](crate::Cache::sessions)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Session {
    /// Its number, which no other session of the daemon ever has.
    pub number: u64,
    /// The client's process, as the daemon sees it; 0 if it cannot.
    pub pid: u32,
    /// The client's user.
    pub uid: u32,
    /// What the client's process calls itself; without control characters.
    pub program: String,
    /// Files that it has open.
    pub files: u64,
    /// Pins that it holds or waits for.
    pub pins: u64,
    /// Bytes under these pins.
    pub pinned_bytes: u64,
    /// Requests of its that are under way.
    pub requests: u64,
}
