//! `serve`: a daemon from its start to its end.
//!
//! The library serves; this is what surrounds it: signals, what systemd wants to know, limits, logs, metrics.

mod limits;
mod log;
mod metrics;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use pageferry::Server;
use pageferry::serve::{Limits, Listener};
use pageferry::soft::{SoftConfig, SoftDevice};
use rustix::net::SocketAddrUnix;
use rustix::time::{ClockId, clock_gettime};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::ServeArgs;
use crate::output::line;
use crate::setup;
use crate::size::human;
use metrics::Endpoint;

pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<bool> {
    log::start(args.log_json)?;
    // From here on a signal is heard: one that comes early ends what has just begun.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("hearing signals")?;
    // Each client has a socket, each file and each frame in use a descriptor.
    pageferry_linux::limits::raise_descriptor_limit().context("raising the descriptor limit")?;
    let limits = current(args)?;
    let (listener, place) = listen(args)?;
    let soft = SoftConfig {
        frame_bytes: args.frame,
        capacity_bytes: args.device_memory,
        exportable: true,
        ..SoftConfig::default()
    };
    let device = Arc::new(SoftDevice::new(soft).context("making the software device")?);
    let config = setup::config(args.guard, args.trust_stamps, args.flush_age);
    let server = Arc::new(Server::start(device, config, limits, listener)?);
    let endpoint = match &args.metrics {
        Some(path) => Some(Endpoint::start(path, args.socket_mode, Arc::downgrade(&server))?),
        None => None,
    };
    line(format!("serving {} at {place}", human(server.cache().memory_bytes())))?;
    notify("READY=1");

    attend(&mut signals, args, &server)?;

    notify("STOPPING=1");
    tracing::info!(sessions = server.sessions(), "stopping");
    // Its thread holds the server while it answers.
    drop(endpoint);
    let Some(server) = Arc::into_inner(server) else {
        bail!("internal error: the server is still in use");
    };
    server.stop().context("not everything could be written back")?;
    tracing::info!("stopped");
    Ok(true)
}

/// Does what signals ask for, until one says stop. The next one after that is as deadly as to any program.
fn attend(signals: &mut Signals, args: &ServeArgs, server: &Server) -> anyhow::Result<()> {
    for signal in signals.forever() {
        if signal == SIGHUP {
            reload(args, server);
            continue;
        }
        for deadly in [SIGTERM, SIGINT] {
            let at_once = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_default(deadly, at_once)
                .context("hearing signals")?;
        }
        break;
    }
    Ok(())
}

/// Reads the limits again. With bad ones everything stays as it is.
fn reload(args: &ServeArgs, server: &Server) {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    match current(args) {
        Ok(limits) => {
            tracing::info!(?limits, "limits are read again");
            server.set_limits(limits);
        }
        Err(error) => {
            let error = crate::failure::message(&error);
            tracing::error!(error, "the limits cannot be read again; the old ones stay");
        }
    }
    notify("READY=1");
}

/// The limits that the options say.
fn current(args: &ServeArgs) -> anyhow::Result<Limits> {
    let mut limits = match &args.limits {
        Some(path) => limits::read(path)?,
        None => Limits::default(),
    };
    limits.served_file_systems |= args.served_file_systems;
    Ok(limits)
}

/// Where clients connect, and what people call it.
fn listen(args: &ServeArgs) -> anyhow::Result<(Listener, String)> {
    if let Some(listener) = Listener::from_systemd()? {
        let address = rustix::net::getsockname(&listener).ok();
        let address = address.and_then(|address| SocketAddrUnix::try_from(address).ok());
        let path = address.as_ref().and_then(SocketAddrUnix::path_bytes).map(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            text.trim_end_matches('\0').to_owned()
        });
        return Ok((listener, path.unwrap_or_else(|| "a socket from systemd".into())));
    }
    let Some(path) = args.socket.as_deref() else {
        bail!("systemd has handed over no socket: say where to listen with --socket PATH");
    };
    Ok((Listener::bind(path, args.socket_mode)?, path.display().to_string()))
}

/// Tells systemd, if there is one. That it cannot be told stops nothing.
fn notify(state: &str) {
    if let Err(error) = pageferry_linux::notify_systemd(state) {
        tracing::warn!(%error, "systemd cannot be told how this service does");
    }
}
