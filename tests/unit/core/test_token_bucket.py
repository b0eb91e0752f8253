"""A token bucket: what is let through, and when."""

from retinue.core.token_bucket import TokenBucket


def taken(bucket: TokenBucket, count: int, now: float) -> int:
    return sum(bucket.take(now) for _ in range(count))


def test_so_many_a_second_and_no_more() -> None:
    bucket = TokenBucket(20.0, 100.0)
    assert taken(bucket, 50, 100.0) == 20
    assert taken(bucket, 50, 100.5) == 10
    assert taken(bucket, 50, 100.5) == 0
    assert taken(bucket, 50, 100.5625) == 1, "a quarter is left"
    assert taken(bucket, 50, 100.6015625) == 1, "with which it is one more"
    assert taken(bucket, 50, 200.0) == 20, "it holds no more than a second's"


def test_a_clock_that_goes_back_fills_nothing() -> None:
    bucket = TokenBucket(2.0, 100.0)
    assert taken(bucket, 3, 100.0) == 2
    assert taken(bucket, 3, 99.0) == 0
    assert taken(bucket, 3, 100.0) == 0
