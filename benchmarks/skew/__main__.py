"""``python -m benchmarks.skew``."""

from commands.bench_skew import skew

if __name__ == "__main__":
    skew(prog_name="python -m benchmarks.skew")
