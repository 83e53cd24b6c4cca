"""From messages to ids: chat templates within bounds, markup as text, prompts kept on disk."""
