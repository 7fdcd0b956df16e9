//! Kernels over files larger than the device, against plain computations.

use crate::{errors, last_json, pageferry, pattern, scratch, shell};

const SMALL: [&str; 5] = ["--device-memory", "256k", "--frame", "64k", "--json"];

fn run(kernel: &[&str], bytes: u64) -> (serde_json::Value, Vec<u8>) {
    let s = scratch(bytes);
    let args: Vec<&str> =
        ["run"].iter().chain(kernel).chain(&["FILE"]).chain(&SMALL).copied().collect();
    let output = pageferry(&args, &s.file);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (last_json(&output), std::fs::read(&s.file).unwrap())
}

#[test]
fn reading_kernels() {
    for bytes in [0, 3, 4096, (5 << 20) + 7] {
        let data = pattern(bytes);
        let sum: u64 = data
            .chunks(4)
            .map(|c| {
                let mut word = [0; 4];
                word[..c.len()].copy_from_slice(c);
                u64::from(u32::from_le_bytes(word))
            })
            .sum();
        let (answer, file) = run(&["sum"], bytes);
        assert_eq!(answer["result"].as_u64(), Some(sum), "{bytes} bytes");
        assert!(file == data, "sum changed the file");
        let mut counts = vec![0u64; 256];
        data.iter().for_each(|b| counts[usize::from(*b)] += 1);
        let (answer, _) = run(&["histogram"], bytes);
        assert_eq!(answer["result"], serde_json::json!(counts), "{bytes} bytes");
    }
}

#[test]
fn writing_kernels() {
    let bytes = (3 << 20) + 6;
    let (_, file) = run(&["add", "--value", "4000000000"], bytes);
    let mut model = pattern(bytes);
    for e in model.as_chunks_mut::<4>().0 {
        *e = u32::from_le_bytes(*e).wrapping_add(4_000_000_000).to_le_bytes();
    }
    assert!(file == model);
    let (_, file) = run(&["xor", "--value", "90"], bytes);
    let model: Vec<u8> = pattern(bytes).iter().map(|b| b ^ 90).collect();
    assert!(file == model);
}

#[test]
fn saxpy_over_two_files() {
    let s = scratch(0);
    let y = s.file.with_file_name("y");
    let floats = |scale: f32| -> Vec<u8> {
        (0..500_000).flat_map(|n| (n as f32 * scale).to_le_bytes()).collect()
    };
    std::fs::write(&s.file, floats(1.0)).unwrap();
    std::fs::write(&y, floats(0.25)).unwrap();
    let name = y.to_str().unwrap();
    let mut args = vec!["run", "saxpy", "--a", "-1.5", "FILE", name];
    args.extend(SMALL);
    let output = pageferry(&args, &s.file);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result = std::fs::read(&y).unwrap();
    for (n, e) in result.as_chunks::<4>().0.iter().enumerate() {
        assert_eq!(f32::from_le_bytes(*e), -1.5 * n as f32 + n as f32 * 0.25, "element {n}");
    }
    std::fs::write(&y, b"short").unwrap();
    assert!(!pageferry(&args, &s.file).status.success(), "different sizes were accepted");
}

#[test]
fn a_write_back_that_fails_ends_the_run() {
    let s = scratch(4 << 20);
    for kernel in ["add", "xor"] {
        let line = format!("ulimit -f 128; $P run {kernel} $F --device-memory 1m --frame 64k");
        let output = shell(&line, &s.file);
        assert_eq!(output.status.code(), Some(1));
        let message = errors(&output);
        assert!(message.contains("File too large"), "{message}");
        assert!(message.contains("stopped after") && message.contains("LOST"), "{message}");
    }
}

#[test]
fn saxpy_refuses_one_file_as_both() {
    let s = scratch(64 << 10);
    let (hard, soft) = (s.file.with_file_name("hard"), s.file.with_file_name("soft"));
    std::fs::hard_link(&s.file, &hard).unwrap();
    std::os::unix::fs::symlink(&s.file, &soft).unwrap();
    for y in [&s.file, &hard, &soft] {
        let output = pageferry(&["run", "saxpy", "FILE", y.to_str().unwrap()], &s.file);
        assert_eq!(output.status.code(), Some(1));
        assert!(errors(&output).contains("same file"), "{}", errors(&output));
    }
    assert!(std::fs::read(&s.file).unwrap() == pattern(64 << 10));
}

#[test]
fn no_file_is_changed_if_another_cannot_be() {
    let s = scratch(8192);
    for other in ["/nonexistent/file", "/"] {
        let output = pageferry(&["run", "add", "FILE", other], &s.file);
        assert_eq!(output.status.code(), Some(1));
        assert!(std::fs::read(&s.file).unwrap() == pattern(8192), "{other}");
    }
}
