//! Checkpoints that were damaged on purpose: each must be refused with a message that names the
//! tensor and the file.

use agents::rng::stream;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::tokenizer::{Tokenizer, read_text};
use rand::RngExt as _;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Tensors as type, shape and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

const FIRST_SHARD: &str = "model-00001-of-00002.safetensors";
const SECOND_SHARD: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn shipped(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/models").join(model)
}

/// A copy of a shipped checkpoint that may be damaged.
fn copy_of(model: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("temporary folder");
    for entry in fs::read_dir(shipped(model)).expect("shipped checkpoint") {
        let path = entry.expect("readable folder").path();
        fs::copy(&path, copy.path().join(path.file_name().expect("a file"))).expect("space");
    }
    copy
}

fn change_tensors(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let bytes = fs::read(path).expect("shipped file");
    let mut tensors: Tensors = SafeTensors::deserialize(&bytes)
        .expect("a whole file")
        .iter()
        .map(|(name, view)| {
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).expect("sizes agree"))
    });
    serialize_to_file(views, None, path).expect("space");
}

fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).expect("shipped")).expect("JSON");
    change(&mut json);
    fs::write(path, json.to_string()).expect("space");
}

/// A safetensors file of a header and so many bytes of data.
fn write_raw(path: &Path, header: &str, data_bytes: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    fs::write(path, bytes).expect("space");
}

/// Opening and reading everything must fail with a message that has all of `parts`.
fn assert_refused(case: &str, directory: &Path, parts: &[&str]) {
    let result = Checkpoint::open(directory).and_then(|checkpoint| {
        checkpoint.trunk()?;
        for expert in 0..checkpoint.config.moe.map_or(0, |moe| moe.experts) {
            checkpoint.expert(0, expert)?;
        }
        Ok(())
    });
    let message = result.expect_err(case).to_string();
    for part in parts {
        assert!(message.contains(part), "{case}: {part:?} is not in {message:?}");
    }
}

#[test]
fn damaged_single_files_are_refused_by_tensor_and_file() {
    const FILE: &str = "model.safetensors";
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &[&str]); 11] = [
        (
            "missing tensor",
            |file| change_tensors(file, |t| drop(t.remove("model.layers.1.mlp.up_proj.weight"))),
            &["tensor model.layers.1.mlp.up_proj.weight is missing from", FILE],
        ),
        (
            "all that is missing is listed",
            |file| change_tensors(file, Tensors::clear),
            &["model.embed_tokens.weight is missing", "lm_head.weight is missing"],
        ),
        (
            "wrong shape",
            |file| {
                change_tensors(file, |t| {
                    t.get_mut("lm_head.weight").expect("head").1 = vec![256, 1000];
                });
            },
            &["tensor lm_head.weight in", FILE, "[256, 1000], expected [1000, 256]"],
        ),
        (
            "wrong type",
            |file| {
                change_tensors(file, |t| {
                    t.get_mut("model.norm.weight").expect("norm").0 = Dtype::I16;
                });
            },
            &["tensor model.norm.weight in", FILE, "is I16, expected F32, F16 or BF16"],
        ),
        (
            "a weight that is not a number",
            |file| {
                change_tensors(file, |t| {
                    let bytes = &mut t.get_mut("lm_head.weight").expect("head").2;
                    bytes[20..22].copy_from_slice(&half::f16::NAN.to_le_bytes());
                });
            },
            &["tensor lm_head.weight in", FILE, "not finite at position 10"],
        ),
        (
            "cut data",
            |file| {
                let bytes = fs::read(file).expect("shipped");
                fs::write(file, &bytes[..bytes.len() - 1]).expect("space");
            },
            &[FILE, "is damaged: tensor model.norm.weight ends at byte"],
        ),
        ("cut header", |file| write_cut(file, 100), &[FILE, "end before its header does"]),
        ("no header", |file| write_cut(file, 0), &[FILE, "its 0 bytes end before"]),
        (
            "garbage in the header",
            |file| write_raw(file, "{\"lm_head.weight\": ", 0),
            &[FILE, "is damaged: its header"],
        ),
        (
            "offsets that overflow",
            |file| {
                let header = r#"{"a":{"dtype":"U8","shape":[18446744073709551615],
                    "data_offsets":[0,18446744073709551615]}}"#;
                write_raw(file, header, 4);
            },
            &[FILE, "tensor a ends at byte 18446744073709551615 of 4"],
        ),
        (
            "sizes that do not fit the offsets",
            |file| {
                let header = r#"{"a":{"dtype":"F16","shape":[3],"data_offsets":[4,2]}}"#;
                write_raw(file, header, 4);
            },
            &[FILE, "tensor a has shape [3] of F16 in bytes 4 to 2"],
        ),
    ];
    for (case, damage, parts) in cases {
        let copy = copy_of("books-dense");
        damage(&copy.path().join(FILE));
        assert_refused(case, copy.path(), parts);
    }
}

fn write_cut(file: &Path, bytes: usize) {
    let whole = fs::read(file).expect("shipped");
    fs::write(file, &whole[..bytes]).expect("space");
}

#[test]
fn damaged_folders_are_refused_by_tensor_and_file() {
    const EXPERT: &str = "model.layers.0.mlp.experts.7.down_proj.weight";
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &[&str]); 12] = [
        (
            "missing index",
            |dir| fs::remove_file(dir.join(INDEX)).expect("copied"),
            &["holds neither model.safetensors nor model.safetensors.index.json"],
        ),
        ("garbage index", |dir| fs::write(dir.join(INDEX), "{]").expect("space"), &[INDEX, "JSON"]),
        (
            "index without a map",
            |dir| change_json(&dir.join(INDEX), |json| json["weight_map"] = json!([])),
            &[INDEX, "`weight_map` is not an object"],
        ),
        (
            "tensor that the index does not name",
            |dir| {
                change_json(&dir.join(INDEX), |json| {
                    json["weight_map"].as_object_mut().expect("map").remove(EXPERT);
                });
            },
            &["tensor model.layers.0.mlp.experts.7.down_proj.weight is missing from", INDEX],
        ),
        (
            "tensor in another file than the index says",
            |dir| {
                change_json(&dir.join(INDEX), |json| {
                    json["weight_map"][EXPERT] = json!(SECOND_SHARD)
                })
            },
            &["tensor model.layers.0.mlp.experts.7.down_proj.weight is missing from", SECOND_SHARD],
        ),
        (
            "file outside the folder",
            |dir| {
                change_json(&dir.join(INDEX), |json| {
                    json["weight_map"][EXPERT] = json!("../other/model.safetensors");
                });
            },
            &[INDEX, EXPERT, "../other/model.safetensors", "not a file name in this folder"],
        ),
        (
            "absolute file",
            |dir| {
                change_json(&dir.join(INDEX), |json| {
                    json["weight_map"][EXPERT] = json!("/etc/passwd")
                })
            },
            &[INDEX, EXPERT, "not a file name in this folder"],
        ),
        (
            "missing weight file",
            |dir| fs::remove_file(dir.join(SECOND_SHARD)).expect("copied"),
            &["failed to open", SECOND_SHARD],
        ),
        (
            "wrong shape of an expert",
            |dir| {
                change_tensors(&dir.join(FIRST_SHARD), |t| {
                    t.get_mut(EXPERT).expect("expert").1 = vec![64, 256];
                });
            },
            &[EXPERT, FIRST_SHARD, "[64, 256], expected [256, 64]"],
        ),
        (
            "infinite weight in an expert",
            |dir| {
                change_tensors(&dir.join(FIRST_SHARD), |t| {
                    let bytes = &mut t.get_mut(EXPERT).expect("expert").2;
                    bytes[..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
                });
            },
            &[EXPERT, FIRST_SHARD, "not finite at position 0"],
        ),
        (
            "garbage configuration",
            |dir| fs::write(dir.join("config.json"), "width = 256").expect("space"),
            &["config.json is not valid JSON"],
        ),
        (
            "configuration of another model",
            |dir| {
                change_json(&dir.join("config.json"), |json| {
                    json["num_experts"] = json!(65);
                    json["hidden_act"] = json!("gelu");
                    json["num_experts_per_tok"] = json!(66);
                });
            },
            &[
                "config.json cannot be run",
                "`hidden_act` is \"gelu\"",
                "`num_experts_per_tok` is 66",
            ],
        ),
    ];
    for (case, damage, parts) in cases {
        let copy = copy_of("books-moe-64e8k");
        damage(copy.path());
        assert_refused(case, copy.path(), parts);
    }
    assert_refused("no folder", Path::new("no/such/folder"), &["failed to open no/such/folder"]);
}

#[test]
fn no_flipped_header_byte_makes_the_loader_panic() {
    let copy = copy_of("books-dense");
    let path = copy.path().join("model.safetensors");
    let bytes = fs::read(&path).expect("shipped");
    let length = u64::from_le_bytes(*bytes.first_chunk().expect("length"));
    let header = 8 + usize::try_from(length).expect("a small header");
    let mut rng = stream(11, "flipped header bytes");
    let mut refused = 0;
    for _ in 0..400 {
        let mut damaged = bytes[..header].to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..header);
            damaged[at] = rng.random();
        }
        fs::write(&path, &damaged).expect("space");
        // The data is left out: a hole in the file has its length at no cost.
        let file = fs::OpenOptions::new().write(true).open(&path).expect("just written");
        file.set_len(bytes.len() as u64).expect("space");
        refused += usize::from(Checkpoint::open(copy.path()).is_err());
    }
    assert!(refused > 300, "{refused} of 400 damaged headers were refused");
}

#[test]
fn f32_and_bf16_weights_are_read_like_f16_ones() {
    let original = Checkpoint::open(&shipped("books-dense")).expect("shipped");
    let original = original.trunk().expect("finite").final_norm;
    for (dtype, tolerance) in [(Dtype::F32, 0.0), (Dtype::BF16, 1.0 / 256.0)] {
        let copy = copy_of("books-dense");
        change_tensors(&copy.path().join("model.safetensors"), |t| {
            let (found, _, bytes) = t.get_mut("model.norm.weight").expect("norm");
            let halves = bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32());
            *bytes = match dtype {
                Dtype::F32 => halves.flat_map(f32::to_le_bytes).collect(),
                _ => halves.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            };
            *found = dtype;
        });
        let trunk = Checkpoint::open(copy.path()).expect("supported").trunk().expect("finite");
        for (got, want) in trunk.final_norm.iter().zip(&original) {
            assert!((got - want).abs() <= tolerance * want.abs(), "{dtype:?}: {got} {want}");
        }
    }
}

#[test]
fn experts_that_do_not_exist_are_refused() {
    for (model, layer, expert) in
        [("books-dense", 0, 0), ("books-moe-64e8k", 2, 0), ("books-moe-64e8k", 0, 64)]
    {
        let checkpoint = Checkpoint::open(&shipped(model)).expect("shipped");
        let error = checkpoint.expert(layer, expert).expect_err(model).to_string();
        assert!(error.contains(&format!("no expert {expert} in layer {layer}")), "{error}");
    }
}

#[test]
fn texts_that_are_not_utf8_are_refused_by_offset() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("latin1.txt");
    fs::write(&path, b"caf\xe9 noir").expect("space");
    let error = read_text(&path).expect_err("Latin-1").to_string();
    assert!(error.contains("latin1.txt is not UTF-8") && error.contains("offset 3"), "{error}");
}

#[test]
fn tokenizers_that_are_broken_or_random_are_refused() {
    let copy = copy_of("books-dense");
    let path = copy.path().join("tokenizer.json");
    change_json(&path, |json| json["model"]["dropout"] = json!(0.1));
    let error = Tokenizer::open(copy.path()).expect_err("random").to_string();
    assert!(error.contains("tokenizer.json") && error.contains("`model.dropout`"), "{error}");
    fs::write(&path, "{").expect("space");
    let error = Tokenizer::open(copy.path()).expect_err("garbage").to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    fs::remove_file(&path).expect("copied");
    let error = Tokenizer::open(copy.path()).expect_err("missing").to_string();
    assert!(error.contains("failed to open") && error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_document_is_cut_every_20000_characters_and_not_bytes() {
    let tokenizer = Tokenizer::open(&shipped("books-dense")).expect("shipped");
    let ids = |text: &str| tokenizer.encode_document(text).expect("plain text").ids;
    let (head, tail) = ("é".repeat(19_999) + "h", "e end");
    let document = tokenizer.encode_document(&(head.clone() + tail)).expect("plain text");
    assert_eq!(document.ids, [ids(&head), ids(tail)].concat());
    assert_eq!(document.characters, 20_005);
    assert_ne!(ids("he end"), [ids("h"), ids(tail)].concat(), "a cut shows");
    assert!(ids("").is_empty());
}
