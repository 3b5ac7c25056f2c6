"""The simulation of a cluster, small: the real schedulers end, each step is done once, and more workers help."""

from __future__ import annotations

from bench_load import many_models, plan_of
from simulate_cluster import World, simulate

MODELS = 12


def world(**changes: float) -> World:
    took = {"convert": [(3.0, 1 << 20), (5.0, 1 << 20)], "smoke": [(2.0, 1 << 10)], "fetch": [(1.0, 1 << 20)]}
    return World(**{"latency_s": 0.01, "bandwidth": 1e8, "look_s": 1e-4, **changes}, took=took)


def test_workers_of_a_simulation_do_each_step_once_and_help_each_other() -> None:
    plan = plan_of(*many_models(MODELS))
    done = {count: simulate(plan, count, world()) for count in (1, 4)}  # it raises where a step is done twice, or never
    assert done[1].fetches == MODELS
    assert done[4].fetches <= 4 * MODELS
    assert done[1].makespan / 4 <= done[4].makespan < done[1].makespan / 2
    assert all(each.work <= 2 * each.makespan * each.workers for each in done.values()), "a worker has two cores"
    assert simulate(plan, 4, world()) == done[4], "nothing is left to chance"
    whole = simulate(plan, 4, world(shortcut=False))
    assert abs(whole.makespan - done[4].makespan) < 0.02 * whole.makespan, "what is counted is what it would have cost"


def test_a_store_that_answers_slowly_costs_what_it_is_asked() -> None:
    plan = plan_of(*many_models(4))
    quick, slow = (simulate(plan, 2, world(latency_s=seconds)) for seconds in (0.001, 1.0))
    assert slow.makespan > quick.makespan
    assert slow.waited["look-ups"] > quick.waited["look-ups"]
