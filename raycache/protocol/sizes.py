"""Image sizes: which are legal, which legal ones are nearest, and which one a request means."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raycache.policy import Policy
from raycache.protocol.errors import invalid
from raycache.protocol.formats import LONGEST_SIDE
from raycache.protocol.job import JobInputs
from raycache.size import Size

__all__ = ["check_format", "check_size", "nearest_sizes", "size_of"]


def check_size(size: Size, *, side: int, ranks: int, max_pixels: int, uneven: bool = False) -> None:
    """Check that both sides are multiples of a token's, not too large, and image tokens divide among the ranks.

    Args:
        uneven: tokens need not divide; one per rank is enough.

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
        reason = f"{size} makes {tokens} image tokens, but each of {ranks} ranks needs one"
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
    # Keep one side and change the other: both ways, otherwise very long and thin images have no result.
    divisor = 1 if uneven else ranks
    legal = {Size(c * side, r * side) for c, r in _divisible(columns, rows, tokens, ranks, divisor)}
    legal |= {Size(c * side, r * side) for r, c in _divisible(rows, columns, tokens, ranks, divisor)}

    legal = {each for each in legal if max(each.width, each.height) < 100_000}  # sizes have at most five digits

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
    """The requested size; else that of the first image, or the default.

    An image with more pixels than the default only sets the shape: photos are larger than the sizes that models are
    made for.

    Raises:
        RequestError: 400, as from :func:`check_size`, or if it is not a size.
    """
    size, most = policy.defaults.size, policy.limits.max_pixels
    if asked is not None and asked != "auto":
        size = _size(asked)
    elif inputs.images:
        given, most = Size.of(inputs.images[0]), min(size.pixels, most)
        shrink = min(1.0, math.sqrt(most / given.pixels))
        size = Size(round(given.width * shrink), round(given.height * shrink))
        near = nearest_sizes(size, side=side, ranks=ranks, max_pixels=most, uneven=uneven)
        if not near:
            reason = f"an image of the shape of the input's {given} cannot be generated; give a size"
            raise invalid("size", reason, [policy.defaults.size])
        return near[0]
    check_size(size, side=side, ranks=ranks, max_pixels=most, uneven=uneven)
    return size


def _size(asked: str) -> Size:
    """Parse the size of a request."""
    try:
        return Size.parse(asked)
    except ValueError:
        reason = f"must be WIDTHxHEIGHT in pixels or `auto`, got {asked[:80]!r}"
        raise invalid("size", reason, ["1024x1024"]) from None


def check_format(format: str, size: Size) -> None:
    """Refuse an image that could not be encoded before it is generated.

    Raises:
        RequestError: 400.
    """
    if (longest := LONGEST_SIDE.get(format)) and max(size.width, size.height) > longest:
        raise invalid("output_format", f"{format} allows {longest} pixels a side, and {size} has more", ["png"])
