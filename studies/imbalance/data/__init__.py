"""The field's data sets, read from the layouts in which people have them.

Every data set is a `torch.utils.data.Dataset` of pairs `(inputs, targets)`, `targets` a dict with
one tensor a task, so the default collation makes batches of them; its `tasks` tell what to train
and measure on each. What is unknown says so in the
target itself, in one way for all sets, whatever the files do:

* a map of classes is int64 (H, W), and an unknown pixel holds -1, the `IGNORE` of `common`;
* every other map is float32 (C, H, W), and an unknown pixel holds NaN in all its channels;
* an attribute is a float32 scalar, 0 or 1.

The losses of `studies.imbalance.tasks` and the metrics of `studies.imbalance.metrics` expect just
that. A folder that is missing or broken raises `DataFolderError`: what is wrong, and the tree that
was expected.
"""
