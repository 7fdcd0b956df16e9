//! Size, holes and allocation.

use pageferry_linux::HostFile;

use crate::{file_of, unsupported};

const BLOCK: u64 = 64 << 10;

/// A file of four blocks of ones, twos, threes and fours, whose file system can do `what`.
fn blocks(what: impl FnOnce(&HostFile) -> std::io::Result<()>) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = (0..4 * BLOCK).map(|at| (at / BLOCK + 1) as u8).collect();
    let file = file_of(&bytes);
    match what(&file) {
        Err(e) if unsupported(&e) => {
            println!("skipped: {e}");
            None
        }
        result => {
            result.expect("change");
            let size = file.observe().expect("stat").size as usize;
            let mut bytes = vec![0; size];
            assert_eq!(file.read_at(&mut bytes, 0).expect("read"), size);
            Some(bytes.chunks(BLOCK as usize).map(|c| c[0]).collect())
        }
    }
}

fn check(expected: &[u8], what: impl FnOnce(&HostFile) -> std::io::Result<()>) {
    if let Some(found) = blocks(what) {
        assert_eq!(found, expected);
    }
}

#[test]
fn changes_do_what_their_names_say() {
    check(&[1, 2, 3, 4], |_| Ok(()));
    check(&[1, 2], |f| f.set_len(2 * BLOCK));
    check(&[1, 2, 3, 4, 0], |f| f.set_len(5 * BLOCK));
    check(&[1, 0, 3, 4], |f| f.punch_hole(BLOCK..2 * BLOCK));
    check(&[1, 2, 3, 0], |f| f.zero_range(3 * BLOCK..5 * BLOCK, true));
    check(&[1, 2, 3, 0, 0], |f| f.zero_range(3 * BLOCK..5 * BLOCK, false));
    check(&[1, 2, 3, 4], |f| f.allocate(3 * BLOCK..6 * BLOCK, true));
    check(&[1, 2, 3, 4, 0, 0], |f| f.allocate(3 * BLOCK..6 * BLOCK, false));
    check(&[1, 3, 4], |f| f.collapse_range(BLOCK..2 * BLOCK));
    check(&[1, 0, 2, 3, 4], |f| f.insert_range(BLOCK..2 * BLOCK));
    check(&[1, 2, 3, 4], |f| f.sync(true).and(f.sync(false)));
}
