//! What transformers makes with each control, token by token: see `vectors/generation/make.py`.

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use gptrickle::mix::{FileType, Mix};
use gptrickle::quantize;
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{BeamOptions, EarlyStopping, Error, Model, Options, Plan, Session, StopReason};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::sampler::{Generator, Params, Sampler};
use gptrickle_core::source::Source;
use gptrickle_core::tokenizer::{Control, Flow, MAX_TOKEN, TextStream, Token, Tokenizer};
use gptrickle_tests::faulty::{Fault, Faulty};
use gptrickle_tests::vectors;
use proptest::prelude::*;
use serde_json::Value;

/// A folder of the vectors that are committed, whatever else `GPTRICKLE_VECTORS` names.
fn recorded(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/generation").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut file: Value = serde_json::from_str(&text).unwrap();
    match file["cases"].take() {
        Value::Array(cases) => cases,
        _ => panic!("{name} has no cases"),
    }
}

/// A model's file with all matrices in F32, so that arithmetic is what transformers does.
fn in_f32(path: &Path) -> Vec<u8> {
    let input = fs::read(path).unwrap();
    let options =
        quantize::Options { mix: Mix::Stock(FileType::F32), overrides: &[], importance: None, requantize: true };
    let plan = quantize::Plan::new(&input, &options).unwrap();
    plan.write(Cursor::new(Vec::new()), |_| Ok(())).unwrap().into_inner()
}

fn ids(value: &Value) -> Vec<Token> {
    value.as_array().unwrap().iter().map(|id| Token(id.as_u64().unwrap() as u32)).collect()
}

/// What a case asks for, with the lists that its controls borrow.
#[derive(Default)]
struct Case {
    params: Params<'static>,
    bad_words: Vec<Vec<Token>>,
    ends: Vec<Token>,
    stops: Vec<String>,
    num_beams: usize,
    num_return_sequences: usize,
    beams: BeamOptions,
    max_new_tokens: usize,
}

impl Case {
    fn new(case: &Value) -> Case {
        let mut made = Case {
            params: Params { temperature: 1.0, generator: Generator::Torch, ..Params::default() },
            num_beams: 1,
            num_return_sequences: 1,
            ..Case::default()
        };
        let prompt = ids(&case["prompt"]).len();
        for (name, value) in case["args"].as_object().unwrap() {
            let (x, n) = (value.as_f64().unwrap_or_default() as f32, value.as_u64().unwrap_or_default() as usize);
            let params = &mut made.params;
            match name.as_str() {
                "do_sample" => assert_eq!(value, true),
                "temperature" => params.temperature = x,
                "top_k" => params.top_k = n,
                "top_p" => params.top_p = x,
                "min_p" => params.min_p = x,
                "typical_p" => params.typical_p = x,
                "epsilon_cutoff" => params.epsilon_cutoff = x,
                "eta_cutoff" => params.eta_cutoff = x,
                "repetition_penalty" => params.repetition_penalty = x,
                "no_repeat_ngram_size" => params.no_repeat_ngram_size = n,
                "min_length" => params.min_length = n,
                "min_new_tokens" => params.min_new_tokens = n,
                "max_new_tokens" if value.is_null() => {}
                "max_new_tokens" => made.max_new_tokens = n,
                "max_length" => made.max_new_tokens = n - prompt,
                "bad_words_ids" => made.bad_words = value.as_array().unwrap().iter().map(ids).collect(),
                "eos_token_id" if value.is_array() => made.ends = ids(value),
                "eos_token_id" => made.ends = vec![Token(n as u32)],
                "stop_strings" => {
                    made.stops = value.as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect();
                }
                "num_beams" => made.num_beams = n,
                "num_return_sequences" => made.num_return_sequences = n,
                "length_penalty" => made.beams.length_penalty = x,
                "early_stopping" => {
                    made.beams.early_stopping = match value {
                        Value::Bool(false) => EarlyStopping::Estimate,
                        Value::Bool(true) => EarlyStopping::Yes,
                        _ => EarlyStopping::Never,
                    }
                }
                other => panic!("no such control: {other}"),
            }
        }
        if case["args"].get("do_sample").is_none() {
            made.params.temperature = 0.0;
        }
        made
    }

    /// New tokens of each text, and the scores of beams.
    fn run(&self, file: &[u8], prompt: &[Token], seed: u64) -> (Vec<Vec<Token>>, Vec<f32>) {
        let src = &mut &*file;
        let model = Model::open(src).unwrap();
        let bad_words: Vec<&[Token]> = self.bad_words.iter().map(Vec::as_slice).collect();
        let sequences = self.num_beams.max(if self.num_beams > 1 { 0 } else { self.num_return_sequences });
        let context = prompt.len() + self.max_new_tokens;
        let options = Options {
            state: gpt2::Options { context, batch: 4, sequences, own: self.max_new_tokens, ..Default::default() },
            sampling: Params { bad_words_ids: &bad_words, eos_token_id: &self.ends, ..self.params },
            seed,
            ..Options::default()
        };
        let mut memory = vec![0xa5; Plan::new(&model, &options).total() + ALIGN];
        let mut session = Session::new(&model, &options, src, &mut Arena::new(&mut memory)).unwrap();
        session.push(prompt).unwrap();
        session.limit(self.max_new_tokens);
        if self.num_beams > 1 {
            let mut memory = vec![0xa5; BeamOptions::bytes(&model, &options) + ALIGN];
            let mut arena = Arena::new(&mut memory);
            let mut beams = session.beams(&self.beams, &mut arena).unwrap();
            assert_eq!(arena.used(), BeamOptions::bytes(&model, &options), "the plan is what is used");
            while beams
                .step(src, |tokenizer, src, tokens| {
                    Ok(self.stops_after(tokenizer, src, tokens.iter().map(|&id| Token(id))))
                })
                .unwrap()
            {}
            let texts = 0..self.num_return_sequences;
            let scores = texts.clone().map(|i| beams.score(i).unwrap()).collect();
            return (texts.map(|i| beams.tokens(i).collect()).collect(), scores);
        }
        let mut texts = vec![Vec::new(); sequences];
        if sequences == 1 {
            while let Some(token) = session.next(src).unwrap() {
                texts[0].push(token);
                if self.stops_after(session.tokenizer(), src, texts[0].iter().copied()) {
                    session.stop(StopReason::StopString);
                }
            }
        } else {
            let mut sequences = session.sequences().unwrap();
            while let Some((i, token)) = sequences.next(src).unwrap() {
                texts[i].push(token);
            }
        }
        (texts, Vec::new())
    }

    fn stops_after(&self, tokenizer: &Tokenizer, src: &mut &[u8], tokens: impl Iterator<Item = Token>) -> bool {
        let stops: Vec<&str> = self.stops.iter().map(String::as_str).collect();
        let mut stream = TextStream::new(&stops).unwrap();
        let mut bytes = [0; MAX_TOKEN];
        let mut stopped = false;
        for token in tokens {
            let len = tokenizer.decode(src, token, Control::Ignore, &mut bytes).unwrap();
            let flow = stream.push(&bytes[..len], |_| Ok::<(), Error>(())).unwrap();
            stopped |= matches!(flow, Flow::Stopped { .. });
        }
        stopped
    }
}

/// Runs every case of a file, and names all that differ.
fn compare(name: &str, model: &Path) {
    let file = in_f32(model);
    let cases = recorded(name);
    assert!(!cases.is_empty());
    let mut wrong = Vec::new();
    for case in &cases {
        let (prompt, seed) = (ids(&case["prompt"]), case["seed"].as_u64().unwrap());
        let expected: Vec<Vec<Token>> = case["sequences"].as_array().unwrap().iter().map(ids).collect();
        let (texts, scores) = Case::new(case).run(&file, &prompt, seed);
        let title = format!("{} (seed {seed})", case["name"]);
        if texts != expected {
            let differ = |(a, b): (&Vec<Token>, &Vec<Token>)| {
                a.iter().zip(b).position(|(a, b)| a != b).or((a.len() != b.len()).then(|| a.len().min(b.len())))
            };
            let places: Vec<_> = texts.iter().zip(&expected).map(differ).collect();
            wrong.push(format!("{title}: differs at {places:?} of {} texts", expected.len()));
        }
        for (i, score) in scores.iter().enumerate() {
            let expected = case["scores"][i].as_f64().unwrap() as f32;
            if (score - expected).abs() > 1e-3 * expected.abs().max(1.0) {
                wrong.push(format!("{title}: text {i} has score {score}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn micro_writes_what_transformers_writes() {
    compare("micro.json", &vectors().join("micro/micro-f32.gguf"));
}

#[test]
fn tiny512_writes_what_transformers_writes() {
    compare("tiny512.json", &vectors().join("tiny512/tiny512-Q8_0.gguf"));
}

#[test]
fn the_demo_model_writes_what_transformers_writes() {
    compare("stories.json", &Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/model/stories-Q4_K_M.gguf"));
}

#[test]
fn warpers_leave_what_those_of_transformers_leave() {
    for row in recorded("warpers.json") {
        let logits: Vec<f32> = row["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        for left in row["left"].as_array().unwrap() {
            let args = left["args"].as_object().unwrap();
            let x = |name: &str, off: f64| args.get(name).map_or(off, |x| x.as_f64().unwrap()) as f32;
            let params = Params {
                temperature: x("temperature", 1.0),
                top_k: x("top_k", 0.0) as usize,
                top_p: x("top_p", 1.0),
                min_p: x("min_p", 0.0),
                typical_p: x("typical_p", 1.0),
                epsilon_cutoff: x("epsilon_cutoff", 0.0),
                eta_cutoff: x("eta_cutoff", 0.0),
                ..Params::default()
            };
            let mut memory = vec![0; params.bytes(logits.len(), 0, 1) + ALIGN];
            let mut sampler = Sampler::new(params, 0, logits.len(), 0, 1, &mut Arena::new(&mut memory)).unwrap();
            sampler.begin(&[], 0, 0);
            sampler.push(0, 0, &logits);
            let mut found = HashMap::new();
            sampler.probabilities(0, |token, p| assert!(found.insert(token.0, p).is_none())).unwrap();
            let expected: HashMap<u32, f32> = left["p"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(id, p)| (id.parse().unwrap(), p.as_f64().unwrap() as f32))
                .collect();
            let title = format!("{} {:?}", row["name"], left["args"]);
            assert_eq!(found.len(), expected.len(), "{title}");
            for (id, p) in &expected {
                let ours = found.get(id).unwrap_or_else(|| panic!("{title}: token {id} is not left"));
                assert!((ours - p).abs() <= 1e-5 * p + 1e-9, "{title}: token {id} has {ours}, not {p}");
            }
        }
    }
}

/// A search with these options of what `src` lends; where a read fails it is tried again.
fn search<S: Source>(src: &mut S, options: &Options, beams: &BeamOptions, prompt: &[Token]) -> Vec<(Vec<Token>, f32)> {
    let model = Model::open(src).unwrap();
    let mut memory = vec![0xa5; Plan::new(&model, options).total() + ALIGN];
    let mut session = Session::new(&model, options, src, &mut Arena::new(&mut memory)).unwrap();
    let mut memory = vec![0xa5; BeamOptions::bytes(&model, options) + ALIGN];
    session.push(prompt).unwrap();
    let mut texts = Vec::new();
    // Twice: what a search leaves behind is the prompt.
    for _ in 0..2 {
        let mut arena = Arena::new(&mut memory);
        let mut beams = session.beams(beams, &mut arena).unwrap();
        assert_eq!(arena.used(), BeamOptions::bytes(&model, options), "the plan is what is used");
        loop {
            match beams.step(src, |_, _, _| Ok(false)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Error::Source(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let found: Vec<_> = (0..beams.len()).map(|i| (beams.tokens(i).collect(), beams.score(i).unwrap())).collect();
        assert!(found.is_sorted_by(|a, b| a.1 >= b.1), "the best first");
        drop(beams);
        assert_eq!(session.tokens().collect::<Vec<_>>(), prompt);
        assert!(texts.is_empty() || texts == found, "the same again");
        texts = found;
    }
    texts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the room, the beams and the source: no panic, and texts no longer than they may be.
    #[test]
    fn searches_fit_their_memory_and_survive_failed_reads(
        name in prop::sample::select(&["micro/micro-Q4_0.gguf", "tiny512-untied/tiny512-untied-Q2_K.gguf"][..]),
        kv in prop::sample::select(&[KvFormat::F32, KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0][..]),
        (context, batch, sequences, own) in (2..33usize, 0..9usize, 0..7usize, 0..20usize),
        (penalty, no_repeat_ngram_size) in (prop::sample::select(&[1.0f32, 1.3, 0.7][..]), 0..3usize),
        length_penalty in prop::sample::select(&[0.0f32, 1.0, -1.0, 3.0][..]),
        early_stopping in
            prop::sample::select(&[EarlyStopping::Estimate, EarlyStopping::Yes, EarlyStopping::Never][..]),
        ends in prop::collection::vec((0..256u32).prop_map(Token), 0..4),
        prompt in prop::collection::vec((0..256u32).prop_map(Token), 1..6),
        failure in 0..400usize,
    ) {
        let file = fs::read(vectors().join(name)).unwrap();
        let prompt = &prompt[..prompt.len().min(context)];
        let sampling = Params {
            repetition_penalty: penalty,
            no_repeat_ngram_size,
            eos_token_id: &ends,
            ..Params::default()
        };
        let state = gpt2::Options { context, batch, kv, sequences, own };
        let options = Options { state, sampling, ..Options::default() };
        let beams = BeamOptions { length_penalty, early_stopping };
        let texts = search(&mut &file[..], &options, &beams, prompt);
        let limit = own.min(context - prompt.len());
        prop_assert_eq!(texts.len(), if sequences < 2 || limit == 0 { 0 } else { sequences });
        for (tokens, score) in &texts {
            prop_assert!(tokens.len() <= limit && score.is_finite());
            prop_assert!(tokens.iter().all(|token| !ends.contains(token)));
        }
        let mut opening = Faulty::new(&file[..], Fault::None);
        let model = Model::open(&mut opening).unwrap();
        let mut memory = vec![0; Plan::new(&model, &options).total() + ALIGN];
        Session::new(&model, &options, &mut opening, &mut Arena::new(&mut memory)).unwrap();
        let mut faulty = Faulty::new(&file[..], Fault::Read(opening.reads() + failure));
        prop_assert_eq!(&texts, &search(&mut faulty, &options, &beams, prompt));
    }
}
