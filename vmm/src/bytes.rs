//! Reading fixed fields of headers and records.

/// The `N` bytes at `offset`, which must be within `bytes`: callers read fixed layouts.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}
