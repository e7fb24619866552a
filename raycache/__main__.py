"""``python -m raycache``: the same command line as `raycache`."""

from raycache.command.main import app

if __name__ == "__main__":
    app(prog_name="raycache")
