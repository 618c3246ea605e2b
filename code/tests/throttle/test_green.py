"""Green contexts without a GPU: the requested SMs, and a rank at full speed."""

import pytest

from heteroring.throttle import throttle_type
from heteroring.throttle.green import requested_sms


def test_full_speed_needs_no_context():
    throttle = throttle_type("green")(100)
    throttle.start()
    assert throttle.wrap(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("percentage", [0, 101, 2.5, True])
def test_a_percentage_out_of_range_is_refused(percentage):
    with pytest.raises(ValueError, match="is not an integer from 1 to 100"):
        throttle_type("green")(percentage)
    with pytest.raises(ValueError, match="is not an integer from 1 to 100"):
        throttle_type("green")(100).set(percentage)


@pytest.mark.parametrize(("percentage", "count"), [(100, 132), (50, 66), (10, 13), (1, 1)])
def test_what_is_requested_of_132_sms(percentage, count):
    assert requested_sms(132, percentage) == count
