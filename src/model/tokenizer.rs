//! `tokenizer.json`, documents and windows.

use super::checkpoint::CheckpointError;
use super::gguf_tokenizer;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use tokenizers::ModelWrapper;

/// Characters that are tokenized together. Part of the definition of a document's ids, because a
/// symbol cannot reach over a cut.
pub const PIECE_CHARACTERS: usize = 20_000;

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// A text as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Unicode characters of the text.
    pub characters: usize,
}

/// Windows of one length over a document: every input predicts the id after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows<'a> {
    /// `[windows, length]`.
    pub inputs: &'a [u32],
    /// `[windows, length]`: the inputs one further. The last of a window is the first of the next.
    pub targets: &'a [u32],
    /// Tokens of a window.
    pub length: usize,
}

/// Why a text cannot be turned into ids.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The file cannot be opened.
    #[error("failed to open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not UTF-8.
    #[error("{} is not UTF-8 text: the first wrong byte is at offset {byte_offset}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the text stops being UTF-8.
        byte_offset: usize,
    },
    /// The tokenizer refuses the text.
    #[error("failed to tokenize characters {from} to {to}: {problem}")]
    Encode {
        /// First character of the piece.
        from: usize,
        /// End of the piece.
        to: usize,
        /// The tokenizer's words.
        problem: String,
    },
}

impl Tokenizer {
    /// Opens the tokenizer of a checkpoint: `tokenizer.json` of its folder. That of a GGUF file is
    /// the one in the file, where its kind is supported, or else `tokenizer.json` beside it.
    ///
    /// # Errors
    /// When there is none, it does not parse, or it drops merges at random.
    pub fn open(checkpoint: &Path) -> Result<Self, CheckpointError> {
        let (path, bytes) = if checkpoint.is_file() {
            let beside = checkpoint.with_file_name("tokenizer.json");
            match gguf_tokenizer::tokenizer_json(checkpoint)? {
                Ok(json) => (checkpoint.into(), json.into_bytes()),
                Err(_) if beside.is_file() => read(beside)?,
                Err(problem) => {
                    let problem = format!("{problem}; put the model's tokenizer.json beside it");
                    let (path, problems) = (checkpoint.into(), vec![problem]);
                    return Err(CheckpointError::Config { path, problems });
                }
            }
        } else {
            read(checkpoint.join("tokenizer.json"))?
        };
        let parsed = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string());
        let wrong = |problem: String| CheckpointError::Config {
            path: path.clone(),
            problems: vec![problem],
        };
        let mut inner = parsed.map_err(wrong)?;
        if matches!(inner.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_some_and(|p| p > 0.0))
        {
            return Err(wrong("`model.dropout` is set, which makes token ids random".into()));
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { inner })
    }

    /// Token ids of a text: pieces of [`PIECE_CHARACTERS`] are tokenized each on its own, without
    /// special tokens, and their ids joined.
    ///
    /// # Errors
    /// When the tokenizer refuses a piece.
    pub fn encode_document(&self, text: &str) -> Result<Document, TextError> {
        let mut cuts: Vec<usize> =
            text.char_indices().step_by(PIECE_CHARACTERS).map(|(byte, _)| byte).collect();
        cuts.push(text.len());
        let pieces: Vec<Vec<u32>> = cuts
            .par_windows(2)
            .enumerate()
            .map(|(piece, cut)| match self.inner.encode_fast(&text[cut[0]..cut[1]], false) {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(error) => Err(TextError::Encode {
                    from: piece * PIECE_CHARACTERS,
                    to: (piece + 1) * PIECE_CHARACTERS,
                    problem: error.to_string(),
                }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Document { ids: pieces.concat(), characters: text.chars().count() })
    }
}

fn read(path: PathBuf) -> Result<(PathBuf, Vec<u8>), CheckpointError> {
    match std::fs::read(&path) {
        Ok(bytes) => Ok((path, bytes)),
        Err(source) => Err(CheckpointError::Open { path, source }),
    }
}

/// Reads a UTF-8 text.
///
/// # Errors
/// When the file cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, TextError> {
    let bytes =
        std::fs::read(path).map_err(|source| TextError::Open { path: path.into(), source })?;
    String::from_utf8(bytes).map_err(|error| TextError::NotUtf8 {
        path: path.into(),
        byte_offset: error.utf8_error().valid_up_to(),
    })
}

/// The `⌊(n − 1) / length⌋` whole windows of `n` ids.
///
/// # Panics
/// When `length` is zero.
#[must_use]
pub fn windows(ids: &[u32], length: usize) -> Windows<'_> {
    let tokens = ids.len().saturating_sub(1) / length * length;
    let targets = if tokens == 0 { &[] } else { &ids[1..=tokens] };
    Windows { inputs: &ids[..tokens], targets, length }
}

#[cfg(test)]
mod tests {
    use super::windows;

    #[test]
    fn a_window_needs_the_id_after_it() {
        let ids: Vec<u32> = (0..9).collect();
        for (count, length, inputs) in
            [(0, 4, 0), (1, 4, 0), (4, 4, 0), (5, 4, 4), (8, 4, 4), (9, 4, 8)]
        {
            let cut = windows(&ids[..count], length);
            assert_eq!(cut.inputs, &ids[..inputs], "{count} ids");
            let next: Vec<u32> = cut.inputs.iter().map(|id| id + 1).collect();
            assert_eq!(cut.targets, next, "{count} ids");
        }
    }
}
