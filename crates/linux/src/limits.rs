//! The kernel's limit on mappings.

use std::fs;

/// `vm.max_map_count`: mappings that a process may have. 65,530 if it cannot be read.
#[must_use]
pub fn max_map_count() -> u64 {
    let text = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(65_530)
}

/// Mappings that this process has now. Reads `/proc/self/maps`: milliseconds when there are many.
#[must_use]
pub fn vma_count() -> u64 {
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    maps.iter().filter(|b| **b == b'\n').count() as u64
}
