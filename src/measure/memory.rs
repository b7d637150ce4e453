//! How much memory this process has taken.

use std::fs;

/// The most that was resident at a time since its start, bytes; none where the system does not say (it is
/// `VmHWM` of Linux's /proc).
#[must_use]
pub fn peak_resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::peak_resident_bytes;

    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let Some(before) = peak_resident_bytes() else {
            return eprintln!("skipped: this system does not say");
        };
        let touched = vec![1_u8; 64 << 20];
        assert_eq!(touched.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 64 << 20);
        let after = peak_resident_bytes().expect("it said before");
        assert!(after > before && after >= 64 << 20, "{before} {after}");
    }
}
