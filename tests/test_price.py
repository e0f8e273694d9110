import pytest
from sample_records import gap, measurement

from profiling.display import notes, results
from profiling.price import Price
from profiling.record import FAILED


def test_price_by_hand() -> None:
    record = measurement(p50_ms=10.0, batch=100)  # 10,000 images a second: 36 million an hour

    assert Price(3.6).per_million(record) == pytest.approx(0.1)


def test_the_fastest_batch_within_the_bound_counts() -> None:
    small, middle, large = (
        measurement(p50_ms=ms, batch=batch) for ms, batch in ((1.0, 1), (8.0, 64), (24.0, 256))
    )
    other = measurement(p50_ms=2.0, backend="onnx")
    records = [small, middle, large, other, gap(FAILED, "no", batch=512)]

    assert Price(1.0).best(records) == [large, other]
    assert Price(1.0, 10.0).best(records) == [middle, other]
    assert Price(1.0, 1.5).best(records) == [small]


def test_the_bound_is_on_the_slow_calls() -> None:
    record = measurement(samples_ms=(1.0,) * 90 + (50.0,) * 10)

    assert Price(1.0, 10.0).best([record]) == []


def test_the_table_prices_the_best_row_and_says_how() -> None:
    records = [measurement(p50_ms=10.0, batch=100), measurement(p50_ms=10.0)]
    price = Price(3.6, 20.0)

    header, first, second = results(records, price=price).splitlines()

    assert header.endswith("  per million")
    assert first.endswith("  0.100")
    assert len(second) < len(first)  # nothing stands there
    assert notes(records, price=price)[-1] == (
        "per million: price of a million images at 3.6 an hour, at the fastest batch size with "
        "99% of the calls within 20 ms; loading and the first call are not in it."
    )
