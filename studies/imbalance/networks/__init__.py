"""The field's networks in plain torch: one encoder that all tasks share, one head a task.

An encoder maps inputs to features and tells `channels`, the number of them, and `last_layer()`, the
last module whose parameters all tasks share: where GradNorm and AvgNorm measure. `sharing` joins an
encoder and heads; `mtan` has attention between, and its own way of being joined.
"""
