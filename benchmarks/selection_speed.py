"""Time of choosing channels from Gram matrices against choosing from the samples, in the same run.

    python -m benchmarks.selection_speed [--threads 1] [--rounds 3] [--only NAME ...]

greedy      ThiNet's greedy choice, 256 of 512 channels, 100 000 samples. Theirs: equation 6 anew for each candidate,
            with the sum over what is already removed kept ("cached"), or as algorithm 1 is written, summing over all of
            it again ("literal", extrapolated from single candidates at nine sizes of what is removed).
lasso       256 of 512 channels by the LASSO, 20 000 samples. Theirs: bisection on lambda with scikit-learn's Lasso on
            the samples, each fit started from the last, until exactly 256 coefficients are not zero, at most 20 fits;
            then the same with the Gram matrix given to it, which is not counted.
lasso_1x1   The same where a layer is given, 512 -> 512, and its inputs at 400 positions (the subset that He et al. fit
lasso_3x3   on). Each output at each position is a sample, so theirs has 204 800 (forming them is not counted), while
            ours forms the Gram matrix from inputs and weights without them.
group_obs   group-OBS scores of every channel and every filter of a 3x3 convolution, 512 -> 512, second moments given.

The Gram matrix is ours to make where it is not said otherwise, and everything is float64. Times are CPU seconds, over
all threads, so that other work on the machine hardly counts; ours is the best of the rounds, theirs runs once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RESULTS = Path(__file__).with_name("results") / "selection_speed.json"
CHANNELS, REMOVED = 512, 256


def samples(count: int, channels: int, seed: int = 0) -> Tensor:
    """Return (count, channels) correlated contributions of unlike energy."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64) / channels**0.5
    energy = 0.1 + torch.rand(channels, generator=generator, dtype=torch.float64)
    return (own + own @ mixing) * energy


def timed(work: Callable[[], Any], rounds: int = 1) -> tuple[float, Any]:
    """Return the CPU seconds of the fastest round, and what came out."""
    best, out = float("inf"), None
    for _ in range(rounds):
        started = time.process_time()
        out = work()
        best = min(best, time.process_time() - started)
    return best, out


# -- greedy ---------------------------------------------------------------------------------------------------------


def cached_greedy(columns: np.ndarray, count: int) -> list[int]:
    """Evaluate equation 6 for every candidate at every step; `columns` is (channels, samples)."""
    total, left, gone = np.zeros(columns.shape[1]), list(range(len(columns))), []
    buffer = np.empty_like(total)
    for _ in range(count):
        values = []
        for channel in left:
            np.add(total, columns[channel], out=buffer)
            values.append(buffer @ buffer)
        gone.append(left.pop(int(np.argmin(values))))
        total += columns[gone[-1]]
    return gone


def literal_greedy_seconds(columns: np.ndarray, order: list[int]) -> float:
    """Extrapolate the time where each candidate's sum is formed anew from single candidates at nine sizes of T."""
    sizes = np.linspace(0, len(order) - 1, 9).astype(int)
    cost = []
    for size in sizes:
        chosen = [*order[:size], order[-1]]

        def candidate(chosen: list[int] = chosen) -> float:
            total = np.zeros(columns.shape[1])
            for channel in chosen:
                total += columns[channel]
            return float(total @ total)

        cost.append(timed(candidate, 2)[0])
    steps = np.arange(len(order))
    return float((np.interp(steps, sizes, cost) * (len(columns) - steps)).sum())


def greedy(rounds: int) -> dict[str, Any]:
    from secateur.methods.thinet import greedy_removal

    x = samples(100_000, CHANNELS)
    gram_s, gram = timed(partial(torch.matmul, x.T, x), rounds)
    loop_s, order = timed(lambda: greedy_removal(gram, REMOVED), rounds)
    columns = np.ascontiguousarray(x.T.numpy())
    del x
    cached_s, theirs = timed(lambda: cached_greedy(columns, REMOVED))
    literal_s = literal_greedy_seconds(columns, order)
    return {
        "samples": columns.shape[1],
        "channels": CHANNELS,
        "removed": REMOVED,
        "same_channels_in_same_order": theirs == order,
        "gram_s": gram_s,
        "choice_s": loop_s,
        "cached_s": cached_s,
        "literal_s": literal_s,
        "literal_is_extrapolated": True,
        "cached_over_choice": cached_s / loop_s,
        "cached_over_gram_and_choice": cached_s / (gram_s + loop_s),
        "literal_over_choice": literal_s / loop_s,
        "literal_over_gram_and_choice": literal_s / (gram_s + loop_s),
    }


# -- lasso ----------------------------------------------------------------------------------------------------------


def bisect(x: np.ndarray, y: np.ndarray, count: int, **how: Any) -> tuple[set[int], int, bool]:
    """Return the support, after how many fits, and whether one had the count: after 20 the nearest above, cut to it.

    `how` goes to scikit-learn's Lasso.
    """
    from sklearn.linear_model import Lasso

    low, high = 0.0, float(np.abs(x.T @ y).max() / len(x))
    model, above = Lasso(fit_intercept=False, warm_start=True, **how), np.zeros(x.shape[1])
    for fits in range(1, 21):
        middle = (low + high) / 2
        model.set_params(alpha=middle).fit(x, y)
        found = np.count_nonzero(model.coef_)
        if found == count:
            return set(np.flatnonzero(model.coef_).tolist()), fits, True
        if found > count:
            low, above = middle, np.abs(model.coef_)
        else:
            high = middle
    return set(np.argsort(-above, kind="stable")[:count].tolist()), fits, False


def lasso(rounds: int) -> dict[str, Any]:
    """Samples given: (20 000, 512) contributions."""
    z = samples(20_000, CHANNELS)
    y = z.sum(dim=1)
    gram_s, gram = timed(lambda: z.T @ z, rounds)
    target_s, target = timed(lambda: z.T @ y, rounds)
    row = against_bisection(z, y, gram, target, gram_s + target_s, rounds)
    x, wanted, given = np.asfortranarray(z.numpy()), y.numpy(), gram.numpy()
    seconds, (_, fits, _) = timed(lambda: bisect(x, wanted, CHANNELS - REMOVED, precompute=given))
    row |= {"bisection_with_gram_given_s": seconds, "bisection_with_gram_given_fits": fits}
    return row | {"bisection_with_gram_given_over_path": seconds / row["path_s"]}


def lasso_layer(rounds: int, taps: int) -> dict[str, Any]:
    """A layer given: inputs at 400 positions and a weight with 512 outputs, so 204 800 samples of 512 contributions."""
    from secateur.recovery.moments import channel_gram

    x = samples(400, CHANNELS * taps).relu()
    weight = torch.randn(CHANNELS, CHANNELS * taps, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    channel = torch.arange(CHANNELS).repeat_interleave(taps)[None]
    gram_s, gram = timed(lambda: channel_gram(x[None], weight[None], channel, CHANNELS), rounds)
    parts = [x[:, c * taps :][:, :taps] @ weight[:, c * taps :][:, :taps].T for c in range(CHANNELS)]
    z = torch.stack([part.flatten() for part in parts]).T  # (positions * outputs, channels)
    del parts
    return against_bisection(z, z.sum(dim=1), gram, gram.sum(dim=1), gram_s, rounds)


def against_bisection(z: Tensor, y: Tensor, gram: Tensor, target: Tensor, gram_s: float, rounds: int) -> dict[str, Any]:
    from secateur.methods._lasso import lasso_support

    lasso_support(torch.eye(3), torch.ones(3), 1)  # the import of scikit-learn is no part of it
    path_s, (kept, _) = timed(lambda: lasso_support(gram, target, CHANNELS - REMOVED), rounds)
    x, wanted = np.asfortranarray(z.numpy()), y.numpy()
    samples_s, (theirs, fits, is_exact) = timed(lambda: bisect(x, wanted, len(kept)))
    return {
        "samples": len(x),
        "channels": CHANNELS,
        "kept": len(kept),
        "gram_s": gram_s,
        "path_s": path_s,
        "bisection_s": samples_s,
        "bisection_fits": fits,
        "bisection_met_the_count": is_exact,
        "channels_in_common": len(theirs & set(kept)),
        "bisection_over_gram_and_path": samples_s / (gram_s + path_s),
    }


# -- group OBS: from another module; left out where that is not there ------------------------------------------------


def group_obs(rounds: int) -> dict[str, Any] | None:
    if importlib.util.find_spec("secateur.methods.influence") is None:
        return None
    from secateur.methods.influence import channel_obs_scores, filter_obs_scores

    taps = 9
    inputs = samples(8192, CHANNELS * taps)
    second = inputs.T @ inputs / len(inputs)
    gradients = samples(2048, CHANNELS, seed=1)
    slopes = gradients.T @ gradients / len(gradients)
    del inputs
    weight = torch.randn(CHANNELS, CHANNELS * taps, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    columns = torch.arange(CHANNELS * taps).view(CHANNELS, taps)
    channels_s, _ = timed(lambda: channel_obs_scores(weight, second, slopes, columns=columns, damping=0.01), rounds)
    filters_s, _ = timed(lambda: filter_obs_scores(weight, second, slopes, damping=0.01), rounds)
    return {"weight": [CHANNELS, CHANNELS, 3, 3], "input_channels_s": channels_s, "filters_s": filters_s}


ROWS: dict[str, Callable[[int], dict[str, Any] | None]] = {
    "greedy": greedy,
    "lasso": lasso,
    "lasso_1x1": partial(lasso_layer, taps=1),
    "lasso_3x3": partial(lasso_layer, taps=9),
    "group_obs": group_obs,
}


def main() -> None:
    import sklearn
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.selection_speed --threads {options.threads} --rounds {options.rounds}",
        "threads": options.threads,
        "rounds": options.rounds,
        "dtype": "float64",
        "seconds": "CPU time of all threads",
        "torch": torch.__version__,
        "scikit_learn": sklearn.__version__,
    }
    with threadpool_limits(options.threads):
        for name in options.only:
            row = ROWS[name](options.rounds)
            print(name, row, flush=True)
            if row is not None:
                found[name] = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
