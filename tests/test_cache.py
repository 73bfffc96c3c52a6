"""What a process keeps between messages: by key, in a bounded number, cleared in one call."""

import pytest

from fedattn_app.cache import ProcessCache


@pytest.fixture
def counted():
    """A cache, a function that it keeps two results of, and the arguments of the calls made."""
    cache, calls = ProcessCache(), []

    @cache.keep(max_entries=2)
    def double(number):
        """Return twice the number."""
        calls.append(number)
        return [2 * number]

    return cache, double, calls


def test_a_result_is_made_once_for_each_key(counted):
    _, double, calls = counted
    assert double(1) is double(1)
    assert double(2) == [4]
    assert calls == [1, 2]


def test_the_least_recently_used_result_goes_first(counted):
    _, double, calls = counted
    for number in (1, 2, 1, 3, 1, 2):
        double(number)
    assert calls == [1, 2, 3, 2]


def test_one_call_clears_the_results_of_all_functions(counted):
    cache, double, calls = counted

    @cache.keep(max_entries=1)
    def triple(number):
        calls.append(-number)
        return 3 * number

    for _ in range(2):
        double(1)
        triple(1)
        cache.clear()
    assert calls == [1, -1, 1, -1]
