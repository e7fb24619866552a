"""``python -m raycache``: the command line, as `raycache` has it."""

from raycache.command.main import app

if __name__ == "__main__":
    app(prog_name="raycache")
