//! Text from a GGUF file: `cargo run --release -p gptrickle --example generate -- gpt2.Q4_K_M.gguf "Once upon a time"`.

use std::env::args;

fn main() -> anyhow::Result<()> {
    let (Some(path), Some(prompt)) = (args().nth(1), args().nth(2)) else {
        anyhow::bail!("usage: generate FILE PROMPT")
    };
    let mut model = gptrickle::Model::open(path)?;
    print!("{prompt}");
    let stop = model.generate(&prompt).max_new_tokens(60).seed(42).stream(|part| print!("{part}"))?;
    println!("\n[{}]", stop.name());
    Ok(())
}
