"""What bench, verify, report, cache-prompt and `generate --prompts` run."""
