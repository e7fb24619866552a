"""Presets, mixes, prompts and settings as editors leave them: they work, or the start stops with file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

from cache_core.options import DBCacheOptions, FBCacheOptions
from loadtests.mix import load_mix
from loadtests.server import address
from raycache.presets import load_presets
from raycache.settings import AppSettings
from raycache.text_files import FileError
from raycache.tune.command import read_prompts

PRESETS = """\
model: x
source: y
presets:
  fast:
    type: FBCache
    warmup_steps: 4
  high:
    type: DBCache
"""
MIX = """\
seeds: 3
entries:
  - weight: 1
    request:
      prompt: a circle
      size: 64x64
"""
CONFIG = """\
http_options:
  port: 8123
applications: none
"""
PROMPTS = ["a red circle", "красный круг", "赤い　円", "‏دائرة حمراء"]

#: What editors and people do to a file without changing what it says.
HARMLESS: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
    "no end of line": lambda text: text.rstrip("\n").encode(),
    "blanks behind": lambda text: text.replace("\n", " \u00a0\t\n").encode(),
    "zero-width behind": lambda text: text.replace("\n", "\u200b\n").encode(),
    "empty lines": lambda text: ("\n\n" + text.replace("\n", "\n\u00a0\n")).encode(),
    "remarks": lambda text: ("# größer: на русском\n" + text).encode(),
    "a mark inside": lambda text: ("# one file behind another\n\ufeff" + text).encode(),
}
#: The same, for YAML alone.
HARMLESS_YAML: dict[str, Callable[[str], bytes]] = {
    "non-breaking indents": lambda text: text.replace("  ", "\u00a0 ").encode(),
    "non-breaking after the colon": lambda text: text.replace(": ", ":\u00a0").encode(),
    "remarks behind": lambda text: text.replace("\n", "  # 説明\n").encode(),
    "zero-width before a remark": lambda text: text.replace("\n", "\u200b  # x\n").encode(),
}
YAML = [*HARMLESS, *HARMLESS_YAML]


def written(tmp_path: Path, text: str, left: str) -> Path:
    (path := tmp_path / "file").write_bytes((HARMLESS | HARMLESS_YAML)[left](text))
    return path


@pytest.mark.parametrize("left", YAML)
def test_presets_say_what_they_said(tmp_path: Path, left: str):
    presets = load_presets("x", written(tmp_path, PRESETS, left))
    assert presets.presets == {"fast": FBCacheOptions(warmup_steps=4), "high": DBCacheOptions()}
    assert (presets.model, presets.source) == ("x", "y")


@pytest.mark.parametrize("left", YAML)
def test_a_mix_says_what_it_said(tmp_path: Path, left: str):
    mix = load_mix(written(tmp_path, MIX, left))
    assert mix.seeds == 3
    assert mix.entries[0].request == {"prompt": "a circle", "size": "64x64"}


@pytest.mark.parametrize("left", YAML)
def test_load_tests_find_the_address(tmp_path: Path, left: str):
    assert address(written(tmp_path, CONFIG, left)) == "http://127.0.0.1:8123"


@pytest.mark.parametrize("left", HARMLESS)
def test_prompts_are_those_that_were_written(tmp_path: Path, left: str):
    path = written(tmp_path, "\n".join(PROMPTS) + "\n", left)
    # A mark of direction at the very beginning takes no room and says nothing.
    assert read_prompts("x", path, 10) == [prompt.removeprefix("\u200f") for prompt in PROMPTS]


def test_a_prompt_is_a_line_as_an_editor_shows_it(tmp_path: Path):
    (path := tmp_path / "prompts").write_text(
        "a red\u2028circle\n a\u00a0blue\x0cring \n# not this\n#1 in red\n", "utf-8"
    )
    assert read_prompts("x", path, 10) == ["a red\u2028circle", "a\u00a0blue\x0cring"]


#: What cannot be used: what replaces what, in which line it stands, and what the message says of it.
BROKEN = [
    ("    type: FBCache", "\ttype: FBCache", 5, "'\\t'"),
    ("type: FBCache", "type: “FBCache”", 4, "“FBCache”"),
    ("fast:", "f\u0430st:", 4, "letter 2 is U+0430 (CYRILLIC SMALL LETTER A)"),
    ("warmup_steps", "warm\u00adup_steps", 6, "warm\\u00adup_steps: unknown field; letter 5 is U+00AD (SOFT HYPHEN)"),
    ("warmup_steps: 4", "warmup_steps: \uff14x", 6, "presets.fast.warmup_steps"),
    ("warmup_steps: 4", "warmup_steps: -4", 6, "presets.fast.warmup_steps: Input should be greater than or equal to"),
    ("warmup_steps: 4", "warmup_steps\u200b: -4", 6, "presets.fast.warmup_steps: Input should be greater than"),
    ("  high:", "  fast:", 7, "`fast` stands here a second time"),
    ("type: DBCache", "type: DBCache\x07", 8, "U+0007"),
    ("source: y", "source: y: z", 2, "mapping values are not allowed here"),
    ("source: y\n", "", 1, "source: Field required"),
    ("source: y", "source: 2026-13-24", 2, "month must be in 1..12"),
    ("source: y", "source: 0x_", 2, "invalid literal for int"),
    ("warmup_steps: 4", f"warmup_steps: {'9' * 5000}", 6, "Exceeds the limit"),
    ("model: x", "- model: x", 2, "block"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), BROKEN)
def test_presets_that_cannot_be_used_name_file_line_and_reason(
    tmp_path: Path, old: str, new: str, line: int, words: str
):
    (path := tmp_path / "presets.yaml").write_text(PRESETS.replace(old, new, 1), "utf-8")
    with pytest.raises(FileError) as caught:
        load_presets("x", path)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{path}, line {line}: no presets file: ")
    assert words in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["model: x\nsource: y\npresets: &all\n  fast: *all\n", "model: " + "[" * 3000])
def test_what_never_ends_is_told_so(tmp_path: Path, text: str):
    (path := tmp_path / "presets.yaml").write_text(text, "utf-8")
    with pytest.raises(FileError, match="contains itself, or is nested too deeply"):
        load_presets("x", path)


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n", "\ufeff\r\n"])
def test_a_file_that_says_nothing_is_told_so(tmp_path: Path, text: str):
    (path := tmp_path / "presets.yaml").write_text(text, "utf-8")
    with pytest.raises(FileError, match="it is empty"):
        load_presets("x", path)
    with pytest.raises(typer.BadParameter, match="has no prompt"):
        read_prompts("x", path, 10)


def test_bytes_of_another_encoding_name_the_line(tmp_path: Path):
    (path := tmp_path / "file").write_bytes("model: x\nsource: größer\n".encode("latin-1"))
    for read in (lambda: load_presets("x", path), lambda: load_mix(path)):
        with pytest.raises(ValueError, match=f"{path}, line 2: .*save the file as UTF-8"):
            read()
    with pytest.raises(typer.BadParameter, match=f"{path}, line 2: .*save the file as UTF-8"):
        read_prompts("x", path, 10)
    with pytest.raises(typer.BadParameter, match="missing: No such file"):
        read_prompts("x", tmp_path / "missing", 10)


@pytest.mark.parametrize("unseen", ["\u00a0", "\u200b", "\ufeff", " \u2028", "\t\r"])
def test_settings_mean_what_can_be_seen(unseen: str):
    """Serve reads the YAML itself: there what stands behind a word, but for plain blanks, is a part of it."""
    text = """
    model: {path: "demo?", dtype: "?float32"}
    cache: {type: "FBCache?"}
    warmup: [{size: "64x64?"}]
    ingress: {api_keys_file: "/etc/keys?"}
    num_replicas: "2?"
    """
    given = yaml.safe_load(text)
    settings = AppSettings.model_validate_json(json.dumps(given).replace("?", json.dumps(unseen)[1:-1]))
    assert (settings.model.path, settings.model.dtype) == ("demo", "float32")
    assert settings.cache == FBCacheOptions()
    assert str(settings.warmup[0].size) == "64x64"
    assert settings.ingress.api_keys_file == Path("/etc/keys")
    assert settings.num_replicas == 2
    changed = settings.policy.changed({"cache": {"type": f"none{unseen}"}, "defaults": {"size": f"{unseen}32x32"}})
    assert (changed.cache.type, str(changed.defaults.size)) == ("none", "32x32")
    some = settings.policy.changed({f"limits{unseen}": {"max_steps": 7}})
    assert some.limits == settings.limits.model_copy(update={"max_steps": 7})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("64x64", "64\u00d764", "size must be WIDTHxHEIGHT in ASCII, got '64\u00d764'"),
        ("64x64", "\uff16\uff14x\uff16\uff14", "size must be WIDTHxHEIGHT in ASCII"),
        ("64x64", "64", "size must be WIDTHxHEIGHT in ASCII, got 64"),
        ("size", "s\u0456ze", "lacks ['size']"),
        ("      size: 64x64\n", "", "lacks ['size']"),
    ],
)
def test_a_mix_that_cannot_be_sent_names_the_line(tmp_path: Path, old: str, new: str, words: str):
    (path := tmp_path / "mix.yaml").write_text(MIX.replace(old, new), "utf-8")
    with pytest.raises(FileError) as caught:
        load_mix(path)
    assert caught.value.line == 4
    assert words in str(caught.value)


@pytest.mark.parametrize("size", ["\uff16\uff14x\uff16\uff14", "64\u00d764"])
def test_digits_of_another_alphabet_are_no_size(size: str):
    for settings in ({"defaults": {"size": size}}, {"warmup": [{"size": size}]}):
        with pytest.raises(ValueError, match="size"):
            AppSettings.model_validate({"model": {"path": "demo"}, **settings})


def test_a_field_in_another_alphabet_stops_the_start():
    with pytest.raises(ValueError, match="p\u0430th"):
        AppSettings.model_validate({"model": {"p\u0430th": "demo"}})
