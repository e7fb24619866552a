"""Lists of jobs against a plain list, and hostile ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.protocol.errors import RequestError
from raycache.protocol.stored import StoredJob, is_job_id, new_job_id
from raycache.store.index import JobIndex
from tests.helpers.stored import settings_of

OWNERS = (None, "blue", "green")
KINDS = ("video", "image")


def kept(kind: str, owner: str | None, created_at: float, **fields: object) -> StoredJob:
    request = {"prompt": "a"}
    id = new_job_id(kind, created_at)
    return StoredJob(id=id, kind=kind, owner=owner, model="m", created_at=created_at, request=request, **fields)


def index_of(*jobs: StoredJob, **limits: object) -> JobIndex:
    index = JobIndex(settings_of(Path("unused"), **limits))
    for job in jobs:
        index.put(job)
    return index


MINE, OTHERS = ("video", "blue"), [("video", "green"), ("video", None), ("image", "blue")]
made = st.lists(st.sampled_from([MINE] * 5 + OTHERS), max_size=16)


@settings(max_examples=200, deadline=None)
@given(
    made=made,
    limit=st.integers(1, 5),
    order=st.sampled_from(["asc", "desc"]),
    gone=st.sets(st.integers(0, 15), max_size=6),
    new=st.integers(0, 3),
)
def test_pages_are_the_parts_of_a_plain_list(made, limit, order, gone, new):
    """Also when jobs, the last of a page among them, are deleted, and others are made, between two pages."""
    jobs = [kept(kind, owner, float(number)) for number, (kind, owner) in enumerate(made)]
    index = index_of(*jobs)
    rest = [job for job in jobs if (job.kind, job.owner) == MINE]
    if order == "desc":
        rest.reverse()
    after, more = None, True
    while more:
        page = index.page("video", "blue", after, limit, order)
        assert page.jobs == rest[:limit]
        assert page.has_more == (len(rest) > limit)
        rest = rest[limit:]
        more, after = page.has_more, page.jobs[-1].id if page.jobs else None
        for job in [jobs[number] for number in gone if number < len(jobs)]:
            index.drop(job.id)
            rest = [other for other in rest if other != job]
        if new and more:
            new -= 1
            index.put(late := kept("video", "blue", 100.0 - new))
            rest += [late] if order == "asc" else []  # newest first, it came too late for the first page
        more = more and bool(rest)


def test_jobs_of_one_moment_have_one_order():
    index = index_of(*(kept("video", None, 5.0) for _ in range(30)))
    up, down = (index.page("video", None, None, 30, order).jobs for order in ("asc", "desc"))
    assert up == down[::-1]


@pytest.mark.parametrize(
    ("after", "limit", "param"),
    [("../../etc/passwd", 5, "after"), ("", 5, "after"), (None, 0, "limit"), (None, 101, "limit"), (None, -1, "limit")],
)
def test_a_list_that_cannot_be(after, limit, param):
    with pytest.raises(RequestError) as refused:
        index_of().page("video", None, after, limit, "asc")
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    "id",
    [
        *("", ".", "..", "/", "../" * 9 + "etc/passwd", "video_", "video_" + "g" * 32, "video_" + "A" * 32),
        *("video_" + "0" * 31, "video_" + "0" * 33, "image_" + "0" * 32, "video_" + "0" * 32 + "\n", "video_0/../x"),
        *("\x00", "video_" + "\u0660" * 32, "job_" + "0" * 32 + "/job.json"),
    ],
)
def test_what_is_no_id_is_not_found(id):
    assert not is_job_id(id)
    with pytest.raises(RequestError) as refused:
        index_of(kept("video", None, 1.0)).find("video", id, None)
    assert refused.value.status == 404


def test_ids_are_new_each_time_and_sort_by_time():
    ids = [new_job_id("video", 1e9 + second) for second in range(50) for _ in range(20)]
    assert len(set(ids)) == 1000
    assert all(is_job_id(id) for id in ids)
    assert [id[:22] for id in sorted(ids)] == [id[:22] for id in ids]


def test_who_is_next():
    """The owner of whom the fewest are under way; then the higher priority, then the older."""
    low, normal, high = (
        kept("video", "blue", at).model_copy(update={"request": {"priority": priority}})
        for at, priority in ((1.0, "low"), (2.0, "normal"), (3.0, "high"))
    )
    other = kept("image", "green", 9.0)
    done = kept("video", "red", 0.0, status="completed")
    index = index_of(low, normal, high, other, done)
    order, active = [], []
    while (job := index.next_to_begin(active, 4)) is not None:
        order.append(job)
        active.append(job.id)
    assert order == [high, other, normal, low]
    other_model = [job.model_copy(update={"model": "b"}) for job in (kept("video", "blue", 9.0),)]
    index = index_of(low, normal, high, other, *other_model)
    assert index.next_to_begin([low.id, high.id], 2) == other_model[0], "the first model has its share"
    assert index.next_to_begin([low.id, high.id, other_model[0].id], 1) is None
