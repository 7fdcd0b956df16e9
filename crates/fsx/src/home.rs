//! Where the cache under test lives.

use std::ops::Deref;
use std::sync::Arc;

use anyhow::Context;
use pageferry::serve::{Limits, Listener};
use pageferry::soft::SoftDevice;
use pageferry::{Cache, CacheConfig, Server};

/// A cache, with the daemon that has it, if one does.
pub(crate) struct Home {
    // In the order in which they end.
    cache: Cache,
    _daemon: Option<(Server, tempfile::TempDir)>,
}

impl Home {
    /// A cache in this process.
    pub(crate) fn embedded(device: SoftDevice, config: CacheConfig) -> anyhow::Result<Home> {
        let cache = Cache::new(Arc::new(device), config).context("opening the cache")?;
        Ok(Home { cache, _daemon: None })
    }

    /// The cache of a daemon, which this process runs as well.
    pub(crate) fn connected(device: SoftDevice, config: CacheConfig) -> anyhow::Result<Home> {
        let dir = tempfile::tempdir().context("making a directory for the daemon's socket")?;
        let socket = dir.path().join("socket");
        let listener = Listener::bind(&socket, 0o600)?;
        let server = Server::start(Arc::new(device), config, Limits::default(), listener)?;
        let cache = Cache::connect(&socket).context("connecting to the daemon")?;
        Ok(Home { cache, _daemon: Some((server, dir)) })
    }
}

impl Deref for Home {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.cache
    }
}
