import json
import math

import pytest

from hf_neuroplastic.neurons.schedules import Constant, Cosine, OneOff, Schedule, schedule_from_dict

EVERY = [Constant(3), OneOff(0.4, 0, 5), Cosine(0.2, 0.6, 1.0, 0.5), OneOff(0, 0, 8) + Cosine(0.5, 0.9, 0, -8)]


def test_values():
    assert [OneOff(0.4, 1, 5)(t) for t in (0, 0.39, 0.4, 1)] == [1, 1, 5, 5]
    cosine = Cosine(0.2, 0.6, 1.0, 0.0)
    assert [round(cosine(t), 6) for t in (0, 0.2, 0.4, 0.6, 1)] == [1, 1, 0.5, 0, 0]
    assert cosine(0.3) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert (OneOff(0, 0, 8) + Cosine(0.5, 0.9, 0, -8))(1.0) == 0


@pytest.mark.parametrize("schedule", EVERY)
def test_to_dict_and_back(schedule):
    assert schedule_from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_the_largest_value_is_found_where_it_lasts_for_one_step_only():
    assert (OneOff(0.5, 0, 7) + OneOff(0.50001, 0, -7)).most_neurons(9) == 7


def test_whole_numbers_count_neurons_and_floats_are_shares():
    assert Constant(3).neurons(0.5, start=40) == 3
    assert Constant(0.5).neurons(0.5, start=40) == 20
    assert Cosine(0.0, 1.0, 0.0, -0.5).neurons(0.5, start=40) == pytest.approx(-10)
    assert (OneOff(0.0, 0, 8) + Constant(0.25)).neurons(1.0, start=40) == 18
    assert (Constant(2) + Constant(0.1)).most_neurons(start=30) == pytest.approx(5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OneOff(1.5, 0, 1), r"at .*\[0, 1\], got 1.5"),
        (lambda: Cosine(0.5, 0.5, 0, 1), "start must lie before end"),
        (lambda: Constant(math.inf), r"value must lie in \(-inf, inf\), got inf"),
        (lambda: OneOff(0.0, math.nan, 1), "before must lie in .*, got nan"),
        (lambda: schedule_from_dict({"schedule": "Linear"}), "one of Constant, OneOff, Cosine, Sum, got 'Linear'"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()
    with pytest.raises(TypeError, match="no schedule by itself"):
        Schedule()(0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Constant("3"), "value must be a number, got '3'"),
        (lambda: OneOff(0.0, 0, None), "after must be a number, got None"),
        (lambda: Cosine(0.0, 1.0, "0", 1), "before must be a number, got '0'"),
        (lambda: OneOff(0.0, 0, 1) + 3, "second must be a Schedule, such as Constant, .*got 3"),
    ],
)
def test_errors_of_type(make, words):
    with pytest.raises(TypeError, match=words):
        make()
