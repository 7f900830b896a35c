"""100,000 arguments for each elementary function, made of whole numbers, so that every machine makes the same."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from shared_features import elementary

Array = npt.NDArray[np.float64]


def _uniform(raw: npt.NDArray[np.uint64], low: float, high: float) -> Array:
    return low + (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53 * (high - low)


def _any_size(raw: npt.NDArray[np.uint64], low: int, high: int, signed: bool = True) -> Array:
    """Doubles of which each power of two from 2^low to 2^high is as likely as the next."""
    mantissa = 1 + (raw & np.uint64(2**52 - 1)).astype(np.float64) * 2.0**-52
    exponents = low + (raw >> np.uint64(53)).astype(np.int64) % (high - low)
    values: Array = np.ldexp(mantissa, exponents)
    return np.where((raw >> np.uint64(52)) & np.uint64(1), -values, values) if signed else values


def arguments(function: str, count: int = 100_000, seed: int = 1) -> tuple[Array, ...]:
    """The arguments of ``function``: half of them uniform where it is used, half of every size it takes."""
    raw = np.random.PCG64(seed).random_raw(2 * count)
    first, second = raw[: count // 2], raw[count // 2 : count]
    if function == "exp":
        return (np.concatenate([_uniform(first, -746, 710), _any_size(second, -60, 9)]),)
    if function == "log":
        return (np.concatenate([_uniform(first, 0.0, 4.0) + 2.0**-60, _any_size(second, -1074, 1024, signed=False)]),)
    if function == "log1p":
        tiny = _any_size(second, -300, 1023, signed=False)
        return (np.concatenate([_uniform(first, -1.0, 3.0), np.where(tiny < 0.5, -tiny, tiny)]),)
    if function == "power":
        base = np.concatenate([_uniform(first, 0.0, 4.0) + 2.0**-60, _any_size(second, -30, 30, signed=False)])
        exponent = _uniform(raw[count:], -20.0, 20.0)
        return base, np.where(raw[count:] & np.uint64(7), exponent, np.rint(exponent))
    if function in ("sin", "cos"):
        return (np.concatenate([_uniform(first, -7.0, 7.0), _any_size(second, -250, 28)]),)
    if function in ("sin_deg", "cos_deg"):
        return (np.concatenate([_uniform(first, -400.0, 400.0), _any_size(second, -250, 45)]),)
    if function in ("asin", "acos"):
        near_one = 1.0 - _any_size(second, -53, -1, signed=False)
        both = np.where(second & np.uint64(1), near_one, -near_one)
        return (np.concatenate([_uniform(first, -1.0, 1.0), np.where(second & np.uint64(2), both, 1.0 - abs(both))]),)
    if function == "atan":
        return (np.concatenate([_uniform(first, -2.0, 2.0), _any_size(second, -250, 100)]),)
    y = np.concatenate([_uniform(first, -1.0, 1.0), _any_size(second, -60, 60)])
    return y, np.concatenate(
        [_uniform(raw[count : count + count // 2], -1.0, 1.0), _any_size(raw[-(count // 2) :], -60, 60)]
    )


def result_hash(function: str) -> str:
    """A hash of the bits of the function's 100,000 results."""
    results = getattr(elementary, function)(*arguments(function))
    return hashlib.blake2b(results.astype("<f8").tobytes(), digest_size=8).hexdigest()
