//! The header of a GGUF file (versions 2 and 3, little-endian): metadata and where tensors lie.
//!
//! Every length is checked against the bytes that are there before it is used, and lists stay where
//! they are in the file: nothing is reserved by a count that the file states.

use super::blocks::ElementType;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// What a GGUF file starts with.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Longest key and tensor name that the format allows, in bytes.
const MAX_KEY: usize = 65_535;
/// Most dimensions of a tensor that the format allows.
const MAX_DIMENSIONS: u32 = 4;
/// Where the file names no alignment.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A parsed header.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, Entry>,
    pub tensors: BTreeMap<String, TensorEntry>,
}

/// One value of the metadata. Places are bytes of the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    /// Texts, each after its length.
    Texts(Range<usize>),
    /// Numbers or flags, little-endian.
    Numbers(Range<usize>),
}

impl fmt::Display for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(number) => write!(out, "{number}"),
            Self::Signed(number) => write!(out, "{number}"),
            Self::Float(number) => write!(out, "{number}"),
            Self::Flag(flag) => write!(out, "{flag}"),
            Self::Text(text) => write!(out, "{text:?}"),
            Self::Texts(_) | Self::Numbers(_) => out.write_str("a list"),
        }
    }
}

/// A tensor, wholly inside the file where its type is known.
#[derive(Clone, Debug)]
pub(super) struct TensorEntry {
    /// Slowest dimension first, as in the other formats.
    pub shape: Vec<usize>,
    /// Its type, or what the type is called.
    pub elements: Result<ElementType, String>,
    /// Bytes of the file; empty for an unknown type.
    pub place: Range<usize>,
}

/// Parses and checks the header of a mapped file.
///
/// # Errors
/// What is wrong, as a part of a sentence.
pub(super) fn read_header(bytes: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != MAGIC {
        return Err("it does not start with \"GGUF\"".into());
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() < 16 => return Err("it is big-endian".into()),
        version => return Err(format!("it has GGUF version {version}; 2 and 3 can be read")),
    }
    let (tensors, entries) = (cursor.u64()?, cursor.u64()?);
    let mut header = Header::default();
    for _ in 0..entries {
        let key = cursor.name()?;
        let kind = cursor.u32()?;
        let entry = cursor.entry(kind).map_err(|problem| format!("metadata {key}: {problem}"))?;
        if header.metadata.insert(key.clone(), entry).is_some() {
            return Err(format!("metadata {key} is there twice"));
        }
    }
    for _ in 0..tensors {
        let name = cursor.name()?;
        let entry = cursor.tensor().map_err(|problem| format!("tensor {name}: {problem}"))?;
        if header.tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    let start = data_start(&header, cursor.at)?;
    for (name, tensor) in &mut header.tensors {
        tensor.place_within(start, bytes.len()).map_err(|p| format!("tensor {name} {p}"))?;
    }
    Ok(header)
}

impl Header {
    /// A text of the metadata.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Entry::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The texts of a list of the metadata; `bytes` is the file that the header was read from.
    pub(super) fn texts<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Vec<&'a str>> {
        let Some(Entry::Texts(place)) = self.metadata.get(key) else { return None };
        let mut cursor = Cursor { bytes: &bytes[..place.end], at: place.start };
        let mut texts = Vec::new();
        while cursor.at < place.end {
            texts.push(cursor.text().expect("it was read when the header was"));
        }
        Some(texts)
    }

    /// The numbers of a list of 32-bit integers of the metadata.
    pub(super) fn integers(&self, bytes: &[u8], key: &str) -> Option<Vec<i32>> {
        let Some(Entry::Numbers(place)) = self.metadata.get(key) else { return None };
        let (words, rest) = bytes[place.clone()].as_chunks();
        rest.is_empty().then(|| words.iter().map(|word| i32::from_le_bytes(*word)).collect())
    }
}

/// Where the tensors' offsets count from.
fn data_start(header: &Header, end: usize) -> Result<usize, String> {
    let alignment = match header.metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Entry::Unsigned(alignment)) if *alignment > 0 && alignment.is_multiple_of(8) => {
            *alignment
        }
        Some(_) => return Err("general.alignment is not a multiple of 8".into()),
    };
    let alignment = usize::try_from(alignment).map_err(|_| "general.alignment is too large")?;
    end.checked_next_multiple_of(alignment).ok_or_else(|| "general.alignment is too large".into())
}

impl TensorEntry {
    /// Turns the offset into bytes of the file.
    fn place_within(&mut self, start: usize, file_bytes: usize) -> Result<(), String> {
        let Ok(elements) = &self.elements else {
            self.place = 0..0;
            return Ok(());
        };
        let (weights, size) = elements.block();
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(weights) {
            return Err(format!("has rows of {row} weights, not whole blocks of {weights}"));
        }
        let count = self.shape.iter().try_fold(1usize, |count, n| count.checked_mul(*n));
        let length = count.and_then(|count| (count / weights).checked_mul(size));
        let from = start.checked_add(self.place.start);
        let to = from.zip(length).and_then(|(from, length)| from.checked_add(length));
        match (from, to) {
            (Some(from), Some(to)) if to <= file_bytes => {
                self.place = from..to;
                Ok(())
            }
            _ => Err(format!(
                "of shape {:?} does not lie in the file's {file_bytes} bytes",
                self.shape
            )),
        }
    }
}

/// A place in the file, never beyond its end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it ends inside its header, at byte {}", self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(*self.take(N)?.first_chunk().expect("so many were taken"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize, String> {
        let length = self.u64()?;
        usize::try_from(length).map_err(|_| format!("length {length} is too large"))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| "a text is not UTF-8".into())
    }

    fn name(&mut self) -> Result<String, String> {
        let name = self.text()?;
        if name.len() > MAX_KEY {
            return Err(format!("a name has {} bytes", name.len()));
        }
        Ok(name.into())
    }

    fn entry(&mut self, kind: u32) -> Result<Entry, String> {
        Ok(match kind {
            0 => Entry::Unsigned(u64::from(u8::from_le_bytes(self.array()?))),
            1 => Entry::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Entry::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Entry::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Entry::Unsigned(u64::from(self.u32()?)),
            5 => Entry::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Entry::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Entry::Flag(self.array::<1>()? != [0]),
            8 => Entry::Text(self.text()?.into()),
            9 => return self.list(),
            10 => Entry::Unsigned(self.u64()?),
            11 => Entry::Signed(i64::from_le_bytes(self.array()?)),
            12 => Entry::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("value type {other} is not known")),
        })
    }

    fn list(&mut self) -> Result<Entry, String> {
        let (kind, count) = (self.u32()?, self.length()?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                let start = self.at;
                for _ in 0..count {
                    self.text()?;
                }
                return Ok(Entry::Texts(start..self.at));
            }
            other => return Err(format!("lists of value type {other} are not supported")),
        };
        let length = count.checked_mul(size).ok_or("its length overflows")?;
        self.take(length)?;
        Ok(Entry::Numbers(self.at - length..self.at))
    }

    /// A tensor whose place still counts from the start of the data.
    fn tensor(&mut self) -> Result<TensorEntry, String> {
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!("it has {dimensions} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.length()?);
        }
        shape.reverse();
        let elements = ElementType::of_ggml(self.u32()?);
        let offset = self.length()?;
        Ok(TensorEntry { shape, elements, place: offset..offset })
    }
}
