"""Numbers and intervals as text."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.metrics.statistics import Estimate, format_interval, format_value

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.8312, "%", "83.1%"),
        (1.0, "%", "100.0%"),
        (0.0, "%", "0.0%"),
        (-0.0, "%", "0.0%"),
        (-0.0001, "%", "0.0%"),
        (0.024, "pp", "+2.4 pp"),
        (-0.024, "pp", "−2.4 pp"),
        (-0.0, "pp", "+0.0 pp"),
        (-0.0004, "pp", "+0.0 pp"),
        (0.0412, "", "0.0412"),
        (-0.0412, "", "−0.0412"),
        (0.0, "", "0"),
        (-0.0, "", "0"),
        (1.0, "", "1.00"),
        (123.4, "", "123"),
        (999.6, "", "1,000"),
        (12400.0, "", "12,400"),
        (0.000012, "", "1.20×10⁻⁵"),
        (-0.000012, "", "−1.20×10⁻⁵"),
        (2.5, "nats", "2.50 nats"),
        (math.inf, "", "∞"),
        (-math.inf, "", "−∞"),
        (NAN, "", "–"),
        (NAN, "%", "–"),
        (NAN, "pp", "–"),
        (NAN, "nats", "–"),
    ],
)
def test_numbers_read_as_people_write_them(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


@given(st.floats(-1e6, 1e6), st.sampled_from(["%", "pp", "", "nats"]))
def test_a_number_as_written_is_the_number_to_its_last_digit(value: float, unit: str) -> None:
    text = format_value(value, unit)
    assert "-" not in text
    assert not re.search(r"−0(\.0+)?(?!\.?\d)", text), "minus nothing"
    plain = text.removesuffix(unit).strip().replace("−", "-").replace("+", "").replace(",", "")
    mantissa, _, exponent = plain.partition("×10")
    read = float(mantissa) * 10.0 ** int(exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)
    if unit in ("%", "pp"):
        assert read == pytest.approx(100 * value, abs=0.0501)
    else:
        assert read == pytest.approx(value, rel=0.00501, abs=1e-300)


def test_intervals_are_without_unit_and_empty_where_an_end_is_unknown() -> None:
    assert format_interval(Estimate(0.831, 0.81, 0.852, 5, "%")) == "[81.0, 85.2]"
    assert format_interval(Estimate(0.02, -0.0001, 0.04, 5, "pp")) == "[+0.0, +4.0]"
    assert format_interval(Estimate(2.5, 2.25, 2.75, 5, "nats")) == "[2.25, 2.75]"
    assert format_interval(Estimate(0.0, -1e-5, 12400.0, 5)) == "[−1.00×10⁻⁵, 12,400]"
    assert format_interval(Estimate(0.5, NAN, 0.6, 5, "%")) == ""
    assert format_interval(Estimate(0.5, 0.4, NAN, 5, "%")) == ""
