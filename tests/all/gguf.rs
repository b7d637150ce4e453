//! GGUF files that are damaged, hostile or of another kind, and tokenizers in them.

use agents::rng::stream;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::tokenizer::{Tokenizer, read_text};
use rand::RngExt as _;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tiny(name: &str) -> PathBuf {
    root().join("tests/oracles/tiny").join(name)
}

/// Opens a file of these bytes and reads all of it.
fn read_all(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).expect("space");
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    checkpoint.trunk().map_err(|error| error.to_string())?;
    for layer in checkpoint.config.routed_layers.clone() {
        for expert in 0..checkpoint.config.moe.map_or(0, |moe| moe.experts) {
            checkpoint.expert(layer, expert).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// A header under construction.
#[derive(Clone)]
struct Header(Vec<u8>);

impl Header {
    fn new(version: u32, tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).word(version).long(tensors).long(entries)
    }

    fn word(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn long(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Self {
        self = self.long(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }

    /// Name, dimensions (fastest first), type and offset.
    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self = self.text(name).word(u32::try_from(dimensions.len()).expect("few"));
        for dimension in dimensions {
            self = self.long(*dimension);
        }
        self.word(kind).long(offset)
    }

    fn with_data(mut self, bytes: usize) -> Self {
        let end = self.0.len().next_multiple_of(32) + bytes;
        self.0.resize(end, 0);
        self
    }
}

#[test]
fn hostile_headers_are_refused_before_anything_is_reserved_for_them() {
    let one = |tensor: Header| tensor.with_data(64);
    let header = || Header::new(3, 1, 0);
    let entry = |kind| Header::new(3, 0, 1).text("key").word(kind);
    let cases: [(&str, Header, &str); 19] = [
        ("nothing", Header(Vec::new()), "ends inside its header, at byte 0"),
        ("another kind", Header(b"GGML0000".to_vec()), "does not start with \"GGUF\""),
        ("version 1", Header::new(1, 0, 0), "version 1; 2 and 3 can be read"),
        ("big-endian", Header::new(3_u32.swap_bytes(), 0, 0), "it is big-endian"),
        ("no counts", Header(b"GGUF\x03\0\0\0".to_vec()), "ends inside its header, at byte 8"),
        ("many entries", Header::new(3, 0, u64::MAX), "ends inside its header, at byte 24"),
        ("many tensors", Header::new(3, u64::MAX, 0), "ends inside its header, at byte 24"),
        ("a long key", Header::new(3, 0, 1).long(u64::MAX), "ends inside its header, at byte 32"),
        ("a long text", entry(8).long(1 << 60), "ends inside its header"),
        ("a long list", entry(9).word(6).long(1 << 61), "metadata key: it ends inside its header"),
        ("an endless list", entry(9).word(6).long(1 << 62), "its length overflows"),
        ("a long list of texts", entry(9).word(8).long(1 << 61), "ends inside its header"),
        ("lists in lists", entry(9).word(9).long(1), "lists of value type 9 are not supported"),
        ("an unknown value", entry(99), "value type 99 is not known"),
        (
            "no alignment",
            Header::new(3, 0, 1).text("general.alignment").word(4).word(0),
            "general.alignment is not a multiple of 8",
        ),
        ("many dimensions", header().text("a").word(5), "it has 5 dimensions"),
        (
            "a shape that overflows",
            one(header().tensor("a", &[32, 1 << 62, 1 << 62], 0, 0)),
            "does not lie in the file's",
        ),
        (
            "an offset that overflows",
            one(header().tensor("a", &[8], 0, u64::MAX - 8)),
            "does not lie in the file's",
        ),
        (
            "a part of a block",
            one(header().tensor("a", &[48], 8, 0)),
            "rows of 48 weights, not whole blocks of 32",
        ),
    ];
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("hostile.gguf");
    for (case, Header(bytes), part) in cases {
        let error = read_all(&path, &bytes).expect_err(case);
        assert!(error.contains(part) && error.contains("hostile.gguf"), "{case}: {error}");
    }
    let twice = header().tensor("a", &[8], 0, 0).0;
    let twice = [&Header::new(3, 2, 0).0[..], &twice[24..], &twice[24..]].concat();
    let error = read_all(&path, &twice).expect_err("twice");
    assert!(error.contains("tensor a is there twice"), "{error}");
}

#[test]
fn no_flipped_bit_or_cut_makes_the_reader_panic() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("damaged.gguf");
    let mut rng = stream(12, "damaged GGUF files");
    for name in ["llama.gguf", "qwen2_moe.gguf", "qwen3_moe-mixed.gguf", "tokenizer.gguf"] {
        let whole = fs::read(tiny(name)).expect("committed");
        // Everything but weights and words lies in the first bytes.
        let header = whole.len().min(4096);
        let mut refused = 0;
        for case in 0..300 {
            let mut bytes = whole.clone();
            match case % 3 {
                0 => bytes.truncate(rng.random_range(0..whole.len())),
                1 => bytes[rng.random_range(0..header)] ^= 1 << rng.random_range(0..8),
                _ => {
                    let at = rng.random_range(0..header - 8);
                    bytes[at..at + 8].copy_from_slice(&rng.random::<u64>().to_le_bytes());
                }
            }
            refused += usize::from(read_all(&path, &bytes).is_err());
            // Words of a damaged list may be any text, but never a panic.
            drop(Tokenizer::open(&path));
        }
        assert!(refused >= 100, "{name}: {refused} of 300 were refused");
    }
}

/// A copy of a file in which some bytes are others, found by what they are.
fn changed(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = fs::read(tiny(name)).expect("committed");
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from).expect("it is there");
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

#[test]
fn files_of_other_models_are_refused_with_what_is_supported() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("other.gguf");
    let cases: [(&str, &[u8], &[u8], &str); 5] = [
        (
            "another family",
            b"qwen3moe\x17",
            b"grok-moe\x17",
            "`general.architecture` is \"grok-moe\" with 0 experts; supported are llama, olmoe, \
             qwen2moe, qwen3moe",
        ),
        (
            "a renamed tensor",
            b"blk.1.attn_q.weight",
            b"blk.1.attn_x.weight",
            "tensor blk.1.attn_q.weight is missing from",
        ),
        (
            "a type that is not supported",
            b"output_norm.weight\x01\0\0\0\x20\0\0\0\0\0\0\0\0",
            b"output_norm.weight\x01\0\0\0\x20\0\0\0\0\0\0\0\x14",
            "tensor output_norm.weight in",
        ),
        (
            "more experts than there are",
            b"expert_count\x04\0\0\0\x06",
            b"expert_count\x04\0\0\0\x07",
            "has shape [6, 32], expected [7, 32]",
        ),
        (
            "too many experts a token",
            b"expert_used_count\x04\0\0\0\x03",
            b"expert_used_count\x04\0\0\0\x09",
            "`num_experts_per_tok` is 9 but there are 6 experts",
        ),
    ];
    for (case, from, to, part) in cases {
        let error = read_all(&path, &changed("qwen3_moe.gguf", from, to)).expect_err(case);
        assert!(error.contains(part), "{case}: {error}");
    }
    let error = read_all(&path, &changed("qwen3_moe.gguf", cases[2].1, cases[2].2));
    let error = error.expect_err("IQ4_NL");
    assert!(error.contains("is IQ4_NL, expected F32, F16, BF16, Q4_0"), "{error}");
}

/// A file with one more entry of metadata: counts stand at byte 16, entries start at byte 24.
fn with_entry(name: &str, entry: Header) -> Vec<u8> {
    let mut bytes = fs::read(tiny(name)).expect("committed");
    let entries = u64::from_le_bytes(*bytes[16..].first_chunk().expect("a header"));
    // Tensors lie from the end of the header on, so a filler keeps the alignment.
    let filler = "x".repeat(64 - (13 + entry.0.len()) % 32);
    bytes[16..24].copy_from_slice(&(entries + 2).to_le_bytes());
    let filler = Header(Vec::new()).text(&filler).word(0).0;
    let entry = [filler, vec![0], entry.0].concat();
    bytes.splice(24..24, entry);
    bytes
}

#[test]
fn switches_that_would_give_other_numbers_are_refused_by_key() {
    let key = |key: &str, kind| Header(Vec::new()).text(key).word(kind);
    let cases: [(Header, Option<&str>); 8] = [
        (key("olmoe.expert_gating_func", 4).word(2), Some("gating_func` is 2; only softmax, 1,")),
        (key("olmoe.expert_gating_func", 4).word(1), None),
        (key("olmoe.rope.scaling.type", 8).text("yarn"), Some("is \"yarn\"; only none is")),
        (key("olmoe.rope.dimension_count", 4).word(4), Some("is 4; only a whole head is")),
        (key("olmoe.rope.dimension_count", 4).word(8), None),
        (key("olmoe.attention.sliding_window", 4).word(9), Some("sliding_window` is 9; only 0")),
        (key("olmoe.expert_weights_scale", 6).word(2.5_f32.to_bits()), Some("is 2.5; only 1 is")),
        (key("split.count", 4).word(2), Some("it is one of several parts")),
    ];
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("other.gguf");
    for (entry, part) in cases {
        let read = read_all(&path, &with_entry("olmoe.gguf", entry));
        match part {
            None => read.expect("supported"),
            Some(part) => {
                let error = read.expect_err(part);
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }
}

#[test]
fn the_tokenizer_in_a_gguf_file_gives_the_ids_of_the_one_it_was_made_of() {
    let text = read_text(&root().join("scenarios/text/murmuration.txt")).expect("shipped");
    let shipped = Tokenizer::open(&root().join("scenarios/models/books-dense")).expect("shipped");
    let file = Tokenizer::open(&tiny("tokenizer.gguf")).expect("a supported kind");
    let ids = |tokenizer: &Tokenizer, text: &str| {
        tokenizer.encode_document(text).expect("plain text").ids
    };
    assert!(ids(&file, &text) == ids(&shipped, &text));
    let with_end = ids(&file, "the end<|end|>the");
    assert_eq!(with_end, [ids(&file, "the end"), vec![1000], ids(&file, "the")].concat());
}

#[test]
fn a_tokenizer_that_cuts_words_by_unknown_rules_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("other.gguf");
    fs::write(&path, changed("tokenizer.gguf", b"gpt-2", b"gpt-9")).expect("space");
    let error = Tokenizer::open(&path).expect_err("unknown").to_string();
    let part =
        "`tokenizer.ggml.pre` is \"gpt-9\"; supported are gpt-2, olmo, qwen2, llama-bpe; put";
    assert!(error.contains(part) && error.contains("other.gguf"), "{error}");
}

#[test]
fn a_gguf_file_without_a_tokenizer_takes_the_one_beside_it() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("model.gguf");
    fs::copy(tiny("llama.gguf"), &path).expect("space");
    let error = Tokenizer::open(&path).expect_err("there is none").to_string();
    let parts = ["model.gguf", "`tokenizer.ggml.model` is \"absent\"", "tokenizer.json beside it"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    let shipped = root().join("scenarios/models/books-dense");
    fs::copy(shipped.join("tokenizer.json"), folder.path().join("tokenizer.json")).expect("space");
    let beside = Tokenizer::open(&path).and_then(|it| Ok((it, Tokenizer::open(&shipped)?)));
    let (beside, shipped) = beside.expect("both are whole");
    let ids = |it: &Tokenizer| it.encode_document("a murmuration").expect("plain text").ids;
    assert_eq!(ids(&beside), ids(&shipped));
}
