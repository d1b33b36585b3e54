"""Everything that needs a GPU, in one prepared shot of a few minutes: tests, times, sanitizers.

`make gpu-prepare` builds, where there is a network and no GPU, what the check needs; with it
`make gpu-check` runs on a machine with a GPU and no network. Each stage is a process of its own
with a limit of its own, and what it finds is on the disk at once:

    results.jsonl   one line a fact, test (with its traceback) and timed row
    log.txt         what the stages print
    summary.md      the lines for people, written at the end

A stage that fails, hangs or is killed costs itself alone.
"""
