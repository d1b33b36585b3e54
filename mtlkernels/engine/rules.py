"""Which options, methods and ways over ranks do not go together: one table of rules."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple


class Rule(NamedTuple):
    """Two groups of words: any of the first does not go with any of the second.

    Attributes:
        these, those: names of options, kinds of methods ("loss method"), ways over ranks
            ("shards"); see `Options.words`.
        message: what is wrong and what to do; {option} is the first of `these` that was given,
            {method} the name of the method's class.
        error: what is raised.
    """

    these: tuple[str, ...]
    those: tuple[str, ...]
    message: str
    error: type[Exception] = ValueError


_ANY = ("apply", "collect", "features", "measure", "parts", "rows_dtype", "shared", "weight_heads")
_NONE_STORED = ("measure", "features", "apply", "ghost")

RULES = (
    # Options and methods.
    Rule(
        *(_ANY, ("loss method",)),
        "{option}= does not apply to {method}: a loss method weighs whole losses, and so every "
        "parameter that they reach, heads too, in one backward",
    ),
    Rule(
        *(("weight_heads",), ("no weights",)),
        "weight_heads= does not apply to {method}: it has no weights, so heads get their own "
        "losses' gradients",
    ),
    Rule(
        *(("apply", "features", "measure", "parts", "rows_dtype", "ghost"), ("row method",)),
        "{option}= does not apply to {method}: it takes whole gradients as they are, not a Gram "
        "matrix",
    ),
    Rule(
        *(("parts",), ("every",)),
        "parts= needs a Gram matrix in each step, and {method} reuses weights: leave one out",
    ),
    # Options among themselves.
    Rule(
        *(("parts",), _NONE_STORED),
        "parts= needs the task gradients of each part: leave out measure=, features=, apply= and "
        'collect="ghost", which store none',
    ),
    Rule(
        *(("weight_heads",), ("weights by part",)),
        "weight_heads= needs one weight a task, and {method} has one a task and part: leave it out",
    ),
    Rule(
        *(("features",), ("measure",)),
        "features= and measure= both say what to measure on: choose one",
    ),
    Rule(
        *(("ghost",), ("apply",)),
        'collect="ghost" already takes one weighted backward: leave out apply="backward", which '
        "finds K in another way",
    ),
    Rule(
        *(("features", "measure"), ("collect",)),
        "collect= says how to compute the task gradients of the trunk, and {option}= computes "
        "none: leave one out",
    ),
    Rule(
        *(("rows_dtype",), _NONE_STORED),
        "rows_dtype= has no effect with measure=, features=, apply= or "
        'collect="ghost", which store no task gradients: leave it out',
    ),
    # Accumulation over micro-batches.
    Rule(
        *(("measure", "apply", "ghost"), ("accumulate",)),
        "accumulate= adds up the task gradients of micro-batches, and measure=, apply= or "
        'collect="ghost" stores none: leave it out, so that each micro-batch is weighed on its own',
    ),
    Rule(
        *(("loss method", "every"), ("accumulate",)),
        "accumulate= adds up the task gradients of micro-batches, and {method} stores none: leave "
        "it out, so that each micro-batch is weighed on its own",
    ),
    Rule(
        *(("rows_dtype",), ("accumulate",)),
        "accumulate= adds up task gradients, which 16 bits would round each time: leave out "
        "rows_dtype=",
    ),
    # Replicas.
    Rule(
        *(("apply",), ("replicas",)),
        'apply="backward" stores no task gradients, and over several ranks K needs their sums: '
        "leave it out, or give features= or measure=",
        NotImplementedError,
    ),
    Rule(
        *(("row method",), ("replicas of DTensors",)),
        "{method} takes whole gradients, and these parameters are pieces (DTensors): use a Gram or "
        "a loss method",
        NotImplementedError,
    ),
    Rule(
        *(("features", "measure", "apply", "every", "collect"), ("replicas of DTensors",)),
        "features=, measure=, apply=, every= and collect= look into a graph of plain tensors, and "
        "these parameters are DTensors: leave them out",
        NotImplementedError,
    ),
    Rule(
        *(("ghost",), ("a step of replicas",)),
        'collect="ghost" finds K of the gradients of one process, and of replicas K is of their '
        "sums over the ranks, which it never forms: leave collect= out",
        NotImplementedError,
    ),
    # Shards: fully_shard and tensor parallelism.
    Rule(
        *(("row method",), ("shards",)),
        "{method} takes whole gradients, and these parameters are pieces (DTensors): use a Gram or "
        "a loss method",
        NotImplementedError,
    ),
    Rule(
        *(("measure", "apply", "collect"), ("shards",)),
        "measure=, apply= and collect= look into a graph of plain tensors, and these parameters "
        "are DTensors: leave them out",
        NotImplementedError,
    ),
    Rule(
        *(("every of heads",), ("shards",)),
        "this method has weights of its own for heads, and a step of every= over DTensors is one "
        "backward of one weighted sum: leave every= out (NashMTL(max_norm=None) has the same "
        "weights for both)",
        NotImplementedError,
    ),
    Rule(
        *(("every, plain heads",), ("shards",)),
        "every= takes one backward of the weighted sum, and of DTensors all of it is weighted, "
        "heads too: say weight_heads=True, or leave it out",
        NotImplementedError,
    ),
    Rule(
        *(("rows_dtype",), ("shards",)),
        "rows_dtype= is for plain parameters: with fully_shard choose the dtypes in its "
        "MixedPrecisionPolicy",
        NotImplementedError,
    ),
    # Stages of a pipeline.
    Rule(
        *(("loss method",), ("stages",)),
        "{method} weighs losses, all of which the last stage has: call it there, and run the "
        "backward of what it returns through the pipeline as that of any loss",
        NotImplementedError,
    ),
    Rule(
        *(("row method",), ("stages",)),
        "{method} takes whole gradients, and a stage has some parameters': use a Gram method",
        NotImplementedError,
    ),
    Rule(
        *(("every",), ("stages",)),
        "every= takes one backward of the weighted sum, and with stages= backwards are the runs': "
        "weigh the losses there by the last report's weights, and leave it out",
        NotImplementedError,
    ),
    Rule(
        *(("measure", "apply", "collect", "rows_dtype"), ("stages",)),
        "measure=, apply=, collect= and rows_dtype= are for a graph from losses to parameters, and "
        "stages= takes what runs leave in .grad: leave them out",
        NotImplementedError,
    ),
)


def refuse(words: Set[str], method: object, context: str | None = None) -> None:
    """Raises the error of the first rule that is broken.

    Args:
        words: what is asked for; see `Options.words`.
        context: a word that holds too; then only the rules that name it are looked at.
    """
    held = words if context is None else words | {context}
    for rule in RULES:
        if context is not None and context not in rule.those:
            continue
        these = [word for word in rule.these if word in held]
        if these and not held.isdisjoint(rule.those):
            option = "collect" if these[0] == "ghost" else these[0]
            raise rule.error(rule.message.format(option=option, method=type(method).__name__))
