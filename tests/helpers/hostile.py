"""Invalid requests generated from our OpenAPI document, for the application in process and over real HTTP."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

URL = "/v1/images/generations"
JSON = "application/json"
ERROR_KEYS = {"message", "type", "param", "code"}

#: Numbers, words and shapes that have broken servers before.
_NUMBERS = st.sampled_from([0, -1, 1, 2, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 5e-324, True, False])
_SIZES = ["64x64", "64X64", "-64x64", "0x0", "99999x99999", "64x64x64", "٦٤x٦٤"]
_TEXTS = [
    "",
    " ",
    "auto",
    "\x00",
    "\u202e",
    "b64_json",
    "url",
    "png",
    "gif",
    "none",
    "DBCache",
    "a" * 5000,
    "../etc/passwd",
]
_WORDS = st.sampled_from([*_SIZES, *_TEXTS])
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.integers() | st.floats(allow_nan=False) | _WORDS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_CACHE = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(["none", "DBCache", "FBCache", "DBPrune", "ForecastCache", "BudgetCache", "dbcache"])
        | _JSON
        if name == "type"
        else _JSON
        for name in (
            "type",
            "Fn_compute_blocks",
            "Bn_compute_blocks",
            "warmup_steps",
            "max_cached_steps",
            "residual_diff_threshold",
            "Bn_compute_blocks_ids",
            "non_prune_blocks_ids",
            "taylor_order",
            "unknown",
        )
    },
)
_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "accept": st.sampled_from(["*/*", "image/png", "image/webp, image/jpeg;q=0.5", ",;,", "q" * 900]),
        "authorization": st.sampled_from(["Bearer", "Bearer x", "Basic eDp4", "\xfcber"]),
        "x-request-id": st.sampled_from(["a", "x" * 300, "{}"]),
        "expect": st.just("nothing"),
        "content-encoding": st.sampled_from(["gzip", "br"]),
    },
)
_RAW = st.sampled_from(
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1e999",
        b'"prompt"',
        b"\xff\xfe",
        b"\x00" * 40,
        b'{"prompt": NaN}',
        b'{"a":' * 5000,
        b"[" * 100_000,
        b'{"prompt": "a", "prompt": 1}',
        b'{"prompt":"\\ud800"}',
        b"9" * 5000,
    ]
) | st.binary(max_size=60)


@dataclass(frozen=True)
class Hostile:
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def bodies(document: dict[str, Any]) -> st.SearchStrategy[Hostile]:
    """JSON for the generation endpoint, as in the OpenAPI document except for up to two invalid fields."""
    schema = document["paths"][URL]["post"]["requestBody"]["content"][JSON]["schema"]
    good = {"prompt": st.just("a circle"), "stream": st.booleans(), "n": st.integers(1, 2), "seed": st.integers(0, 9)}
    bad = {name: _CACHE | _JSON if name == "cache" else _JSON for name in schema["properties"]} | {"nonsense": _JSON}
    # Few invalid fields at a time, or all requests would fail at the first.
    broken = st.lists(st.sampled_from(sorted(bad)), max_size=2, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: bad[name] for name in chosen})
    )
    fields = st.builds(lambda kept, changed: kept | changed, st.fixed_dictionaries(good), broken)
    return st.builds(
        lambda body, headers: Hostile("POST", URL, json.dumps(body).encode(), {"content-type": JSON, **headers}),
        fields,
        _HEADERS,
    )


def oddities(document: dict[str, Any]) -> st.SearchStrategy[Hostile]:
    """What is not a valid HTTP request at all: other bytes, types, paths and methods."""
    types = st.sampled_from([JSON, "text/plain", "application/json; charset=utf-7", "multipart/form-data", ""])
    paths = st.sampled_from([*document["paths"], "/v1/images/edits", "//", "/v1/%00", "/" + "x" * 3000])
    methods = st.sampled_from(["POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
    headers = st.builds(lambda type, rest: {"content-type": type, **rest}, types, _HEADERS)
    raw = _RAW | _JSON.map(lambda value: json.dumps(value).encode())
    posts = st.builds(Hostile, st.just("POST"), st.just(URL), raw, st.just({"content-type": JSON}))
    return posts | st.builds(Hostile, methods, paths, raw, headers)


def check(request: Hostile, status: int, content_type: str, text: str) -> None:
    """Check that it is not a server error, and that the error in OpenAI's shape says what was wrong."""
    assert status < 500, f"{request}: {status} {text[:500]}"
    if status >= 400 and request.method != "HEAD":
        assert content_type.startswith(JSON), f"{request}: {content_type}"
        error = json.loads(text)["error"]
        assert set(error) == ERROR_KEYS
        assert error["message"]
        assert error["type"] == "invalid_request_error"
