"""The shifts of every class against independent solvers, closed forms and the definition."""

import itertools

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from bezoar.errors import InputError
from bezoar.methods.tac_solver import right_hand_sides, solve_minimal_shifts


def random_problem(classes, features, seed, samples=200, bias=0.0):
    """A Gaussian head and the right-hand sides of random non-negative features."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=generator)
    inputs = torch.randn(samples, features, generator=generator).relu()
    offset = bias * torch.randn(classes, generator=generator)
    return weight, inputs, inputs @ weight.T + offset


def constraints(weight, rhs, k):
    """V_k and r_k as NumPy arrays, without the row of k itself."""
    others = [j for j in range(len(weight)) if j != k]
    weight, rhs = weight.double(), rhs.double()
    return (weight[k] - weight[others]).numpy(), rhs[k, others].numpy()


def least_distance_reference(weight, rhs, k):
    """min ||s|| s.t. V s >= r as non-negative least squares; None where there is no such s."""
    rows, levels = constraints(weight, rhs, k)
    lengths = np.linalg.norm(rows, axis=1)
    rows, levels = rows / lengths[:, None], levels / lengths
    unit = levels.max()
    if unit <= 0:
        return np.zeros(rows.shape[1])
    system = np.vstack([rows.T, levels / unit])
    target = np.zeros(len(system))
    target[-1] = 1
    solution, _ = nnls(system, target, maxiter=100 * system.shape[1])
    residual = target - system @ solution
    if np.linalg.norm(residual) < 1e-7:
        return None
    return -unit * residual[:-1] / residual[-1]


def enumerated_reference(weight, rhs, k):
    """The best KKT point over every possible set of active constraints."""
    rows, levels = constraints(weight, rhs, k)
    best = np.zeros(rows.shape[1]) if levels.max() <= 0 else None
    for size in range(1, len(rows) + 1):
        for active in itertools.combinations(range(len(rows)), size):
            part = rows[list(active)]
            shift = np.linalg.pinv(part) @ levels[list(active)]
            holds = (rows @ shift >= levels - 1e-9).all()
            if holds and (best is None or np.linalg.norm(shift) < np.linalg.norm(best)):
                best = shift
    return best


def assert_optimal(weight, rhs, solution):
    """Checks feasibility, signs, complementarity and stationarity from the definitions alone."""
    assert float(solution.kkt_residual.max()) <= 1e-8
    for k in torch.nonzero(solution.feasible).flatten().tolist():
        rows, levels = constraints(weight, rhs, k)
        others = [j for j in range(len(weight)) if j != k]
        shift, forces = solution.shifts[k].numpy(), solution.multipliers[k, others].numpy()
        scale = np.linalg.norm(rows, axis=1).max() * max(np.linalg.norm(shift), 1e-300)
        slack = rows @ shift - levels
        assert slack.min() >= -1e-7 * scale - 1e-12
        assert forces.min() >= 0
        assert np.abs(forces * slack).max() <= 1e-7 * max(float(shift @ shift), 1e-12)
        np.testing.assert_allclose(forces @ rows, shift, rtol=1e-7, atol=1e-9 + 1e-7 * scale)


@pytest.mark.parametrize(
    ("classes", "features"),
    [
        (2, 1),
        (2, 50),
        (3, 2),
        (10, 64),
        (10, 9),
        (10, 6),
        (43, 128),
        (43, 20),
        (200, 256),
        (200, 64),
    ],
)
def test_agrees_with_non_negative_least_squares(classes, features):
    weight, _, logits = random_problem(classes, features, seed=classes + features, bias=1.0)
    rhs = right_hand_sides(logits)
    solution = solve_minimal_shifts(weight, rhs)
    assert_optimal(weight, rhs, solution)
    for k in range(0, classes, max(1, classes // 12)):
        reference = least_distance_reference(weight, rhs, k)
        assert bool(solution.feasible[k]) == (reference is not None)
        if reference is not None:
            np.testing.assert_allclose(
                solution.shifts[k].numpy(), reference, atol=1e-8 * np.linalg.norm(reference)
            )


@pytest.mark.parametrize("features", [1200, 300])
def test_agrees_with_non_negative_least_squares_at_a_thousand_classes(features):
    weight, _, logits = random_problem(1000, features, seed=1, samples=400)
    rhs = right_hand_sides(logits, conditional=True)
    solution = solve_minimal_shifts(weight, rhs)
    assert solution.feasible.all()
    assert float(solution.kkt_residual.max()) < 1e-10
    for k in (0, 517, 999):
        reference = least_distance_reference(weight, rhs, k)
        error = np.linalg.norm(solution.shifts[k].numpy() - reference)
        assert error <= 1e-8 * np.linalg.norm(reference)


@pytest.mark.parametrize(("classes", "features"), [(5, 12), (20, 40), (20, 10)])
def test_agrees_with_a_quadratic_programming_package(classes, features):
    quadprog = pytest.importorskip("quadprog")
    weight, _, logits = random_problem(classes, features, seed=8)
    rhs = right_hand_sides(logits)
    solution = solve_minimal_shifts(weight, rhs)
    assert solution.feasible.all()
    for k in range(classes):
        rows, levels = constraints(weight, rhs, k)
        shift = quadprog.solve_qp(np.eye(features), np.zeros(features), rows.T, levels)[0]
        np.testing.assert_allclose(solution.shifts[k].numpy(), shift, rtol=1e-7, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 4),
    features=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_agrees_with_trying_every_active_set(classes, features, seed, data):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    entries = st.integers(-40, 40)
    rhs = data.draw(st.lists(entries, min_size=classes**2, max_size=classes**2))
    rhs = torch.tensor(rhs, dtype=torch.float64).reshape(classes, classes) / 8
    solution = solve_minimal_shifts(weight, rhs)
    for k in range(classes):
        reference = enumerated_reference(weight, rhs, k)
        if bool(solution.feasible[k]):
            size = max(1.0, np.linalg.norm(reference))
            np.testing.assert_allclose(solution.shifts[k].numpy(), reference, atol=1e-6 * size)
        elif reference is not None:
            # Reachable on paper, at a length that the certificate rules out for practice.
            assert np.linalg.norm(reference) > 1e3


def test_two_classes_have_the_closed_form():
    weight, _, logits = random_problem(2, 30, seed=3)
    rhs = right_hand_sides(logits)
    solution = solve_minimal_shifts(weight, rhs)
    normal = (weight[0] - weight[1]).double()
    assert torch.allclose(solution.shifts[0], normal * rhs[0, 1] / normal.square().sum())
    assert torch.allclose(solution.shifts[1], -normal * rhs[1, 0] / normal.square().sum())


def test_with_every_constraint_active_it_is_the_pseudoinverse():
    # Orthogonal rows and equal levels: all constraints are met with equality.
    weight = torch.eye(6, 40) * 2
    rhs = torch.full((6, 6), 3.0).fill_diagonal_(0)
    solution = solve_minimal_shifts(weight, rhs)
    centred = weight.double() - weight.double().mean(dim=0)
    expected = -rhs.double() @ torch.linalg.pinv(centred).T
    assert torch.allclose(solution.shifts, expected, atol=1e-12)
    others = ~torch.eye(6, dtype=torch.bool)
    assert (solution.multipliers[others] > 0).all()
    assert (solution.multipliers.diagonal() == 0).all()


def test_a_shift_carries_every_reference_sample_into_its_class():
    weight, _, logits = random_problem(30, 60, seed=9, bias=2.0)
    solution = solve_minimal_shifts(weight, right_hand_sides(logits))
    moved = logits.double()[None] + (solution.shifts @ weight.double().T)[:, None, :]
    best = moved.amax(dim=2)
    for k in range(30):
        assert (moved[k, :, k] >= best[k] - 2e-3).all()
    # And nothing shorter does: a hundredth less leaves at least one sample behind.
    shorter = logits.double()[None] + 0.99 * (solution.shifts @ weight.double().T)[:, None, :]
    for k in range(30):
        assert (shorter[k, :, k] < shorter[k].amax(dim=1)).any()


def test_a_class_that_already_wins_everywhere_needs_no_shift():
    weight, _, logits = random_problem(8, 20, seed=4)
    logits[:, 5] += 1000
    solution = solve_minimal_shifts(weight, right_hand_sides(logits))
    assert float(solution.norms[5]) == 0
    assert float(solution.kkt_residual[5]) == 0
    assert bool(solution.feasible[5])


@pytest.mark.parametrize("factor", [1e-6, 1e6, 1e30])
def test_the_scale_of_the_weights_does_not_matter(factor):
    weight, _, logits = random_problem(12, 30, seed=5)
    plain = solve_minimal_shifts(weight, right_hand_sides(logits))
    scaled = solve_minimal_shifts(weight * factor, right_hand_sides(logits * factor))
    assert torch.allclose(plain.shifts, scaled.shifts, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain.norms.argsort(), scaled.norms.argsort())


def test_a_common_row_in_every_class_does_not_matter():
    weight, _, logits = random_problem(12, 30, seed=5)
    rhs = right_hand_sides(logits)
    plain = solve_minimal_shifts(weight.double(), rhs)
    moved = solve_minimal_shifts(weight.double() + 100 * torch.ones(30), rhs)
    assert torch.allclose(plain.shifts, moved.shifts, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("features", [40, 8])
def test_renumbering_the_classes_renumbers_the_answers(features):
    weight, _, logits = random_problem(20, features, seed=6)
    rhs = right_hand_sides(logits)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    plain = solve_minimal_shifts(weight, rhs)
    renumbered = solve_minimal_shifts(weight[order], rhs[order][:, order])
    assert torch.allclose(plain.shifts[order], renumbered.shifts, atol=1e-8)
    assert torch.equal(plain.feasible[order], renumbered.feasible)


def test_the_same_input_gives_the_same_bits():
    weight, _, logits = random_problem(30, 20, seed=7)
    first = solve_minimal_shifts(weight, right_hand_sides(logits))
    second = solve_minimal_shifts(weight, right_hand_sides(logits))
    assert torch.equal(first.shifts, second.shifts)


def test_rivals_with_equal_rows_are_one_constraint():
    weight, inputs, _ = random_problem(12, 30, seed=10)
    weight[7] = weight[2]
    bias = torch.zeros(12)
    bias[7] = -1.0
    rhs = right_hand_sides(inputs @ weight.T + bias)
    solution = solve_minimal_shifts(weight, rhs)
    assert_optimal(weight, rhs, solution)
    for k in (0, 5, 11):
        reference = least_distance_reference(weight, rhs, k)
        assert np.allclose(solution.shifts[k].numpy(), reference, atol=1e-9)
    # The one with the smaller bias can never overtake its twin; the other has nothing to fear.
    assert solution.softened_classes == (7,)
    assert solution.softened
    assert bool(solution.feasible[2])


def test_equal_rows_and_biases_are_a_tie_and_not_infeasible():
    weight, inputs, _ = random_problem(9, 30, seed=11)
    weight[3] = weight[4] = 0
    logits = inputs @ weight.T
    # Different kernels may round the two columns differently.
    logits[:, 3] += 1e-7
    solution = solve_minimal_shifts(weight, right_hand_sides(logits))
    assert solution.feasible.all()
    assert torch.allclose(solution.shifts[3], solution.shifts[4], atol=1e-5)


def test_all_rows_equal_is_answered():
    weight = torch.ones(4, 6)
    none = solve_minimal_shifts(weight, torch.zeros(4, 4))
    assert none.feasible.all()
    assert (none.norms == 0).all()
    rhs = torch.tensor([[0.0, 1, 1, 1], [-1, 0, 1, 1], [-1, -1, 0, 1], [-1, -1, -1, 0]])
    some = solve_minimal_shifts(weight, rhs)
    assert some.softened_classes == (0, 1, 2)
    assert torch.isinf(some.norms[:3]).all()


def assert_certified(weight, rhs, solution, k):
    """The certificate rules out every shift up to 10,000 times the longest single demand."""
    rows, levels = constraints(weight, rhs, k)
    combination = np.delete(solution.certificates[k].numpy(), k)
    assert combination.min() >= 0
    np.testing.assert_allclose(combination @ levels, 1, rtol=1e-9)
    lengths = np.linalg.norm(rows, axis=1)
    longest = (levels / np.where(lengths > 0, lengths, np.inf)).max()
    assert np.linalg.norm(combination @ rows) * 0.999e4 * longest <= 1
    assert torch.isinf(solution.norms[k])
    assert torch.isfinite(solution.shifts[k]).all()


@settings(max_examples=25, deadline=None)
@given(
    classes=st.integers(4, 30),
    features=st.integers(2, 40),
    seed=st.integers(0, 10**6),
    mixed=st.integers(2, 3),
)
def test_a_row_inside_the_hull_of_the_others_is_certified_infeasible(
    classes, features, seed, mixed
):
    weight, inputs, _ = random_problem(classes, features, seed=seed, samples=40)
    weight = weight.double()
    shares = torch.rand(mixed, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shares = (shares + 0.1) / (shares + 0.1).sum()
    weight[0] = shares @ weight[1 : 1 + mixed]
    logits = inputs.double() @ weight.T
    logits[:, 0] -= 1.0
    rhs = right_hand_sides(logits)
    solution = solve_minimal_shifts(weight, rhs)
    assert not bool(solution.feasible[0])
    for k in solution.softened_classes:
        assert_certified(weight, rhs, solution, k)
    assert_optimal(weight, rhs, solution)


def test_softened_shifts_are_optimal_and_follow_rho():
    weight, inputs, _ = random_problem(15, 30, seed=12)
    weight[0] = weight[1:5].mean(dim=0)
    rhs = right_hand_sides(inputs @ weight.T - torch.eye(15)[0])
    rows, levels = constraints(weight, rhs, 0)
    lengths = np.linalg.norm(rows, axis=1)
    rows, levels = rows / lengths[:, None], levels / lengths

    def objective(shift, rho):
        return shift @ shift / 2 + rho / 2 * np.square(np.maximum(levels - rows @ shift, 0)).sum()

    left = []
    noise = np.random.default_rng(0)
    for rho in (1.0, 100.0, 1e4):
        solution = solve_minimal_shifts(weight, rhs, softening=rho)
        assert solution.softened_classes == (0,)
        assert float(solution.kkt_residual.max()) <= 1e-8
        shift = solution.shifts[0].numpy()
        gradient = shift - rho * np.maximum(levels - rows @ shift, 0) @ rows
        assert np.linalg.norm(gradient) <= 1e-7 * np.linalg.norm(shift)
        for _ in range(20):
            nearby = shift + 1e-3 * noise.standard_normal(30)
            assert objective(shift, rho) <= objective(nearby, rho)
        assert float(solution.violations[0]) > 0
        left.append(np.square(np.maximum(levels - rows @ shift, 0)).sum())
    assert left[0] > left[1] > left[2] > 0


def test_a_softened_class_leaves_the_others_exact():
    weight, inputs, _ = random_problem(15, 30, seed=12)
    weight[0] = weight[1:5].mean(dim=0)
    rhs = right_hand_sides(inputs @ weight.T)
    solution = solve_minimal_shifts(weight, rhs)
    for k in range(1, 15):
        reference = least_distance_reference(weight, rhs, k)
        assert np.allclose(solution.shifts[k].numpy(), reference, atol=1e-8)
        assert float(solution.violations[k]) < 1e-10


def test_more_classes_than_features_are_solved_one_by_one_and_agree():
    weight, _, logits = random_problem(60, 6, seed=13)
    rhs = right_hand_sides(logits)
    solution = solve_minimal_shifts(weight, rhs)
    assert solution.alone > 0
    assert_optimal(weight, rhs, solution)
    for k in range(60):
        assert bool(solution.feasible[k]) == (least_distance_reference(weight, rhs, k) is not None)
        if not solution.feasible[k]:
            assert_certified(weight, rhs, solution, k)


@pytest.mark.parametrize("spread", [1e-1, 1e-4])
def test_families_of_nearly_equal_rows(spread):
    generator = torch.Generator().manual_seed(14)
    families = torch.randn(5, 64, generator=generator).repeat_interleave(8, 0)
    weight = families + spread * torch.randn(40, 64, generator=generator)
    inputs = torch.randn(100, 64, generator=generator).relu().double()
    rhs = right_hand_sides(inputs @ weight.double().T)
    solution = solve_minimal_shifts(weight, rhs)
    for k in (0, 19, 39):
        reference = least_distance_reference(weight, rhs, k)
        error = np.linalg.norm(solution.shifts[k].numpy() - reference)
        assert error <= 1e-6 * np.linalg.norm(reference)


def test_the_callers_tensors_are_left_alone():
    weight, _, logits = random_problem(10, 20, seed=15)
    rhs = right_hand_sides(logits)
    weight.requires_grad_()
    before, rhs_before = weight.detach().clone(), rhs.clone()
    solution = solve_minimal_shifts(weight, rhs)
    assert not solution.shifts.requires_grad
    assert torch.equal(weight.detach(), before)
    assert torch.equal(rhs, rhs_before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_an_accelerator_gives_the_same_shifts():
    weight, _, logits = random_problem(50, 20, seed=16)
    rhs = right_hand_sides(logits)
    there = solve_minimal_shifts(weight.cuda(), right_hand_sides(logits.cuda()))
    assert there.shifts.device.type == "cuda"
    assert torch.allclose(there.shifts.cpu(), solve_minimal_shifts(weight, rhs).shifts, atol=1e-8)


@pytest.mark.parametrize(
    ("weight", "rhs", "says"),
    [
        (torch.zeros(5), torch.zeros(5, 5), r"shape \(5,\)"),
        (torch.zeros(1, 5), torch.zeros(1, 1), "two classes"),
        (torch.zeros(3, 5), torch.zeros(3, 4), "each of the 3 classes"),
        (torch.full((3, 5), torch.nan), torch.zeros(3, 3), "15 NaN or infinite"),
        (torch.zeros(3, 5), torch.full((3, 3), torch.inf), "right-hand sides contains 9"),
    ],
)
def test_unusable_input_is_refused_with_a_reason(weight, rhs, says):
    with pytest.raises(InputError, match=says):
        solve_minimal_shifts(weight, rhs)


def test_a_residual_above_the_tolerance_is_an_error_and_not_a_result():
    weight, _, logits = random_problem(10, 20, seed=17)
    with pytest.raises(InputError, match="expected 1e-30"):
        solve_minimal_shifts(weight, right_hand_sides(logits), tolerance=1e-30)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("aisb_cifar10_clean", "fc2"),
        ("akamaster_cifar10_resnet20_clean", "linear"),
        ("ibau_cifar10_badnets", "classifier"),
        ("ibau_cifar10_trojan_wm", "classifier"),
        ("ibau_gtsrb_badnets", "classifier"),
        ("nad_cifar10_grid", "fc"),
    ],
)
def test_real_heads_agree_with_non_negative_least_squares(data_folder, model, layer):
    state = safetensors.torch.load_file(data_folder / "models" / model / "model.safetensors")
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, weight.shape[1], generator=generator).relu()
    rhs = right_hand_sides(inputs @ weight.T + bias)
    solution = solve_minimal_shifts(weight, rhs)
    assert_optimal(weight, rhs, solution)
    for k in range(0, len(weight), 3):
        reference = least_distance_reference(weight, rhs, k)
        error = np.linalg.norm(solution.shifts[k].numpy() - reference)
        assert error <= 1e-8 * np.linalg.norm(reference)
