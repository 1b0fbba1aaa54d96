"""A seeded fuzzer of what sra2 reads: damaged inputs, each in a forked child, judged by rules.

    python tests/fuzz --seed 0 --each 5                       # five inputs of every kind
    python tests/fuzz --kind zip --number 17 --keep FOLDER    # one of them, kept to look at

An input is a function of (seed, kind, number). `kinds` is the table of kinds; `child` runs and
judges; `seeds` makes the small good inputs that are damaged.
"""
