"""The rule for C recovers planted neurons better than the rule of the first version."""

import numpy as np

from harness.bench import BENCHES
from harness.bench.identify import OLD, RULE, bench_identify, compare_rules, planted


def test_the_rule_recovers_more_planted_neurons_than_the_old_one():
    """Four fixed data sets; `hq bench identify` has more of them, and other effects."""
    of_seeds = [compare_rules(*planted(seed, 0.6, 800, 1000), seed) for seed in range(4)]
    f1 = {rule: np.mean([of_seed[rule].f1 for of_seed in of_seeds]) for rule in of_seeds[0]}
    precision = {
        rule: np.mean([of_seed[rule].precision for of_seed in of_seeds]) for rule in of_seeds[0]
    }
    print(f"\nF1 {f1}\nprecision {precision}")
    assert f1[RULE] > f1[OLD] + 0.1
    assert f1[RULE] > f1["best_auroc"] + 0.05
    assert f1[RULE] > f1["deviance"] + 0.05
    assert precision[RULE] > precision[OLD] + 0.1


def test_identify_has_its_rows_at_a_small_size():
    assert BENCHES["identify"] is bench_identify
    rows = {row.name: row for row in bench_identify(1, 400, 300, speed_n=240, speed_p=600)}
    rules = (OLD, "best_auroc", "deviance", RULE)
    assert list(rows) == [
        *(f"f1_{rule}_at_{effect}" for effect in (0.2, 0.35, 0.6) for rule in rules),
        "f1_over_old_rule",
        "cross_fit_s",
        "path_speedup_over_full_matrix",
        "folds_speedup_over_full_matrix",
        "path_objective_gap_relative",
    ]
    assert rows["path_objective_gap_relative"].ok
    assert all(np.isfinite(row.value) for row in rows.values())
