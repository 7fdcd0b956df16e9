//! What clients may hold.

use std::collections::HashMap;
use std::time::Duration;

use pageferry_wire::Failure;

use crate::sync::Mutex;

/// What clients may hold. What is beyond is refused with [`Error::Limit`](crate::Error::Limit).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Sessions at once. Default 1024.
    pub sessions: usize,
    /// Sessions of one user at once. Default 256.
    pub sessions_per_user: usize,
    /// Files that one session has open. Default 1024.
    pub files: usize,
    /// Pins that one session holds. Default 65536.
    pub pins: usize,
    /// Mappings that one session has. Default 4096.
    pub maps: usize,
    /// Bytes under the pins of one session. Default: no limit but the device's memory.
    pub pinned_bytes: u64,
    /// Bytes under the pins of all sessions of one user. Default: no limit but the device's memory.
    pub pinned_bytes_per_user: u64,
    /// Requests of one session that are under way at once, each of which is a thread here. From 2; default 64.
    pub requests: usize,
    /// Files that stay open here though no client has them open any more, because copies of them are on the
    /// device. Default 4096.
    pub kept_files: usize,
    /// How long a client may take to read an answer, before it is taken for dead. Default 10 s.
    pub reply_time: Duration,
    /// Files on file systems that some other process or machine serves (FUSE, NFS, ...) are taken too. A request
    /// that such a server does not answer holds a thread of the daemon for as long. Default no.
    pub served_file_systems: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions: 1024,
            sessions_per_user: 256,
            files: 1024,
            pins: 65536,
            maps: 4096,
            pinned_bytes: u64::MAX,
            pinned_bytes_per_user: u64::MAX,
            requests: 64,
            kept_files: 4096,
            reply_time: Duration::from_secs(10),
            served_file_systems: false,
        }
    }
}

pub(super) fn beyond(what: &str, limit: u64) -> Failure {
    Failure::Limit { what: what.into(), limit }
}

/// What each user holds in all sessions.
#[derive(Default)]
pub(super) struct Users(Mutex<HashMap<u32, Holds>>);

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Holds {
    sessions: usize,
    /// Also of ranges that are going to be refused, which may be of any size.
    pinned_bytes: u128,
}

impl Users {
    /// One session more.
    pub(super) fn enter(&self, uid: u32, limits: &Limits) -> Result<(), Failure> {
        let mut users = self.0.lock();
        let holds = users.entry(uid).or_default();
        if holds.sessions >= limits.sessions_per_user {
            return Err(beyond("sessions of a user", limits.sessions_per_user as u64));
        }
        holds.sessions += 1;
        Ok(())
    }

    pub(super) fn leave(&self, uid: u32) {
        self.change(uid, |holds| holds.sessions -= 1);
    }

    /// Counts bytes of pins that are going to be asked for.
    pub(super) fn pin(
        &self,
        uid: u32,
        bytes: u64,
        limits: &Limits,
    ) -> Result<Allowance<'_>, Failure> {
        let mut users = self.0.lock();
        let holds = users.entry(uid).or_default();
        let limit = limits.pinned_bytes_per_user;
        let sum = holds.pinned_bytes + u128::from(bytes);
        if limit != u64::MAX && sum > u128::from(limit) {
            return Err(beyond("bytes under pins of a user", limit));
        }
        holds.pinned_bytes = sum;
        Ok(self.pinned(uid, bytes))
    }

    /// Bytes that were counted when they were pinned.
    pub(super) fn pinned(&self, uid: u32, bytes: u64) -> Allowance<'_> {
        Allowance { users: self, uid, bytes }
    }

    fn change(&self, uid: u32, change: impl FnOnce(&mut Holds)) {
        let mut users = self.0.lock();
        if let Some(holds) = users.get_mut(&uid) {
            change(holds);
            if *holds == Holds::default() {
                users.remove(&uid);
            }
        }
    }
}

/// Bytes under pins that count as a user's until this is dropped: also where something panics before.
#[must_use]
pub(super) struct Allowance<'u> {
    users: &'u Users,
    uid: u32,
    bytes: u64,
}

impl Allowance<'_> {
    /// They are pinned, and count for as long as they are.
    pub(super) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Allowance<'_> {
    fn drop(&mut self) {
        self.users.change(self.uid, |holds| holds.pinned_bytes -= u128::from(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_hold_what_their_sessions_hold_and_are_forgotten_with_the_last() {
        let users = Users::default();
        let limits =
            Limits { sessions_per_user: 1, pinned_bytes_per_user: 10, ..Limits::default() };
        users.enter(1, &limits).unwrap();
        assert!(matches!(users.enter(1, &limits), Err(Failure::Limit { limit: 1, .. })));
        users.enter(2, &limits).unwrap();
        users.pin(1, 6, &limits).unwrap().keep();
        assert!(matches!(users.pin(1, 5, &limits), Err(Failure::Limit { limit: 10, .. })));
        assert!(users.pin(1, u64::MAX, &limits).is_err());
        drop(users.pin(1, 4, &limits).unwrap());
        users.pin(1, 4, &limits).unwrap().keep();
        drop(users.pinned(1, 10));
        users.leave(1);
        users.leave(2);
        assert!(users.0.lock().is_empty());
    }
}
