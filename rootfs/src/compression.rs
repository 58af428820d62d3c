//! Unpacks the four formats in which Debian and others compress kernels and modules. The magic at the
//! start tells the format.
//!
//! Input is not trusted: the output is bounded, and every error names the format. Only tests
//! compress.

use std::fmt;
use std::io::{self, Read};

use thiserror::Error;

/// Most bytes that a kernel or module may unpack to.
pub const UNPACKED_LIMIT_BYTES: usize = 512 << 20;

const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184C_2102_u32.to_le_bytes();
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;

/// A compression format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Gzip,
    Lz4Legacy,
    Xz,
    Zstd,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Lz4Legacy => "legacy LZ4",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        })
    }
}

/// Why compressed bytes could not be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    #[error("the {format} stream is damaged or cut short")]
    Damaged { format: Format, source: io::Error },
    #[error("a legacy LZ4 block of {block_bytes} bytes is announced, {left_bytes} are left")]
    BlockBeyondEnd {
        block_bytes: usize,
        left_bytes: usize,
    },
    #[error("legacy LZ4 block {block} is damaged")]
    DamagedBlock {
        block: usize,
        source: lz4_flex::block::DecompressError,
    },
    #[error("the {format} stream unpacks to more than {UNPACKED_LIMIT_BYTES} bytes")]
    TooLarge { format: Format },
}

/// The format of `bytes`, or `None` if they are in none of the four.
pub fn detect(bytes: &[u8]) -> Option<Format> {
    const MAGICS: [(&[u8], Format); 4] = [
        (&[0x1f, 0x8b], Format::Gzip),
        (&LZ4_LEGACY_MAGIC, Format::Lz4Legacy),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
        (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
    ];
    MAGICS
        .iter()
        .find(|(magic, _)| bytes.starts_with(magic))
        .map(|(_, format)| *format)
}

/// Unpacks one stream. Bytes after its end are ignored: a kernel's payload has its unpacked size
/// there.
pub fn unpack(format: Format, bytes: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let damaged = |source| UnpackError::Damaged { format, source };
    match format {
        Format::Gzip => read_bounded(format, flate2::read::GzDecoder::new(bytes)),
        Format::Lz4Legacy => unpack_lz4_legacy(bytes),
        Format::Xz => read_bounded(format, lzma_rust2::XzReader::new(bytes, false)),
        Format::Zstd => {
            let reader = ruzstd::decoding::StreamingDecoder::new(bytes)
                .map_err(|source| damaged(io::Error::other(source)))?;
            read_bounded(format, reader)
        }
    }
}

fn read_bounded(format: Format, reader: impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut unpacked = Vec::new();
    let limit = UNPACKED_LIMIT_BYTES as u64;
    reader
        .take(limit + 1)
        .read_to_end(&mut unpacked)
        .map_err(|source| UnpackError::Damaged { format, source })?;
    if unpacked.len() > UNPACKED_LIMIT_BYTES {
        return Err(UnpackError::TooLarge { format });
    }
    Ok(unpacked)
}

/// The format of `lz4 -l`: the magic, then blocks of at most 8 MiB unpacked, each after its packed
/// length. There is no end mark. A kernel's payload ends with four bytes that look like one more
/// length without a block.
fn unpack_lz4_legacy(bytes: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let mut unpacked = Vec::new();
    let mut rest = bytes.strip_prefix(&LZ4_LEGACY_MAGIC).unwrap_or(bytes);
    let mut block = 0;
    while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
        if blocks.is_empty() {
            break;
        }
        let block_bytes = u32::from_le_bytes(*length) as usize;
        let (packed, next) =
            blocks
                .split_at_checked(block_bytes)
                .ok_or(UnpackError::BlockBeyondEnd {
                    block_bytes,
                    left_bytes: blocks.len(),
                })?;
        let data = lz4_flex::block::decompress(packed, LZ4_LEGACY_BLOCK_BYTES)
            .map_err(|source| UnpackError::DamagedBlock { block, source })?;
        if unpacked.len() + data.len() > UNPACKED_LIMIT_BYTES {
            return Err(UnpackError::TooLarge {
                format: Format::Lz4Legacy,
            });
        }
        unpacked.extend_from_slice(&data);
        rest = next;
        block += 1;
    }
    Ok(unpacked)
}

/// Packers for the tests of this crate.
#[cfg(test)]
pub(crate) mod pack {
    use std::io::Write;

    use super::*;

    pub(crate) const FORMATS: [Format; 4] =
        [Format::Gzip, Format::Lz4Legacy, Format::Xz, Format::Zstd];

    pub(crate) fn pack(format: Format, bytes: &[u8]) -> Vec<u8> {
        match format {
            Format::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Format::Lz4Legacy => {
                let mut packed = LZ4_LEGACY_MAGIC.to_vec();
                for chunk in bytes.chunks(LZ4_LEGACY_BLOCK_BYTES) {
                    let block = lz4_flex::block::compress(chunk);
                    packed.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
                    packed.extend_from_slice(&block);
                }
                packed
            }
            Format::Xz => {
                let mut options = lzma_rust2::XzOptions::with_preset(1);
                // Kernels are packed with `xz --x86`.
                options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
                let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                writer.write_all(bytes).unwrap();
                writer.finish().unwrap()
            }
            Format::Zstd => ruzstd::encoding::compress_to_vec(
                bytes,
                ruzstd::encoding::CompressionLevel::Fastest,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that compress, but not to almost nothing.
    fn sample(bytes: usize) -> Vec<u8> {
        (0..=250)
            .flat_map(|byte| [byte; 7])
            .cycle()
            .take(bytes)
            .collect()
    }

    #[test]
    fn each_format_is_detected_by_its_magic_and_unpacks_to_what_was_packed() {
        let sample = sample(300_000);
        for format in pack::FORMATS {
            let packed = pack::pack(format, &sample);
            assert_eq!(detect(&packed), Some(format));
            assert!(unpack(format, &packed).unwrap() == sample, "{format}");
        }
    }

    #[test]
    fn legacy_lz4_has_as_many_blocks_as_it_needs() {
        let sample = sample(2 * LZ4_LEGACY_BLOCK_BYTES + 77);
        let packed = pack::pack(Format::Lz4Legacy, &sample);
        assert!(unpack(Format::Lz4Legacy, &packed).unwrap() == sample);
    }

    #[test]
    fn the_size_that_a_kernel_appends_to_its_payload_is_no_error() {
        for format in pack::FORMATS {
            let mut packed = pack::pack(format, b"kernel");
            packed.extend_from_slice(&6_u32.to_le_bytes());
            assert_eq!(unpack(format, &packed).unwrap(), b"kernel", "{format}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_short_is_refused() {
        let sample = sample(300_000);
        for format in pack::FORMATS {
            let packed = pack::pack(format, &sample);
            let cut = &packed[..packed.len() / 2];
            assert!(unpack(format, cut).is_err(), "{format}");
        }
    }

    #[test]
    fn noise_after_the_magic_is_refused() {
        let noise: Vec<u8> = (0..4096_u32)
            .map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect();
        for format in pack::FORMATS {
            let mut packed = pack::pack(format, b"kernel");
            packed.truncate(6);
            packed.extend_from_slice(&noise);
            assert!(unpack(format, &packed).is_err(), "{format}");
        }
    }

    #[test]
    fn plain_bytes_are_no_format() {
        assert_eq!(detect(b"\x7fELF"), None);
        assert_eq!(detect(b""), None);
    }
}
