//! What can go wrong on a device.

use std::io;

use crate::FrameId;

/// A device operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No frame is free on the device.
    #[error(
        "device memory is full: all {capacity_frames} frames of {frame_bytes} bytes are in use"
    )]
    Full {
        /// Frames that the device has.
        capacity_frames: u64,
        /// Bytes of one frame.
        frame_bytes: u64,
    },
    /// The device refused an allocation although frames may be free (an injected or a driver failure).
    #[error("the device failed to allocate a frame of {frame_bytes} bytes")]
    AllocFailed {
        /// Bytes of one frame.
        frame_bytes: u64,
    },
    /// The host refused the memory of a frame; the frame has none until it is given anew.
    #[error("the host refused {frame_bytes} bytes of memory for a frame: {}",
        io::Error::from_raw_os_error(*errno))]
    FrameMemory {
        /// Bytes of one frame.
        frame_bytes: u64,
        /// The host's error number.
        errno: i32,
    },
    /// A frame cannot be handed to another process.
    #[error("a frame could not be exported: {}", io::Error::from_raw_os_error(*errno))]
    Export {
        /// The host's error number.
        errno: i32,
    },
    /// The device cannot do this, or was not made for it.
    #[error("the device does not support {what}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// A copy into device memory failed; the destination holds unspecified bytes.
    #[error("copy of {len} bytes into device memory failed")]
    CopyIn {
        /// Bytes of the copy.
        len: u64,
    },
    /// A copy out of device memory failed; the source is unchanged.
    #[error("copy of {len} bytes out of device memory failed")]
    CopyOut {
        /// Bytes of the copy.
        len: u64,
    },
    /// The device is gone; what only it held cannot be read any more.
    #[error("the device is lost")]
    Lost,
    /// The device's address space has no room for a reservation.
    #[error("the device has no address range of {bytes} bytes left")]
    NoAddressSpace {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The caller named a frame, span or address that is not there: a bug in the caller.
    #[error("invalid device argument: {what} (frame {frame:?})")]
    Invalid {
        /// What was wrong.
        what: &'static str,
        /// The frame concerned, where there is one.
        frame: Option<FrameId>,
    },
    /// A kernel panicked or was aborted; its launch did not complete.
    #[error("a device kernel failed: {message}")]
    KernelFailed {
        /// The panic message, or the driver's reason.
        message: String,
    },
}

/// A copy between host and device failed on one side or the other.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The device's side failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host's side (the closure) failed.
    #[error(transparent)]
    Host(io::Error),
}
