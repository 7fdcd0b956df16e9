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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pageferry_soft::{SoftConfig, SoftDevice};
    use pageferry_wire::SESSIONS_MAX;

    use crate::serve::{Limits, Listener};
    use crate::{Cache, CacheConfig, Error, PinMode, Server};

    #[test]
    fn all_sessions_are_told_however_many_messages_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, path) = (dir.path().join("socket"), dir.path().join("file"));
        std::fs::write(&path, [1; 100]).unwrap();
        let soft = SoftConfig { exportable: true, workers: 1, ..SoftConfig::default() };
        let device = Arc::new(SoftDevice::new(soft).unwrap());
        let listener = Listener::bind(&socket, 0o600).unwrap();
        let (config, limits) = (CacheConfig::default(), Limits::default());
        let server = Server::start(device, config, limits, listener).unwrap();
        let clients: Vec<Cache> =
            (0..2 * SESSIONS_MAX + 1).map(|_| Cache::connect(&socket).unwrap()).collect();
        let file = clients[70].open(&path).unwrap();
        let pin = file.pin(0..100, PinMode::Read).unwrap();
        let sessions = clients[0].sessions().unwrap();
        let numbers: Vec<u64> = sessions.iter().map(|s| s.number).collect();
        assert_eq!(numbers, (1..=clients.len() as u64).collect::<Vec<_>>());
        let held = |n: usize| (sessions[n].files, sessions[n].pins, sessions[n].pinned_bytes);
        assert_eq!((held(70), held(71)), ((1, 1, 100), (0, 0, 0)));
        assert!(sessions.iter().all(|s| s.pid == std::process::id()));
        assert!(matches!(server.cache().sessions(), Err(Error::Unsupported(_))));
        pin.release().unwrap();
        server.stop().unwrap();
        assert!(matches!(clients[0].sessions(), Err(Error::Disconnected { .. })));
    }
}
