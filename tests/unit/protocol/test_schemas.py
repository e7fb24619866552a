"""Requests and errors as they travel: strict bodies, picklable errors, no prompt in any text."""

import json
import pickle

import pytest
from pydantic import ValidationError

from raycache.ingress.dependencies import parse_body
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.schemas import GenerationRequest


def parse(**fields):
    return parse_body(ImagesBody, json.dumps({"prompt": "a circle", **fields}).encode())


def refusal(**fields) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def test_prompt_is_not_in_repr():
    assert "circle" not in repr(GenerationRequest(prompt="a circle"))
    assert "circle" not in repr(parse())


def test_request_error_survives_pickling():
    error = RequestError(429, "full", "n", "queue_full", 2.4)
    again = pickle.loads(pickle.dumps(error))
    assert (again.status, again.message, again.param, again.code) == (429, "full", "n", "queue_full")
    assert again.headers() == {"retry-after": "3", "x-should-retry": "true"}
    assert again.body() == error.body()


def test_only_what_may_be_retried_says_so():
    assert unavailable("starting").headers() == {"retry-after": "5", "x-should-retry": "true"}
    assert RequestError(500, "broken").headers() == {"x-should-retry": "false"}


def test_null_counts_as_not_given():
    body = parse(n=None, size=None, seed=None, output_format=None, stream=None)
    assert (body.n, body.output_format, body.stream) == (1, "png", False)


def test_openais_unused_fields_warn():
    unused = {"background": "transparent", "moderation": "low", "style": "vivid", "partial_images": 2}
    body = parse(**unused, quality="high", cache={"type": "none"})
    assert [w.split("`")[1] for w in body.ignored()] == [
        "background",
        "moderation",
        "style",
        "quality",
        "partial_images",
    ]
    assert parse(background="auto", quality="high", user="me", safety_identifier="x").ignored() == []


def test_request_keeps_what_decides_the_image():
    request = parse(seed=3, cache={"type": "FBCache"}, quality="low").request()
    assert type(request) is GenerationRequest
    assert (request.seed, request.cache.type) == (3, "FBCache")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"promt": "x"}, "promt", ["unknown", "prompt"]),
        ({"n": 0}, "n", ["nearest legal value: 1", "got 0"]),
        ({"n": "2"}, "n", ["valid integer"]),
        ({"n": True}, "n", ["valid integer"]),
        ({"seed": -1}, "seed", ["nearest legal value: 0"]),
        ({"seed": 2**70}, "seed", [str(2**63 - 1)]),
        ({"prompt": 3}, "prompt", ["valid string"]),
        ({"prompt": ""}, "prompt", ["at least 1 character"]),
        ({"guidance_scale": 101}, "guidance_scale", ["nearest legal value: 100"]),
        ({"output_format": "gif"}, "output_format", ["'png'", "'gif'"]),
        ({"response_format": "url"}, "response_format", ["b64_json"]),
        ({"quality": "swift"}, "quality", ["'auto'"]),
        ({"partial_images": 4}, "partial_images", ["nearest legal value: 3"]),
        ({"cache": {"type": "TeaCache"}}, "cache.type", ["TeaCache", "DBCache"]),
        ({"cache": {}}, "cache.type", ["type"]),
        ({"cache": 3}, "cache", ["object"]),
        ({"cache": {"type": "DBCache", "Fn_compute_blocks": 0}}, "cache.Fn_compute_blocks", ["nearest legal value: 1"]),
        ({"cache": {"type": "DBCache", "Fn": 1}}, "cache.Fn", ["unknown"]),
        ({"cache": {"type": "DBCache", "Bn_compute_blocks_ids": [8]}}, "cache.Bn_compute_blocks_ids", ["0..7"]),
        ({"timeout_s": 0}, "timeout_s", ["greater than 0"]),
    ],
)
def test_schema_refusals(fields, param, words):
    error = refusal(**fields)
    assert error.param == param
    for word in words:
        assert word in error.message


def test_all_faults_are_in_the_message():
    error = refusal(n=0, seed=-1, wrong=1)
    assert all(name in error.message for name in ("n:", "seed:", "wrong:"))


def test_missing_prompt():
    with pytest.raises(RequestError) as caught:
        parse_body(ImagesBody, b"{}")
    assert caught.value.code == "missing_required_parameter"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": 1e999}',
    ],
)
def test_what_is_not_a_json_object_is_400(body):
    with pytest.raises(RequestError) as caught:
        parse_body(ImagesBody, body)
    assert caught.value.status == 400


def test_messages_stay_short():
    assert len(refusal(cache={"type": "x" * 100_000}).message) < 1000
    assert len(refusal(**{"y" * 100_000: 1}).message) < 1000


def test_handles_get_the_same_limits():
    with pytest.raises(ValidationError):
        GenerationRequest(prompt="a", n=0)
    with pytest.raises(ValidationError):
        GenerationRequest(prompt="\ud800")
