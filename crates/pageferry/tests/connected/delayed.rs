//! A daemon's device that takes its time over a page.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use pageferry::device::{Device, FrameId, FrameSpan};
use pageferry::serve::{Limits, Listener};
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, PinMode, Server};

use crate::common::{FRAME, PAGE, within};

/// The daemon lives and answers: whoever wants the page waits.
#[test]
fn a_page_that_takes_long_to_be_written_is_waited_for() {
    within(60, || {
        let dir = tempfile::tempdir().unwrap();
        let soft = SoftConfig {
            frame_bytes: FRAME,
            capacity_bytes: FRAME,
            exportable: true,
            ..SoftConfig::default()
        };
        let device = Arc::new(SoftDevice::new(soft).unwrap());
        let socket = dir.path().join("socket");
        let listener = Listener::bind(&socket, 0o600).unwrap();
        let server =
            Server::start(device.clone(), CacheConfig::default(), Limits::default(), listener);
        let server = server.unwrap();
        let cache = Cache::connect(&socket).unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![1; 2 * PAGE as usize]).unwrap();
        let file = cache.open(&path).unwrap();
        let pin = file.pin(0..2 * PAGE, PinMode::Read).unwrap();
        let mut byte = [0];
        pin.view().unwrap().read(0, &mut byte).unwrap();
        let (begin, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            // If this thread fails, the other one shall end.
            let end = end;
            let written = scope.spawn(move || {
                // The device's only frame.
                let span = FrameSpan { frame: FrameId(0), offset: 0, len: PAGE };
                device.fill(span, &mut |bytes| {
                    begin.send(()).unwrap();
                    let _ = ended.recv();
                    bytes.fill(2);
                    Ok(())
                })
            });
            begun.recv().unwrap();
            let reader = scope.spawn(|| {
                let mut byte = [0];
                let pin = file.pin(0..PAGE, PinMode::Read).unwrap();
                pin.view().unwrap().read(0, &mut byte).map(|()| byte)
            });
            // Longer than a client waits before it asks; should that be later, the test only shows less.
            std::thread::sleep(Duration::from_millis(2500));
            assert!(!reader.is_finished(), "{:?}", reader.join());
            end.send(()).unwrap();
            written.join().unwrap().unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), [2]);
        });
        drop((pin, file, cache));
        server.stop().unwrap();
    });
}
