"""How the number of threads, and the length of drafts, are found."""

import pytest
from fastjukebox.engine.trials import TeamSize


def simulated(team, cost, calls, monkeypatch):
    """Threads of each of so many calls that are to last 0.25 s, where a step costs cost(threads) seconds, and what part
    of the time the better count would have saved."""
    now, chosen, least = [0.0], [], 0.0
    monkeypatch.setattr("fastjukebox.engine.trials.time.monotonic", lambda: now[0])
    team.next_trial = 0.0
    for _ in range(calls):
        threads, steps = team.next_call(0.25)
        assert steps >= 1
        seconds = steps * cost(threads)
        now[0] += seconds
        least += steps * min(cost(count) for count in team.counts)
        team.measured(threads, steps, seconds)
        chosen.append(threads)
    return chosen, 1 - least / now[0]


@pytest.mark.parametrize(
    ("cost", "tried"),
    [
        (lambda threads: 1e-4 if threads == 1 else 3e-3, {1, 2}),
        (lambda threads: 4e-4 / threads, {6, 12}),
        (lambda threads: 1e-2 / threads, {6, 12}),
        # Six threads do as much as there is to be gained.
        (lambda threads: 4e-4 / threads + 1e-5 * threads, {4, 6, 12}),
        (lambda threads: 1e-4 * abs(threads - 4) + 1e-4, {2, 4, 6}),
        (lambda threads: 1e-4, {1, 2}),
    ],
)
def test_the_fastest_team_decodes_and_trials_of_others_cost_little(cost, tried, monkeypatch):
    team = TeamSize(12)
    team.counts = [1, 2, 4, 6, 12]
    chosen, lost = simulated(team, cost, 400, monkeypatch)
    assert lost < 0.03
    # Its neighbours again and again, not in the beginning only.
    assert set(chosen[100:]) == tried


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_teams_of_every_size_are_there_to_choose_from(most, counts):
    assert TeamSize(most).counts == counts


def test_a_team_follows_a_machine_that_becomes_busy(monkeypatch):
    team = TeamSize(2)
    assert simulated(team, lambda threads: 1e-4 if threads == 2 else 2e-4, 50, monkeypatch)[0][-1] == 2
    assert simulated(team, lambda threads: 5e-3 if threads == 2 else 2e-4, 50, monkeypatch)[0][-1] == 1


def test_one_slow_call_changes_nothing():
    team = TeamSize(2)
    for threads, seconds in ((1, 2e-4), (2, 1e-4), (2, 1e-4), (2, 1e-4), (1, 2e-4), (2, 1e-2)):
        team.measured(threads, 1, seconds)
    assert team.best == 2


def test_what_was_long_ago_does_not_count():
    team = TeamSize(1)
    for seconds in (9.0, 9.0, 9.0, 9.0, 1.0, 1.0):
        team.measured(1, 1, seconds)
    assert team.cost(1) == 1.0


def test_a_count_is_tried_three_times_after_a_single_step(monkeypatch):
    chosen, _ = simulated(TeamSize(2), lambda threads: 1e-4 * threads, 8, monkeypatch)
    assert chosen == [1, 2, 2, 2, 2, 1, 1, 1]


def test_one_thread_has_no_choice(monkeypatch):
    assert set(simulated(TeamSize(1), lambda threads: 1e-4, 50, monkeypatch)[0]) == {1}


def test_a_team_that_is_slower_by_any_factor_is_found_out_in_single_steps(monkeypatch):
    """Where there are more threads than cores, a step may take hundreds of times as long."""
    now, team, slow = [0.0], TeamSize(32), []
    monkeypatch.setattr("fastjukebox.engine.trials.time.monotonic", lambda: now[0])
    for _ in range(100):
        threads, steps = team.next_call(0.25)
        seconds = steps * (0.05 if threads == 32 else 1e-3 / threads)
        slow += [steps] if threads == 32 else []
        now[0] += seconds
        team.measured(threads, steps, seconds)
    assert slow and max(slow) == 1
