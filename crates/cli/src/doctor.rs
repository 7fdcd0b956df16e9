//! `doctor`: what this kernel and machine allow, and what follows.

use comfy_table::presets;
use pageferry_linux::probe;
use serde_json::json;

use crate::args::DoctorArgs;
use crate::output::{line, table};

pub(crate) fn doctor(args: &DoctorArgs) -> anyhow::Result<bool> {
    let found = probe();
    let devices = [
        ("software device", true, "always there; its memory is the host's"),
        ("Vulkan", false, "not in this version"),
        ("CUDA", false, "not in this version"),
    ];
    if args.json {
        let capabilities: Vec<_> = found
            .iter()
            .map(|c| json!({ "name": c.name, "ok": c.ok, "detail": c.detail, "consequence": c.consequence }))
            .collect();
        let devices: Vec<_> = devices
            .iter()
            .map(|(name, ok, detail)| json!({ "name": name, "ok": ok, "detail": detail }))
            .collect();
        line(json!({ "capabilities": capabilities, "devices": devices }).to_string())?;
        return Ok(true);
    }
    let mut table = table(presets::NOTHING);
    table.set_header(["", "what", "found", "what follows"]);
    let mark = |ok: bool| if ok { "ok" } else { "--" };
    for c in &found {
        table.add_row([mark(c.ok), c.name, &c.detail, &c.consequence]);
    }
    for (name, ok, detail) in devices {
        table.add_row([mark(ok), name, detail, ""]);
    }
    line(table.to_string())?;
    Ok(true)
}
