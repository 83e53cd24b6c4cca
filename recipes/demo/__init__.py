"""The recipe for the bundled demo checkpoint: corpus, tokenizer, base model, diffusion view."""
