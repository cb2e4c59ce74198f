from __future__ import annotations

from dataclasses import replace

import pytest

from itemwise.calibration.examples import Example
from itemwise.calibration.study import in_test_half, study
from itemwise.errors import LabelledSetError
from tests.calibration.synthetic import draw

PRIOR = (0.6, 0.1, -0.3, -0.4)


def test_calibration_makes_the_other_half_better() -> None:
    found = study({"choice": draw(2000, 2.5, PRIOR), "yes_no": draw(2000, 0.5, (0.5, -0.5))})
    for one in found.kinds.values():
        assert one.is_better
        assert one.num_fitted + one.before.measures.count == 2000
        assert one.after.measures.log_loss < one.before.measures.log_loss
        assert one.after.measures.ece < one.before.measures.ece
        assert one.after.measures.accuracy >= one.before.measures.accuracy  # the prior helps
    assert found.after.measures.count == sum(o.after.measures.count for o in found.kinds.values())
    assert set(found.calibrations()) == {"choice", "yes_no"}


def test_what_does_not_help_is_left_out() -> None:
    # The fitted half says the contrary of the tested half.
    examples = [
        one
        if in_test_half(one.group)
        else replace(one, logits=tuple(-logit for logit in one.logits))
        for one in draw(200, 1.0, (0.0, 0.0))
    ]
    found = study({"yes_no": examples})
    assert not found.kinds["yes_no"].is_better
    assert found.calibrations() == {}
    assert found.after == found.before


def test_halves_are_by_group_and_stay() -> None:
    halves = [in_test_half(f"request {number}") for number in range(1000)]
    assert 430 < sum(halves) < 570
    assert halves == [in_test_half(f"request {number}") for number in range(1000)]
    assert (in_test_half(""), in_test_half("a")) == (True, False)  # for ever


def test_test_half_has_no_influence_on_the_fit() -> None:
    examples = draw(400, 2.5, PRIOR)
    spoiled = [replace(one, answer=0) if in_test_half(one.group) else one for one in examples]
    once, again = study({"choice": examples}), study({"choice": spoiled})
    assert once.kinds["choice"].calibration == again.kinds["choice"].calibration
    assert once.kinds["choice"].after != again.kinds["choice"].after


def test_questions_with_one_option_say_nothing() -> None:
    examples = draw(100, 2.5, (0.0, 0.0))
    single = [Example(("A",), (0.0,), 0, f"single {number}") for number in range(100)]
    assert study({"choice": [*examples, *single]}) == study({"choice": examples})
    with pytest.raises(LabelledSetError, match="no questions with two or more options"):
        study({"choice": single})


def test_problems_of_all_types_are_told_together() -> None:
    always = [replace(one, answer=0) for one in draw(100, 1.0, PRIOR)]
    with pytest.raises(LabelledSetError) as told:
        study({"choice": always, "yes_no": draw(15), "score": draw(200, 1.0, PRIOR)})
    assert len(told.value.problems) == 2
    text = str(told.value)
    assert "all" in text
    assert "`choice` questions to fit is the one with label 'A'" in text
    assert "expected at least 20 of each" in text
