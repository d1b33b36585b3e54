"""The table of rules of what does not go together: each pair of words, walked."""

from __future__ import annotations

import itertools

import pytest
import torch

from mtlkernels import SI, GradDrop, PCGrad
from mtlkernels.engine.options import Options
from mtlkernels.engine.rules import RULES, Rule, refuse
from mtlkernels.methods.wrappers.reused import Reused

PARAM = torch.nn.Parameter(torch.ones(2))
GIVEN = {
    "shared": {"shared": [PARAM]},
    "weight_heads": {"weight_heads": True},
    "parts": {"parts": [[PARAM]]},
    "measure": {"measure": [PARAM]},
    "apply": {"apply": "backward"},
    "collect": {"collect": "batched"},
    "ghost": {"collect": "ghost"},
    "rows_dtype": {"rows_dtype": torch.bfloat16},
    "features": {},
}
METHODS = {
    "loss method": SI(),
    "row method": GradDrop(),
    "every": Reused(PCGrad(), 2),
    "Gram method": PCGrad(),
}
CONTEXTS = sorted(
    {word for rule in RULES for word in rule.those}
    - set(GIVEN)
    - set(METHODS)
    - {"no weights", "weights by part"}
)
CASES = [(rule, *pair) for rule in RULES for pair in itertools.product(rule.these, rule.those)]


def broken(words: set[str]) -> Rule | None:
    """The first rule in the table that some words break, said once more and plainly."""
    for rule in RULES:
        if words & set(rule.these) and words & set(rule.those):
            return rule
    return None


@pytest.mark.parametrize(
    ("rule", "this", "that"), CASES, ids=[f"{this} x {that}" for _, this, that in CASES]
)
def test_each_pair_of_a_rule_raises_its_sentence(rule: Rule, this: str, that: str) -> None:
    first = broken({this, that})
    assert first is not None
    with pytest.raises(first.error) as raised:
        refuse({this, that}, PCGrad())
    said = str(raised.value)
    option = next(word for word in first.these if word in {this, that})
    option = "collect" if option == "ghost" else option
    assert said == first.message.format(option=option, method="PCGrad")
    assert "{" not in said
    assert first is rule


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", [*itertools.combinations(GIVEN, 2)], ids=" x ".join)
def test_two_options_and_a_method_follow_the_table(pair: tuple[str, str], method: str) -> None:
    if set(pair) == {"collect", "ghost"}:
        return  # two values of one option
    asked = Options(**{k: v for word in pair for k, v in GIVEN[word].items()})
    features, of = "features" in pair, METHODS[method]
    words = asked.words(of, features)
    assert set(pair) <= words
    rule = broken(words)
    if rule is None:
        asked.check(of, features)
        return
    with pytest.raises(rule.error):
        asked.check(of, features)


def test_a_way_over_ranks_is_asked_about_alone() -> None:
    """Rules of options among themselves are for `Options.check`, which comes first."""
    words = {"weight_heads", "weights by part"}
    for context in CONTEXTS:
        refuse(words, PCGrad(), context)
    with pytest.raises(ValueError, match="one a task and part"):
        refuse(words, PCGrad())


def test_no_rule_is_there_twice() -> None:
    pairs = [pair for rule in RULES for pair in itertools.product(rule.these, rule.those)]
    assert len(pairs) == len(set(pairs))
