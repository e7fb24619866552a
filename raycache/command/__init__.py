"""The `raycache` command: one file a subcommand, and nothing heavy imported before one of them runs."""
