"""Image sizes: which are possible, which possible ones are nearest, and which one a request means."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raycache.protocol.errors import invalid
from raycache.protocol.formats import LONGEST_SIDE
from raycache.protocol.job import JobInputs
from raycache.settings import Policy
from raycache.size import Size

__all__ = ["check_format", "check_size", "nearest_sizes", "size_of"]


def check_size(size: Size, *, side: int, ranks: int, max_pixels: int, uneven: bool = False) -> None:
    """Both sides multiples of a token's, not too large, image tokens divisible by the number of ranks.

    Args:
        uneven: they need not divide; one for each rank is enough.

    Raises:
        RequestError: 400 with the two nearest legal sizes.
    """
    if size.width % side or size.height % side or not size.pixels:
        reason = f"width and height must be positive multiples of {side}, got {size}"
    elif size.pixels > max_pixels:
        reason = f"{size} is {size.pixels} pixels, at most {max_pixels} are allowed here"
    elif (tokens := size.tokens(side)) % ranks and not uneven:
        reason = f"{size} makes {tokens} image tokens, which do not divide over {ranks} ranks"
    elif tokens < ranks:
        reason = f"{size} makes {tokens} image tokens, of which each of {ranks} ranks needs one"
    else:
        return
    raise invalid("size", reason, nearest_sizes(size, side=side, ranks=ranks, max_pixels=max_pixels, uneven=uneven))


def nearest_sizes(
    size: Size, *, side: int, ranks: int, max_pixels: int, count: int = 2, uneven: bool = False
) -> list[Size]:
    """Legal sizes closest to ``size``, nearest first, by the sum of the changes of both sides."""
    shrink = min(1.0, math.sqrt(max_pixels / max(1, size.pixels)))
    columns, rows = (max(1, round(length * shrink / side)) for length in (size.width, size.height))
    tokens = max_pixels // side**2
    # Keep one side and move the other: both ways round, or a very long and thin image finds nothing.
    divisor = 1 if uneven else ranks
    legal = {Size(c * side, r * side) for c, r in _divisible(columns, rows, tokens, ranks, divisor)}
    legal |= {Size(c * side, r * side) for r, c in _divisible(rows, columns, tokens, ranks, divisor)}

    legal = {each for each in legal if max(each.width, each.height) < 100_000}  # five digits can be said

    def change(other: Size) -> tuple[int, ...]:
        # Ties go to the size of nearly the same shape, then to the larger one.
        changed = abs(other.width - size.width) + abs(other.height - size.height)
        skewed = abs(other.width * size.height - other.height * size.width)
        return changed, skewed, -other.pixels, other.width

    return sorted(legal, key=change)[:count]


def _divisible(kept: int, moved: int, most: int, ranks: int, divisor: int) -> Iterator[tuple[int, int]]:
    """Pairs near (kept, moved), in tokens, with a product divisible by ``divisor``, from ``ranks`` to ``most``."""
    for a in range(max(1, kept - ranks), kept + ranks + 1):
        step = divisor // math.gcd(a, divisor)
        below = min(moved, most // a) // step * step
        yield from ((a, b) for b in (below, below + step) if b > 0 and ranks <= a * b <= most)


def size_of(asked: str | None, inputs: JobInputs, policy: Policy, *, side: int, ranks: int, uneven: bool) -> Size:
    """The size that is asked for; else that of the first picture, or the default.

    A picture that has more pixels than the default keeps its shape only: what came out of a camera is no size that a
    model was made for.

    Raises:
        RequestError: 400, as of :func:`check_size`, or where it is no size.
    """
    size, most = policy.defaults.size, policy.limits.max_pixels
    if asked is not None and asked != "auto":
        size = _size(asked)
    elif inputs.pictures:
        given, most = Size.of(inputs.pictures[0]), min(size.pixels, most)
        shrink = min(1.0, math.sqrt(most / given.pixels))
        size = Size(round(given.width * shrink), round(given.height * shrink))
        near = nearest_sizes(size, side=side, ranks=ranks, max_pixels=most, uneven=uneven)
        if not near:
            reason = f"the picture's {given} is no shape to draw in; name a size"
            raise invalid("size", reason, [policy.defaults.size])
        return near[0]
    check_size(size, side=side, ranks=ranks, max_pixels=most, uneven=uneven)
    return size


def _size(asked: str) -> Size:
    """What a request says of its size."""
    try:
        return Size.parse(asked)
    except ValueError:
        reason = f"must be WIDTHxHEIGHT in pixels or `auto`, got {asked[:80]!r}"
        raise invalid("size", reason, ["1024x1024"]) from None


def check_format(format: str, size: Size) -> None:
    """An image that cannot be encoded must not be generated first.

    Raises:
        RequestError: 400.
    """
    if (longest := LONGEST_SIDE.get(format)) and max(size.width, size.height) > longest:
        raise invalid("output_format", f"{format} allows {longest} pixels a side, and {size} has more", ["png"])
