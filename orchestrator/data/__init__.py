"""From files to token ids: problems, demonstrations, prompts and tokens."""
