import math

import pytest
import torch
from tiny import tiny_mlp

from hf_neuroplastic import DropInConfig
from hf_neuroplastic.neurons.decide.criteria import score_sites
from hf_neuroplastic.neurons.decide.decisions import decide_replacement, is_due, lowest
from hf_neuroplastic.neurons.observe.statistics import NeuronStatistics, WatchedSite
from hf_neuroplastic.neurons.sites import find_sites

CRITERIA = ("contribution", "dormant", "gradient", "utility", "random")


def _statistics(width=10, age=1000, seed=0):
    statistics = NeuronStatistics.unknown(width)
    generator = torch.Generator().manual_seed(seed)
    statistics.sums.copy_(torch.rand(statistics.sums.shape, generator=generator))
    statistics.sums[-1] = 1.0
    statistics.update(0.9)
    statistics.age.fill_(age)
    return statistics


def _chosen(scores, statistics=None, **settings):
    statistics = statistics or _statistics(len(scores))
    return decide_replacement(torch.tensor(scores), statistics, DropInConfig(**settings)).indices


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_fraction": 1.0}, [0, 3]),
        ({"max_fraction": 0.1, "outgoing": "zero"}, [3]),  # the lowest of the two
        ({"max_fraction": 0.1}, [0, 3]),  # rounded up to a pair
        ({"max_fraction": 0.11, "outgoing": "zero"}, [0, 3]),  # rounded up
        ({"max_fraction": 1.0, "threshold": 0.25}, [0, 3]),  # the third of three waits for a partner
        ({"max_fraction": 1.0, "threshold": 0.25, "outgoing": "zero"}, [0, 1, 3]),
        ({"max_fraction": 1.0, "threshold": 0.07}, []),
        ({"max_fraction": 0.0}, []),
        ({"threshold": 0.0, "max_fraction": 1.0}, []),
        ({"threshold": math.inf, "max_fraction": 0.3}, [0, 1, 2, 3]),
        ({"max_fraction": 1.0, "maturity": 1001}, []),
        ({"max_fraction": 1.0, "max_neuron_age": 999}, [0, 1, 2, 3, 6, 7, 8, 9]),  # one stays, and one has no partner
        ({"max_fraction": 1.0, "max_neuron_age": 999, "outgoing": "zero"}, list(range(10))),
        ({"max_fraction": 1.0, "max_neuron_age": 1000}, [0, 3]),
        ({"max_fraction": 1.0, "max_neuron_age": 999, "init": "split"}, [0, 1, 2, 3, 9]),  # at most half
    ],
)
def test_budget_threshold_maturity_and_age(settings, expected):
    scores = [0.1, 0.2, 0.3, 0.05, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert _chosen(scores, **settings) == expected


def test_young_unobserved_and_reserve_neurons_are_left_alone():
    statistics = _statistics(4)
    statistics.age[0] = 5
    statistics.seen[1] = False
    statistics.active[2] = False
    assert _chosen([0.0] * 4, statistics, max_fraction=1.0, outgoing="zero") == [3]


@pytest.mark.parametrize("outgoing", ["pair", "zero"])
@pytest.mark.parametrize("width", [1, 2, 7, 10])
@pytest.mark.parametrize("max_fraction", [0.0, 0.01, 0.1, 0.35, 1.0])
def test_a_decision_keeps_to_the_bound_that_it_tells(width, max_fraction, outgoing):
    settings = DropInConfig(threshold=math.inf, max_fraction=max_fraction, outgoing=outgoing)
    decision = decide_replacement(torch.rand(width), _statistics(width), settings)
    chosen = len(decision.indices)
    assert chosen <= decision.most
    assert outgoing == "zero" or chosen % 2 == 0
    assert chosen >= math.floor(width * max_fraction) - 2 * (outgoing == "pair")


def test_ties_go_to_the_lower_index_and_nan_is_never_chosen():
    assert _chosen([0.0, math.nan, 0.0, 0.0], max_fraction=0.5) == [0, 2]
    assert _chosen([math.nan] * 4, max_fraction=1.0) == []
    assert lowest(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, True]), 1).tolist() == [False, False, True]


def test_a_site_cools_down_after_a_change():
    statistics = _statistics(4)
    assert _chosen([0.0] * 4, statistics, max_fraction=1.0, cooldown=3) == [0, 1]  # never changed yet
    statistics.forget(torch.tensor([True, False, False, False]))
    for step in range(1, 5):
        statistics.sums[-1] = 1.0
        statistics.update(0.9)
        assert bool(_chosen([0.0] * 4, statistics, max_fraction=1.0, cooldown=3)) == (step >= 3)


@pytest.mark.parametrize(
    ("settings", "total", "due"),
    [
        ({"interval": 3, "stop": None}, None, [3, 6, 9, 12]),
        ({"interval": 3, "start": 5, "stop": 9}, None, [6]),
        ({"interval": 2, "start": 0.5, "stop": 0.75}, 12, [6, 8]),
        ({"interval": 1, "start": 0.0, "stop": 1.0}, 3, [1, 2]),
    ],
)
def test_schedule(settings, total, due):
    assert [step for step in range(1, 13) if is_due(step, DropInConfig(**settings), total)] == due


def test_a_stop_as_a_share_of_an_unknown_length_is_no_stop():
    config = DropInConfig(interval=10)
    assert all(is_due(step, config, None) for step in (10, 10**6))
    assert not is_due(10**6, config, 10**6)


def score(criterion, site, statistics, *, relative, seed=0, event=0, site_index=0):
    watched = [WatchedSite(site, statistics, site.width, torch.zeros(()), torch.zeros(()))] * (site_index + 1)
    config = DropInConfig(criterion=criterion, relative=relative, seed=seed)
    return score_sites(watched, config, event)[site_index]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_relative_scores_average_to_one_over_the_active_neurons(criterion):
    site, statistics = find_sites(tiny_mlp())[0], _statistics()
    statistics.active[:3] = False
    scores = score(criterion, site, statistics, relative=True)
    torch.testing.assert_close(scores[3:].mean(), torch.tensor(1.0))
    absolute = score(criterion, site, statistics, relative=False)
    assert torch.equal(scores.argsort(), absolute.argsort())


def test_what_each_criterion_measures():
    site, statistics = find_sites(tiny_mlp())[0], _statistics()
    activity, gradient = statistics.activity, statistics.gradient
    expected = {
        "contribution": activity * gradient,
        "dormant": activity,
        "gradient": gradient,
        "utility": activity * site.down.weight.abs().sum(0),
    }
    for criterion, value in expected.items():
        torch.testing.assert_close(score(criterion, site, statistics, relative=False), value.detach())


def test_random_scores_depend_on_seed_event_and_site_only():
    site, statistics = find_sites(tiny_mlp())[0], _statistics()
    draws = [
        score("random", site, statistics, relative=False, seed=seed, event=event, site_index=index)
        for seed, event, index in [(0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert torch.equal(draws[0], draws[1])
    assert all(not torch.equal(draws[0], other) for other in draws[2:])


def test_a_dead_layer_scores_zero_not_nan():
    site, statistics = find_sites(tiny_mlp())[0], _statistics()
    statistics.averages.zero_()
    assert score("contribution", site, statistics, relative=True).tolist() == [0.0] * 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_of_non_finite_moments_is_forgotten(bad):
    statistics = _statistics()
    before = statistics.state_dict()
    statistics.sums.fill_(1.0)
    statistics.sums[1, 4] = bad
    statistics.update(0.9)
    after = statistics.state_dict()
    for name in ("averages", "weight", "age"):
        changed = (before[name] != after[name]).reshape(-1, 10).any(0)
        assert changed.tolist() == [neuron != 4 for neuron in range(10)]
    assert not statistics.sums.any()


def test_averages_are_bias_corrected():
    statistics = NeuronStatistics.unknown(2)
    for _ in range(3):
        statistics.sums.fill_(6.0)
        statistics.sums[-1] = 2.0
        statistics.update(0.99)
        torch.testing.assert_close(statistics.activity, torch.full((2,), 3.0))


def test_the_loss_scale_is_divided_out_of_gradients_only():
    plain, scaled = NeuronStatistics.unknown(2), NeuronStatistics.unknown(2)
    for statistics, factor in ((plain, 1.0), (scaled, 1024.0)):
        statistics.sums.fill_(3.0)
        statistics.sums[1] *= factor
        statistics.update(0.5, torch.tensor(factor))
    assert torch.equal(plain.averages, scaled.averages)


@pytest.mark.parametrize(("width", "replaced"), [(1, 0), (2, 0), (3, 2), (4, 2), (5, 4)])
def test_pairs_leave_a_neuron_to_take_after(width, replaced):
    statistics = NeuronStatistics.unknown(width)
    statistics.seen.fill_(True)
    config = DropInConfig(threshold=math.inf, maturity=0, max_fraction=1.0)
    assert int(decide_replacement(torch.zeros(width), statistics, config).mask.sum()) == replaced
