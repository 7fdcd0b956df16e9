//! Who waits for whom, and who goes first.
