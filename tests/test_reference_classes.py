"""Which classes a dear witness looks at."""

import pytest

from bezoar.methods import TAC, Evidence, NeuralCleanse, SmoothPattern
from bezoar.reference_classes import DRAWN, MOST, PICKED, looked_at_some, narrowed


def evidence(p_values):
    blank = (0.0,) * len(p_values)
    return Evidence("hand", "Nothing", blank, blank, tuple(p_values), "none")


@pytest.mark.parametrize("dear", [NeuralCleanse(), SmoothPattern()])
def test_few_classes_are_all_looked_at(dear):
    assert narrowed(dear, [], MOST, seed=0) == dear


@pytest.mark.parametrize("dear", [NeuralCleanse(), SmoothPattern()])
def test_of_many_the_most_unusual_ones_and_some_drawn_ones_are(dear):
    p_values = [1.0] * 43
    for k in (41, 7, 19, 30):
        p_values[k] = 0.01
    chosen = narrowed(dear, [evidence(p_values)], 43, seed=0).classes
    assert len(set(chosen)) == PICKED + DRAWN and {41, 7, 19, 30} <= set(chosen)
    again = narrowed(dear, [evidence(p_values)], 43, seed=0).classes
    other = narrowed(dear, [evidence(p_values)], 43, seed=1).classes
    assert chosen == again and chosen != other and {41, 7, 19, 30} <= set(other)


def test_without_another_witness_all_are_drawn():
    assert len(narrowed(NeuralCleanse(), [], 200, seed=0).classes) == PICKED + DRAWN


def test_a_choice_of_the_user_and_other_witnesses_stay():
    mine = NeuralCleanse(classes=(1, 2, 3, 4))
    assert narrowed(mine, [], 43, seed=0) is mine
    assert narrowed(TAC(), [], 43, seed=0) == TAC()
    assert looked_at_some(mine, mine, 43, others=True) == [], "the user knows"
    assert looked_at_some(TAC(), TAC(), 43, others=True) == []


def test_a_narrowed_look_is_told():
    witness = NeuralCleanse()
    looking = narrowed(witness, [], 43, seed=0)
    assert looked_at_some(looking, witness, 43, others=False) == [
        "The witness neural-cleanse looked at 10 of the 43 classes: some drawn at random."
    ]
    (told,) = looked_at_some(looking, witness, 43, others=True)
    assert told.endswith("those that the others find most unusual, and some drawn at random.")
