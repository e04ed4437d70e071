//! The vocabulary: tokens, merges and what is special of them, from `tokenizer.json` or from `vocab.json` and
//! `merges.txt`.
//!
//! What a GGUF file should say of a vocabulary is what llama.cpp's `convert_hf_to_gguf.py` makes of it: read
//! `get_vocab_base` and gguf-py's `SpecialVocab` there first.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Folder;

/// The names that tokenizers and GGUF files have for special tokens.
pub const SPECIAL: [(&str, &str); 7] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"), // spelled so in GGUF
    ("pad", "padding"),
    ("cls", "cls"),
    ("mask", "mask"),
];

/// Most ids that are believed to belong to no token: each costs memory, which a few bytes of a file are not to claim.
const MOST_MADE_UP: usize = 1 << 16;
/// GPT-2's own mark, which its tokenizer treats as special even where no file says so.
const END: &str = "<|endoftext|>";

/// The type of a token in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Part of a text, in the byte alphabet.
    Normal = 1,
    /// A mark, which is no part of a text.
    Control = 3,
    /// Part of a text, which is always one token, as plain text.
    UserDefined = 4,
    /// A row of the embedding that has no text.
    Unused = 5,
}

/// A special token: its name in tokenizers such as `eos`, and its id.
pub type Special = (&'static str, u64);

/// Tokens in order, with their types, and merges.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// The texts, by id; those of no token are made up.
    pub tokens: Vec<String>,
    /// Their types.
    pub kinds: Vec<Kind>,
    /// Pairs of texts with one space between them, the first to be merged first.
    pub merges: Vec<String>,
    /// Special tokens that the tokenizer names.
    pub special: Vec<Special>,
    /// Whether a text starts with the token `bos`, if that is told.
    pub add_bos: Option<bool>,
    /// Whether a text ends with the token `eos`, if that is told.
    pub add_eos: Option<bool>,
    /// Whether a text starts with a space that is not its own.
    pub adds_space: bool,
    /// How a conversation becomes a text.
    pub chat_template: Option<String>,
    /// Tokens that the files name, and perhaps name twice.
    named: usize,
}

/// `tokenizer.json`, as far as it matters.
#[derive(Deserialize)]
struct Tokenizer {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Step>,
    post_processor: Option<Step>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: BTreeMap<String, u64>,
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
}

/// Older files have "a b", newer ones ["a", "b"].
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    #[serde(default)]
    special: bool,
}

/// A step before or behind the model; several make a sequence.
#[derive(Deserialize)]
struct Step {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, alias = "pretokenizers", alias = "processors")]
    steps: Vec<Step>,
    #[serde(default)]
    add_prefix_space: bool,
    use_regex: Option<bool>,
    #[serde(default)]
    single: Vec<Value>,
}

impl Step {
    /// This step, or those of the sequence.
    fn all(&self) -> &[Step] {
        if self.kind == "Sequence" { &self.steps } else { std::slice::from_ref(self) }
    }
}

/// `tokenizer_config.json` or `special_tokens_map.json`.
#[derive(Default)]
struct Settings(Map<String, Value>);

impl Settings {
    fn open(folder: Folder, file: &str) -> anyhow::Result<Settings> {
        Ok(Settings(folder.json(file)?.unwrap_or_default()))
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key)?.as_bool()
    }

    /// A token's text: `"<|endoftext|>"`, or the `content` of an object.
    fn token(&self, name: &str) -> Option<&str> {
        let value = self.0.get(&format!("{name}_token"))?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }

    /// The texts of all tokens that are named.
    fn tokens(&self) -> impl Iterator<Item = &str> {
        let named = SPECIAL.iter().filter_map(|(name, _)| self.token(name));
        let more = self.0.get("additional_special_tokens").and_then(Value::as_array);
        let more = more.into_iter().flatten();
        named.chain(more.filter_map(|value| value.as_str().or_else(|| value.get("content")?.as_str())))
    }
}

impl Vocabulary {
    pub(super) fn open(folder: Folder) -> anyhow::Result<Vocabulary> {
        let settings = Settings::open(folder, "tokenizer_config.json")?;
        let mut vocabulary = match folder.json::<Tokenizer>("tokenizer.json")? {
            Some(tokenizer) => {
                let shown = folder.path("tokenizer.json");
                Vocabulary::from_tokenizer(tokenizer, &settings).with_context(|| shown.display().to_string())?
            }
            None => Vocabulary::from_lists(folder, &settings)?,
        };
        vocabulary.add_bos = vocabulary.add_bos.or(settings.flag("add_bos_token"));
        vocabulary.add_eos = vocabulary.add_eos.or(settings.flag("add_eos_token"));
        vocabulary.adds_space |= settings.flag("add_prefix_space").unwrap_or(false);
        for (name, _) in SPECIAL {
            let id = settings.token(name).and_then(|text| vocabulary.tokens.iter().position(|token| token == text));
            vocabulary
                .special
                .extend(id.filter(|&id| vocabulary.kinds[id] != Kind::Normal).map(|id| (name, id as u64)));
        }
        let template = settings.0.get("chat_template").and_then(Value::as_str).map(str::to_owned);
        vocabulary.chat_template = template.or(folder.text("chat_template.jinja")?);
        Ok(vocabulary)
    }

    fn from_tokenizer(tokenizer: Tokenizer, settings: &Settings) -> anyhow::Result<Vocabulary> {
        let Tokenizer { model, added_tokens, normalizer, pre_tokenizer, post_processor } = tokenizer;
        match model.kind.as_deref() {
            None | Some("BPE") => {}
            Some(other) => bail!("the tokenizer is of type \"{other}\", only GPT-2's \"BPE\" can be run"),
        }
        ensure!(normalizer.is_none(), "the tokenizer changes a text before it splits it, GPT-2's does not");
        ensure!(!model.ignore_merges, "the tokenizer looks words up before it merges, GPT-2's does not");
        let splits = pre_tokenizer.as_ref().map(Step::all).unwrap_or_default();
        let like_gpt2 = |step: &&Step| step.kind == "ByteLevel" && step.use_regex != Some(false);
        let [split] = splits else { bail!("the tokenizer splits a text otherwise than GPT-2's, which cannot be run") };
        ensure!(like_gpt2(&split), "the tokenizer splits a text as \"{}\" does, GPT-2's as \"ByteLevel\"", split.kind);

        let merges = model.merges.into_iter().map(|merge| match merge {
            Merge::Text(text) => text,
            Merge::Pair(left, right) => format!("{left} {right}"),
        });
        let mut vocabulary =
            Vocabulary { merges: merges.collect(), adds_space: split.add_prefix_space, ..Vocabulary::default() };
        vocabulary.fill(model.vocab)?;
        vocabulary.named += added_tokens.len();
        for Added { id, content, special } in added_tokens {
            vocabulary.mark(id, content, special)?;
        }
        for step in post_processor.as_ref().map(Step::all).unwrap_or_default() {
            vocabulary.surround(step, settings);
        }
        Ok(vocabulary)
    }

    /// Notes what a step behind the model puts around a text.
    fn surround(&mut self, step: &Step, settings: &Settings) {
        fn around(place: Option<&Value>) -> Option<&str> {
            place?.get("SpecialToken")?.get("id")?.as_str()
        }
        match &*step.kind {
            "ByteLevel" => {
                self.add_bos.get_or_insert(false);
                self.add_eos.get_or_insert(false);
            }
            "RobertaProcessing" => (self.add_bos, self.add_eos) = (Some(true), Some(true)),
            "TemplateProcessing" if step.single.len() > 1 => {
                if let Some(first) = around(step.single.first()) {
                    self.add_bos = Some(settings.token("bos") == Some(first));
                }
                if let Some(last) = around(step.single.last()) {
                    self.add_eos = Some(settings.token("eos") == Some(last));
                }
            }
            _ => {}
        }
    }

    /// From `vocab.json` and `merges.txt`, with the marks that other files tell of.
    fn from_lists(folder: Folder, settings: &Settings) -> anyhow::Result<Vocabulary> {
        let (Some(tokens), Some(merges)) = (folder.json("vocab.json")?, folder.text("merges.txt")?) else {
            bail!(
                "{} has neither tokenizer.json nor vocab.json and merges.txt: copy the tokenizer's files there, too",
                folder.0.display()
            );
        };
        let merges = merges.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("#version"));
        let mut vocabulary = Vocabulary { merges: merges.map(str::to_owned).collect(), ..Vocabulary::default() };
        let shown = folder.path("vocab.json");
        vocabulary.fill(tokens).with_context(|| shown.display().to_string())?;

        let added: BTreeMap<String, u64> = folder.json("added_tokens.json")?.unwrap_or_default();
        vocabulary.named += added.len();
        for (content, id) in added {
            vocabulary
                .mark(id, content, false)
                .with_context(|| folder.path("added_tokens.json").display().to_string())?;
        }
        if let Some(decoder) = settings.0.get("added_tokens_decoder").and_then(Value::as_object) {
            vocabulary.named += decoder.len();
            for (id, token) in decoder {
                let id = id.parse().ok().zip(token.get("content").and_then(Value::as_str));
                let (id, content) = id.context("tokenizer_config.json: an added token has no number or no text")?;
                let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
                vocabulary.mark(id, content.to_owned(), special).context("tokenizer_config.json")?;
            }
        }
        let map = Settings::open(folder, "special_tokens_map.json")?;
        for text in settings.tokens().chain(map.tokens()).chain([END]) {
            if let Some(id) = vocabulary.tokens.iter().position(|token| token == text) {
                vocabulary.kinds[id] = Kind::Control;
            }
        }
        Ok(vocabulary)
    }

    /// Takes tokens by their ids.
    fn fill(&mut self, ids: BTreeMap<String, u64>) -> anyhow::Result<()> {
        self.named += ids.len();
        for (text, id) in ids {
            let at = self.reach(id)?;
            if self.kinds[at] != Kind::Unused {
                bail!("token {id} is \"{}\" and \"{text}\": the file is damaged", self.tokens[at]);
            }
            (self.tokens[at], self.kinds[at]) = (text, Kind::Normal);
        }
        Ok(())
    }

    /// Says of a token that it is a mark, or always whole.
    fn mark(&mut self, id: u64, text: String, special: bool) -> anyhow::Result<()> {
        let at = self.reach(id)?;
        let found = &self.tokens[at];
        ensure!(
            self.kinds[at] == Kind::Unused || *found == text,
            "token {id} is \"{found}\" and \"{text}\": the file is damaged"
        );
        let special = special || (text.starts_with("<|") && text.ends_with("|>"));
        (self.tokens[at], self.kinds[at]) = (text, if special { Kind::Control } else { Kind::UserDefined });
        Ok(())
    }

    /// Makes room for a token of this id.
    fn reach(&mut self, id: u64) -> anyhow::Result<usize> {
        let most = self.named + MOST_MADE_UP;
        let at = usize::try_from(id).unwrap_or(usize::MAX);
        ensure!(at < most, "token {id} is far beyond a vocabulary of {} tokens: the file is damaged", self.named);
        self.pad(at + 1);
        Ok(at)
    }

    /// Makes up tokens, so that there are at least `len`.
    pub fn pad(&mut self, len: usize) {
        for id in self.tokens.len()..len {
            self.tokens.push(format!("[PAD{id}]"));
            self.kinds.push(Kind::Unused);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer() -> Value {
        json!({
            "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 3, "<e>": 4 }, "merges": [["a", "b"]] },
            "added_tokens": [{ "id": 4, "content": "<e>", "special": true }, { "id": 6, "content": "<p>" }],
            "normalizer": null,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false },
            "post_processor": { "type": "ByteLevel" },
        })
    }

    fn read(tokenizer: Value, settings: Value) -> anyhow::Result<Vocabulary> {
        let settings = Settings(settings.as_object().unwrap().clone());
        Vocabulary::from_tokenizer(serde_json::from_value(tokenizer).unwrap(), &settings)
    }

    #[test]
    fn ids_without_a_token_are_made_up() {
        let vocabulary = read(tokenizer(), json!({})).unwrap();
        assert_eq!(vocabulary.tokens, ["a", "b", "[PAD2]", "ab", "<e>", "[PAD5]", "<p>"]);
        assert_eq!(vocabulary.kinds.iter().map(|&kind| kind as i32).collect::<Vec<_>>(), [1, 1, 5, 1, 3, 5, 4]);
        assert_eq!(vocabulary.merges, ["a b"]);
        assert_eq!((vocabulary.add_bos, vocabulary.add_eos), (Some(false), Some(false)));
    }

    #[test]
    fn merges_of_either_form_and_marks_around_a_text() {
        let mut changed = tokenizer();
        changed["model"]["merges"] = json!(["a b"]);
        changed["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [changed["pre_tokenizer"]] });
        changed["post_processor"] = json!({ "type": "TemplateProcessing", "single": [
            { "SpecialToken": { "id": "<e>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } } ] });
        let vocabulary = read(changed, json!({ "bos_token": { "content": "<e>" } })).unwrap();
        assert_eq!(vocabulary.merges, ["a b"]);
        assert_eq!((vocabulary.add_bos, vocabulary.add_eos), (Some(true), None));
    }

    #[test]
    fn other_tokenizers_are_refused() {
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 9] = [
            (|t| t["model"]["type"] = "Unigram".into(), "of type \"Unigram\""),
            (|t| t["normalizer"] = json!({ "type": "Lowercase" }), "changes a text"),
            (|t| t["pre_tokenizer"] = Value::Null, "splits a text otherwise"),
            (|t| t["pre_tokenizer"]["type"] = "Whitespace".into(), "splits a text as \"Whitespace\""),
            (|t| t["model"]["ignore_merges"] = true.into(), "looks words up"),
            (|t| t["model"]["vocab"]["c"] = 16_000_000.into(), "token 16000000 is far beyond a vocabulary of 5 tokens"),
            (|t| t["added_tokens"][1]["id"] = u64::MAX.into(), "token 18446744073709551615 is far beyond"),
            (|t| t["model"]["vocab"]["c"] = 1.into(), "token 1 is \"b\" and \"c\""),
            (|t| t["added_tokens"][0]["id"] = 3.into(), "token 3 is \"ab\" and \"<e>\""),
        ];
        for (change, words) in changes {
            let mut changed = tokenizer();
            change(&mut changed);
            let error = read(changed, json!({})).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
