"""Known answers of every probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from fedlab.errors import DataError
from fedlab.probes import SCORE, Labels, Probe, Probed
from fedlab.probes.classifiers import linear_probe
from fedlab.probes.few_shot import FewShot, FewShotSettings
from fedlab.probes.knn import NearestNeighbors, NearestNeighborsSettings
from fedlab.probes.linear import Linear, LinearSettings
from fedlab.probes.retrieval import RetrievalProbe, RetrievalSettings
from fedlab.probes.ridge import Ridge, RidgeSettings
from fedlab.probes.svm import SVM, SVMSettings


def probed(vectors: Any, labels: Any, name: str = "set", **columns: Any) -> Probed:
    return Probed(name, np.asarray(vectors, np.float32), np.asarray(labels), columns=columns)


def noisy(n: int, seed: int, noise: float = 1.0, classes: int = 3) -> Probed:
    """Clusters that overlap."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return probed(np.eye(classes, 6)[labels] * 2 + noise * rng.standard_normal((n, 6)), labels)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("probe", [NearestNeighbors(), Linear(), SVM(), FewShot(FewShotSettings(ways=3)), Ridge()])
def test_clusters_that_do_not_overlap_are_told_apart(probe: Probe) -> None:
    assert probe.run(noisy(60, 0, 0.05), noisy(60, 1, 0.05), rng())[SCORE] == 1.0


@pytest.mark.parametrize("probe", [NearestNeighbors(), Linear(), SVM(), FewShot(FewShotSettings(ways=3)), Ridge()])
def test_labels_that_say_nothing_leave_chance(probe: Probe) -> None:
    fit = noisy(600, 0, 0.05)
    shuffled = probed(fit.vectors, rng().permutation(fit.labels))
    assert probe.run(shuffled, noisy(300, 1, 0.05), rng())[SCORE] < 0.7


class TestNearestNeighbors:
    FIT = probed([[1, 0], [0.9, 0.19**0.5], [0.9, -(0.19**0.5)]], [0, 1, 1])

    @pytest.mark.parametrize(("temperature", "label"), [(0.07, 0), (1.0, 1)])
    def test_a_neighbor_counts_by_its_cosine_over_the_temperature(self, temperature: float, label: int) -> None:
        # 1 against 2 · exp(-0.1 / τ): 0.48 for τ = 0.07 and 1.81 for τ = 1
        probe = NearestNeighbors(NearestNeighborsSettings(temperature=temperature))
        assert probe.run(self.FIT, probed([[2, 0]], [label]), rng())[SCORE] == 1.0

    def test_only_the_k_nearest_count(self) -> None:
        one = NearestNeighbors(NearestNeighborsSettings(k=1, temperature=1.0))
        assert one.run(self.FIT, probed([[2, 0]], [0]), rng())[SCORE] == 1.0

    def test_the_nearest_are_found_by_their_direction(self) -> None:
        fit = probed([[10, 0], [0, 1]], [0, 1])  # by distance, the second would be the nearest
        one = NearestNeighbors(NearestNeighborsSettings(k=1))
        assert one.run(fit, probed([[1, 0.2]], [0]), rng())[SCORE] == 1.0

    def test_several_labels_are_scored_by_mean_average_precision(self) -> None:
        fit = probed([[1, 0], [0, 1]], [[1, 0], [1, 1]])
        test = probed([[1, 0.1], [0.1, 1]], [[1, 0], [1, 1]])
        assert NearestNeighbors().run(fit, test, rng())[SCORE] == 1.0


class TestLinear:
    def test_a_single_strength_is_the_linear_probe(self) -> None:
        fit, test = noisy(90, 0), noisy(60, 1)
        found = Linear(LinearSettings(strength=0.5)).run(fit, test, rng())
        assert found == {SCORE: linear_probe(fit.vectors, fit.labels, test.vectors, test.labels, 0.5)}

    def test_of_several_the_one_is_taken_that_is_best_on_the_other_half(self) -> None:
        fit, test = noisy(90, 0), noisy(60, 1)
        given = (1e-6, 0.1)
        found = Linear(LinearSettings(strength=given)).run(fit, test, rng())
        assert found["strength"] in given
        best = linear_probe(fit.vectors, fit.labels, test.vectors, test.labels, found["strength"])
        assert found[SCORE] == best

    def test_a_strength_is_not_chosen_for_the_samples_it_was_fitted_to(self) -> None:
        """With nearly as many features as samples, hardly any penalty fits one half best and the other half worse."""
        random = np.random.default_rng(3)
        labels = np.arange(60) % 2
        vectors = random.standard_normal((60, 40))
        vectors[:, 0] += 2.0 * (2 * labels - 1)
        fit = probed(vectors, labels)
        assert Linear(LinearSettings(strength=(1e4, 1e-3))).run(fit, fit, rng())["strength"] == 1e-3

    def test_the_choice_knows_nothing_of_the_test_samples(self) -> None:
        fit, test = noisy(90, 0), noisy(60, 1)
        wrong = probed(test.vectors, (test.labels + 1) % 3)
        probe = Linear(LinearSettings(strength=(1e-4, 1e-2, 1.0, 100.0)))
        assert probe.run(fit, test, rng())["strength"] == probe.run(fit, wrong, rng())["strength"]


def test_the_support_vector_machine_sees_directions_only() -> None:
    fit, test = noisy(90, 0, 0.3), noisy(60, 1, 0.3)
    scale = np.random.default_rng(2).uniform(0.01, 100, (90, 1)).astype(np.float32)
    assert SVM().run(probed(fit.vectors * scale, fit.labels), test, rng()) == SVM().run(fit, test, rng())


def test_the_support_vector_machine_has_the_strength_asked_for() -> None:
    fit, test = noisy(60, 0, 1.5), noisy(90, 1, 1.5)
    machine = LinearSVC(C=0.01, max_iter=10_000, random_state=0).fit(normalize(fit.vectors), fit.labels)
    expected = machine.score(normalize(test.vectors), test.labels)
    assert SVM(SVMSettings(C=0.01)).run(fit, test, rng())[SCORE] == pytest.approx(expected)
    assert SVM().run(fit, test, rng())[SCORE] < expected


class TestFewShot:
    def test_classes_with_too_few_queries_are_never_drawn(self) -> None:
        fit, full = noisy(80, 0, 0.05, classes=4), noisy(80, 1, 0.05, classes=4)
        kept = np.concatenate([np.flatnonzero(full.labels < 3), np.flatnonzero(full.labels == 3)[:2]])
        test = probed(full.vectors[kept], full.labels[kept])
        assert FewShot(FewShotSettings(ways=3, episodes=20)).run(fit, test, rng())[SCORE] == 1.0

    def test_mean_and_deviation_are_those_of_the_episodes(self) -> None:
        s = FewShotSettings(ways=2, shots=1, queries=5, episodes=2)
        found = FewShot(s).run(noisy(60, 0, 2.0), noisy(60, 1, 2.0), rng())
        half = found["std"] / 2**0.5  # of two numbers, with n - 1
        both = np.array([found[SCORE] - half, found[SCORE] + half]) * s.ways * s.queries
        assert np.allclose(both, np.rint(both), atol=1e-6)
        assert found["std"] > 0

    def test_equal_draws_give_equal_values(self) -> None:
        sides = noisy(60, 0, 2.0), noisy(60, 1, 2.0)
        probe = FewShot(FewShotSettings(ways=2, episodes=5))
        assert probe.run(*sides, rng()) == probe.run(*sides, rng())
        assert probe.run(*sides, rng()) != probe.run(*sides, np.random.default_rng(1))

    def test_a_query_belongs_to_the_nearest_mean(self) -> None:
        # the mean of class 0 is (0.71, 0.71) and nearer to the query than that of class 1, though a shot of 1 is nearer
        fit = probed([[1, 0], [0, 1], [0.8, 0.6], [-1, 0]], [0, 0, 1, 1])
        s = FewShotSettings(ways=2, shots=2, queries=1, episodes=2)
        found = FewShot(s).run(fit, probed([[0.75, 0.66], [-1, 0]], [0, 1]), rng())
        assert found == {SCORE: 1.0, "std": 0.0}

    def test_too_few_samples_are_refused(self) -> None:
        labels = Labels("probe", np.arange(20) % 4)
        with pytest.raises(DataError, match="4 classes with 5 samples"):
            FewShot(FewShotSettings(queries=5)).check(labels, Labels("test", np.arange(20) % 4))


class TestRetrieval:
    def test_average_precision_and_recall(self) -> None:
        gallery = probed([[1, 0], [0.9, 0.3], [0.8, 0.6], [0, 1]], [1, 0, 1, 0])
        found = RetrievalProbe(RetrievalSettings(recall=(1, 2))).run(gallery, probed([[1, 0]], [1]), rng())
        assert found[SCORE] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
        assert (found["recall_1"], found["recall_2"]) == (1.0, 1.0)
        other = RetrievalProbe(RetrievalSettings(recall=(1, 2))).run(gallery, probed([[1, 0]], [0]), rng())
        assert other[SCORE] == pytest.approx((1 / 2 + 2 / 4) / 2, abs=1e-6)
        assert (other["recall_1"], other["recall_2"]) == (0.0, 1.0)

    def test_a_sample_does_not_find_itself(self) -> None:
        samples = probed([[1, 0], [0.9, 0.1], [0, 1]], [0, 1, 0])
        found = RetrievalProbe(RetrievalSettings(fit=None, recall=(1,))).run(None, samples, rng())
        assert found[SCORE] == pytest.approx((1 / 2 + 1 / 2) / 2, abs=1e-6)
        assert found["recall_1"] == 0.0

    def test_results_of_the_same_camera_do_not_count(self) -> None:
        gallery = probed([[1, 0], [0.5, 0.5], [0, 1]], [1, 0, 1], camera=np.array([0, 1, 1]))
        query = probed([[1, 0]], [1], camera=np.array([0]))
        found = RetrievalProbe().run(gallery, query, rng())
        assert found[SCORE] == pytest.approx(1 / 2, abs=1e-6)


class TestRidge:
    SETTINGS = RidgeSettings(strength=0.03)

    def test_sums_over_clients_give_what_all_samples_together_give(self) -> None:
        whole, probe = noisy(90, 0), Ridge(self.SETTINGS)
        order = rng().permutation(90)
        for cuts in ([30, 60], [1, 2, 80], list(range(1, 90))):
            parts = [probed(whole.vectors[part], whole.labels[part]) for part in np.split(order, cuts)]
            sums = [probe.sums(part, 3) for part in parts]
            total = {name: sum(found[name] for found in sums) for name in sums[0]}
            solution = probe.solve(total)
            x = whole.vectors.astype(np.float64)
            penalty = 0.03 * np.trace(np.cov(x.T, ddof=0)) * len(x) / x.shape[1]
            pooled = SklearnRidge(alpha=penalty).fit(x, np.eye(3)[whole.labels])
            assert np.abs(solution["weights"].T - pooled.coef_).max() < 1e-6
            assert np.abs(solution["bias"] - pooled.intercept_).max() < 1e-6

    def test_counts_over_clients_give_what_all_test_samples_give(self) -> None:
        fit, test, probe = noisy(90, 0), noisy(60, 1), Ridge(self.SETTINGS)
        solution = probe.solve(probe.sums(fit, 3))
        counts = [probe.count(solution, probed(test.vectors[i::4], test.labels[i::4])) for i in range(4)]
        total = {name: np.array(sum(found[name] for found in counts)) for name in counts[0]}
        assert probe.values(total) == probe.run(fit, test, rng())

    def test_features_that_are_all_alike_leave_the_most_frequent_class(self) -> None:
        fit = probed(np.ones((10, 4)), [0] * 3 + [1] * 7)
        assert Ridge().run(fit, probed(np.ones((4, 4)), [1, 1, 0, 1]), rng())[SCORE] == 0.75

    def test_features_that_are_not_finite_give_no_number(self) -> None:
        probe = Ridge()
        solution = probe.solve(probe.sums(probed(np.full((10, 4), np.inf), [0, 1] * 5), 2))
        counts = probe.count(solution, probed(np.ones((4, 4)), [0, 1, 0, 1]))
        assert np.isnan(probe.values(counts)[SCORE])


@pytest.mark.parametrize("probe", [NearestNeighbors(), Linear(), SVM(), Ridge(), RetrievalProbe()])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [(np.zeros(10, np.int64), "at least two classes"), (np.linspace(0, 1, 10), "whole numbers")],
)
def test_labels_that_say_nothing_are_refused(probe: Probe, labels: np.ndarray, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        probe.check(Labels("probe", labels), Labels("test", np.arange(10) % 2))
