//! Settings of a software device.

use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Frames are powers of two of so many bytes.
pub(crate) const FRAME_SIZES: RangeInclusive<u64> = 64 << 10..=64 << 20;

/// What the device is made of.
#[derive(Clone, Debug)]
pub struct SoftConfig {
    /// Bytes of a frame: a power of two from 64 KiB to 64 MiB. Default 2 MiB.
    pub frame_bytes: u64,
    /// Bytes of memory, rounded down to whole frames. Default 256 MiB; host memory is used only as
    /// frames are written.
    pub capacity_bytes: u64,
    /// Added to every copy. Default zero.
    pub copy_latency: Duration,
    /// Bytes per second that all copies together reach at most. Default unlimited.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Threads that run kernels. Default: the machine's parallelism.
    pub workers: usize,
    /// Frames can be [exported](pageferry_device::Device::export_frame) to other processes. Each
    /// frame in use then takes one file descriptor and one mapping of this process, and all of its
    /// memory from its allocation on. Default no.
    pub exportable: bool,
}

impl Default for SoftConfig {
    fn default() -> Self {
        SoftConfig {
            frame_bytes: 2 << 20,
            capacity_bytes: 256 << 20,
            copy_latency: Duration::ZERO,
            bandwidth_bytes_per_s: None,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            exportable: false,
        }
    }
}

/// A device cannot be made so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The frame size is no power of two from 64 KiB to 64 MiB.
    #[error("a frame of {frame_bytes} bytes is no power of two from 65536 to 67108864")]
    FrameBytes {
        /// As given.
        frame_bytes: u64,
    },
    /// Not even one frame fits.
    #[error("{capacity_bytes} bytes of device memory hold no frame of {frame_bytes} bytes")]
    NoFrame {
        /// As given.
        capacity_bytes: u64,
        /// As given.
        frame_bytes: u64,
    },
    /// No worker thread, or no bandwidth.
    #[error("{0} must not be zero")]
    Zero(&'static str),
    /// The host refused the memory.
    #[error("reserving {capacity_bytes} bytes for device memory: {source}")]
    Memory {
        /// Bytes asked for.
        capacity_bytes: u64,
        /// The host's error.
        source: io::Error,
    },
}

impl SoftConfig {
    /// Frames that fit, after checking everything.
    pub(crate) fn frames(&self) -> Result<u64, ConfigError> {
        let SoftConfig { frame_bytes, capacity_bytes, .. } = *self;
        if !frame_bytes.is_power_of_two() || !FRAME_SIZES.contains(&frame_bytes) {
            return Err(ConfigError::FrameBytes { frame_bytes });
        }
        if self.workers == 0 {
            return Err(ConfigError::Zero("the number of workers"));
        }
        if self.bandwidth_bytes_per_s == Some(0) {
            return Err(ConfigError::Zero("the bandwidth"));
        }
        match (capacity_bytes / frame_bytes).min(u64::from(u32::MAX)) {
            0 => Err(ConfigError::NoFrame { capacity_bytes, frame_bytes }),
            frames => Ok(frames),
        }
    }
}
