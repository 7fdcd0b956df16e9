//! What is shown of a machine.

use crate::{pageferry, scratch, text};

#[test]
fn tables_fit_a_screen() {
    let s = scratch(100);
    let doctor = text(&pageferry(&["doctor"], &s.file));
    assert!(doctor.lines().all(|line| line.chars().count() <= 100), "{doctor}");
}
