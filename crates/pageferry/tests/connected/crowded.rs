//! More waits than the daemon has threads for.

use std::sync::Arc;

use pageferry::serve::{Limits, Listener};
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, PinMode, Server};

use crate::common::{FRAME, PAGE, within};

/// Each waits in a request of its own; those for which there is no room ask again, and what they wait for is heard.
#[test]
fn accesses_beyond_the_limit_of_requests_wait_all_the_same() {
    within(60, || {
        let dir = tempfile::tempdir().unwrap();
        let soft = SoftConfig { frame_bytes: FRAME, exportable: true, ..SoftConfig::default() };
        let mut limits = Limits::default();
        limits.requests = 3;
        let socket = dir.path().join("socket");
        let server = Server::start(
            Arc::new(SoftDevice::new(soft).unwrap()),
            CacheConfig::default(),
            limits,
            Listener::bind(&socket, 0o600).unwrap(),
        )
        .unwrap();
        let cache = Cache::connect(&socket).unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![1; 16 * PAGE as usize]).unwrap();
        let file = cache.open(&path).unwrap();
        let map = file.map(0..16 * PAGE, false).unwrap();
        let pin = file.pin(0..16 * PAGE, PinMode::Write).unwrap();
        pin.view().unwrap().write(0, &[2; 16 * PAGE as usize]).unwrap();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..16)
                .map(|n| {
                    scope.spawn({
                        let map = &map;
                        move || map.load_u8(n * PAGE as usize)
                    })
                })
                .collect();
            let asked = || cache.sessions().unwrap()[0].requests;
            while asked() < 2 {
                std::thread::yield_now();
            }
            pin.release().unwrap();
            for byte in waiting {
                assert_eq!(byte.join().unwrap().unwrap(), 2);
            }
        });
        drop((map, file, cache));
        server.stop().unwrap();
    });
}
