"""Files of keys as editors leave them; keys that change while the service runs; keys that have names and no faces."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from raycache.ingress import auth
from raycache.ingress.ingress import Ingress
from raycache.protocol.errors import RequestError
from raycache.settings import AppSettings

GOOD = [
    pytest.param(b"\xef\xbb\xbfalpha\r\nbeta\r\n", id="Windows, with a mark"),
    pytest.param(b"\xef\xbb\xbf# team\nalpha\nbeta", id="a remark behind the mark, no last newline"),
    pytest.param("alpha\nbeta\n".encode("utf-16"), id="UTF-16, as PowerShell writes it"),
    pytest.param("alpha\nbeta\n".encode("utf-32"), id="UTF-32"),
    pytest.param(b"alpha\rbeta\r", id="carriage returns alone"),
    pytest.param(b"alpha # team blue\nbeta\t#team red\n", id="remarks behind keys"),
    pytest.param("alpha\u00a0\n\u2003beta\u200b\n".encode(), id="blanks that do not break, or take no room"),
    pytest.param("\u200ealpha\u200f\n\ufeffbeta\n".encode(), id="marks of direction, a mark in the middle"),
    pytest.param(b"\"alpha\"\n'beta' # quoted\n", id="quotes"),
    pytest.param("# ключи \u0434\u043b\u044f \u5f20\nalpha # \u5f20\u4f1f\n\t\n \u00a0\nbeta".encode(), id="alphabets"),
    pytest.param(b"alpha\nbeta\nalpha\n\x0c\n", id="twice the same, and a page break"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


@pytest.mark.parametrize("content", GOOD)
def test_what_editors_leave_behind_is_no_part_of_a_key(file: Path, content: bytes):
    file.write_bytes(content)
    keys = auth.read_keys(file)
    assert keys == (b"alpha", b"beta")
    auth.check_key(keys, "Bearer alpha")
    with pytest.raises(RequestError):
        auth.check_key(keys, "Bearer # team")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alpha beta", "no spaces"),
        ("alpha\u00a0beta", "no spaces"),
        ("- alpha", "no spaces"),
        ("Bearer alpha", "no spaces"),
        ("alpha# no blank before it", "no spaces"),
        ("\u0430lpha", "U\\+0430"),  # a Cyrillic а
        ("al\u200bpha", "U\\+200B"),
        ("sk-\u00e4", "U\\+00E4"),
        ("“alpha”", "U\\+201C"),
        ("al\x00pha", "U\\+0000"),
        ('"alpha', "quotes"),
        ('""', "quotes"),
        ("first # somebody else", "one name only"),
        (b"sch\xfcssel", "UTF-8"),
        (b"# f\xfcr J\xfcrgen", "UTF-8"),
    ],
)
def test_what_can_be_no_key_stops_the_start_with_its_line(file: Path, line: str | bytes, words: str):
    raw = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(b"# keys\r\n\r\nfirst # one\r\n" + raw + b"\r\nlast\r\n")
    with pytest.raises(ValueError, match=rf"keys\.txt, line 4: .*{words}") as caught:
        auth.read_keys(file)
    assert "alpha" not in str(caught.value), "a message is logged, and a key is not"


def test_a_broken_text_with_a_mark_names_its_line(file: Path):
    file.write_bytes(b"\xef\xbb\xbfalpha\nbeta\n\xff\n")
    with pytest.raises(ValueError, match="line 3"):
        auth.read_keys(file)
    file.write_bytes("alpha\nbeta\n".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"line 2.*UTF-16"):
        auth.read_keys(file)


@pytest.mark.parametrize("header", ["Bearer alpha", "bearer  alpha ", "BEARER\talpha"])
def test_blanks_and_case_of_the_header(header: str):
    assert auth.has_key((b"alpha",), header)


@pytest.mark.parametrize("header", ["alpha", "Bearer", "Bearer \u0430lpha", "Bearer \ud800", "Bearer a lpha", " ", ""])
def test_anything_else_is_401_and_no_failure(header: str):
    assert not auth.has_key((b"alpha",), header)
    with pytest.raises(RequestError) as caught:
        auth.check_key((b"alpha",), header)
    assert caught.value.status == 401


def test_a_keys_name_is_its_remark_or_a_hash_and_never_the_key(file: Path):
    file.write_bytes(b"alpha\r\nbeta #  team\tblue \r\ngamma # team blue\r\n")
    keys = auth.read_keys(file)
    file.write_bytes("alpha # M\u00fcller\nbeta # Mu\u0308ller\n".encode())
    assert len({auth.key_name(key) for key in auth.read_keys(file)}) == 1, "they look alike, and are one caller"
    alpha, *blue = (auth.check_key(keys, f"Bearer {key}") for key in ("alpha", "beta", "gamma"))
    assert blue == ["team blue", "team blue"], "a new key takes the old one's place under the same name"
    assert alpha == auth.key_name(b"alpha")
    assert alpha.startswith("key-")
    assert auth.key_name(b"alphb") != alpha
    assert auth.check_key((), None) is None
    shown = f"{keys} {keys[0]} {keys[0]!r}"
    assert "team blue" in shown
    assert not any(secret in shown for secret in ("alpha", "beta", "gamma"))


class Clock:
    """The monotonic clock, moved on by hand; a file's times are real and are set back instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(auth.time, "monotonic", lambda: self.now)

    def pass_on(self) -> None:
        self.now += 1.5


def write(path: Path, content: str) -> None:
    """As a while ago, so that it counts as whole."""
    path.write_text(content)
    old = path.stat().st_mtime_ns - 10**10
    os.utime(path, ns=(old, old))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_keys_change_without_a_restart(file: Path, clock: Clock):
    write(file, "alpha\n")
    keys = auth.KeyFile(file)
    write(file, "gamma\n")  # of one length, within one tick of the old time
    assert keys.current() == (b"alpha",), "the file is looked at once a second"
    clock.pass_on()
    assert keys.current() == (b"gamma",)


def test_a_mounted_secret_changes_by_its_link(tmp_path: Path, clock: Clock):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "keys", f"{name}\n")
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = auth.KeyFile(tmp_path / "keys")
    (tmp_path / "..tmp").symlink_to("two")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    clock.pass_on()
    assert keys.current() == (b"two",)


@pytest.mark.parametrize("content", ["", "# none\n", "beta\nal pha\n", None])
def test_a_broken_file_leaves_the_last_good_keys_and_says_so_once(
    file: Path, clock: Clock, caplog: pytest.LogCaptureFixture, content: str | None
):
    write(file, "alpha\n")
    keys = auth.KeyFile(file)
    if content is None:
        file.unlink()
    else:
        write(file, content)
    with caplog.at_level(logging.INFO, "ray.serve"):
        for _ in range(3):
            clock.pass_on()
            assert keys.current() == (b"alpha",)
        (told,) = caplog.records
        assert told.levelno == logging.ERROR
        assert str(file) in told.getMessage()
        assert ("line 2" in told.getMessage()) == (content == "beta\nal pha\n")
        assert "pha" not in told.getMessage().replace(str(file), "")
        write(file, "delta\n")
        clock.pass_on()
        assert keys.current() == (b"delta",)
    assert "1 in force" in caplog.records[-1].getMessage()


def test_a_file_that_is_still_being_written_is_left_alone(file: Path, clock: Clock):
    write(file, "alpha\n")
    keys = auth.KeyFile(file)
    file.write_text("gam")
    clock.pass_on()
    assert keys.current() == (b"alpha",)
    write(file, "gamma\n")
    clock.pass_on()
    assert keys.current() == (b"gamma",)


def test_the_file_is_not_read_for_each_request(file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    write(file, "alpha\n")
    keys = auth.KeyFile(file)
    reads = []
    monkeypatch.setattr(auth, "read_keys", lambda path: reads.append(path) or (auth.Key(b"alpha"),))
    for _ in range(100):
        clock.now += 0.05
        keys.current()
    assert len(reads) == 1, "once to be sure that nothing changed since the start, then only when it changes"


async def test_the_ingress_asks_the_file_for_each_request(file: Path, clock: Clock):
    class Engine:
        def broadcast(self, method: str, caller: str) -> SimpleNamespace:
            async def results(**_: object) -> list[object]:
                return []

            return SimpleNamespace(results_async=results)

    write(file, "alpha\n")
    settings = AppSettings.model_validate({"model": {"path": "noise"}, "ingress": {"api_keys_file": str(file)}})
    ingress = Ingress(settings, {"flux": Engine()}, {"flux": [{"CPU": 1.0}]})
    ingress._polling.cancel()
    transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def status(key: str) -> int:
            return (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code

        assert [await status("alpha"), await status("beta")] == [200, 401]
        write(file, "beta # the new one\n")
        clock.pass_on()
        assert [await status("alpha"), await status("beta")] == [401, 200]


def test_without_a_file_the_service_is_open():
    assert auth.KeyFile(None).current() == ()
