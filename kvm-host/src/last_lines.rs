//! The last lines that a program wrote, for an error message.

use std::fs;
use std::path::Path;

/// Those of a log file. A file that cannot be read has none.
pub fn of_file(path: &Path, lines: usize) -> String {
    of_bytes(&fs::read(path).unwrap_or_default(), lines)
}

/// Those of an output, without empty ones. Leaves out QEMU's warnings about CPU features that TCG does
/// not support, which are the same each time.
pub fn of_bytes(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.contains("TCG doesn't support"))
        .collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_leave_out_warnings_about_cpu_features() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let text = "qemu: cannot listen\n\nqemu: warning: TCG doesn't support requested feature\n";
        fs::write(log.path(), text).unwrap();
        assert_eq!(of_file(log.path(), 5), "qemu: cannot listen");
    }
}
