"""Routers as they are written in PyTorch, the control of benches/router_speed.rs.

`python3 benches/torch_routers.py FOLDER` answers requests, one a line, `ROUTER FILE T E k WARM_UP
REPEATS`. FILE in FOLDER holds f32 scores [T, E]. The answer is one line with the times of the
repeats in ms on two threads; before it, the choices as i32 [T, k] and the prices as f32 [E] go to
`choices` and `prices` in FOLDER.
"""

import os
import sys
import time

import torch

torch.set_num_threads(2)


def top_k(scores, k):
    return torch.topk(scores, k, dim=1).indices, torch.zeros(scores.shape[1])


def sinkhorn(scores, k, iterations=8):
    """Top-k of the soft plan with even marginals at unit temperature, without a stop test."""
    tokens, experts = scores.shape
    kernel = torch.exp(scores)
    of_expert = torch.ones(experts)
    for _ in range(iterations):
        of_token = 1 / (tokens * (kernel @ of_expert) + 1e-8)
        of_expert = 1 / (experts * (kernel.t() @ of_token) + 1e-8)
    # A factor of a token changes no choice of it.
    return torch.topk(kernel * of_expert, k, dim=1).indices, -torch.log(of_expert)


def quantile_balancing(scores, k, sweeps=16):
    """Each price is the value that fills its expert, each token's the one that fills the token."""
    tokens, experts = scores.shape
    fair_share = tokens * k // experts
    # Selecting within rows is faster than within columns.
    by_expert = scores.t().contiguous()
    prices = torch.zeros(experts)
    for _ in range(sweeps):
        of_token = torch.topk(scores - prices, k + 1, dim=1, sorted=False).values.amin(dim=1)
        left = by_expert - of_token
        prices = torch.topk(left, fair_share + 1, dim=1, sorted=False).values.amin(dim=1)
    return torch.topk(scores - prices, k, dim=1).indices, prices


def sign_bias(scores, k, steps=100, step=1e-3):
    """The bias rises where the load is below the mean and falls where it is above."""
    tokens, experts = scores.shape
    bias = torch.zeros(experts)
    for _ in range(steps):
        choices = torch.topk(scores + bias, k, dim=1, sorted=False).indices
        loads = torch.bincount(choices.view(-1), minlength=experts)
        bias += step * torch.sign(tokens * k / experts - loads)
    return torch.topk(scores + bias, k, dim=1).indices, -bias


ROUTERS = {f.__name__: f for f in (top_k, sinkhorn, quantile_balancing, sign_bias)}


def write(folder, name, dtype, values):
    shared = torch.from_file(
        os.path.join(folder, name), shared=True, size=values.numel(), dtype=dtype
    )
    shared.copy_(values.reshape(-1))


def main():
    folder = sys.argv[1]
    matrices = {}
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        name, file, *sizes = line.split()
        tokens, experts, k, warm_up, repeats = map(int, sizes)
        if file not in matrices:
            path = os.path.join(folder, file)
            flat = torch.from_file(path, size=tokens * experts, dtype=torch.float32)
            matrices[file] = flat.clone().view(tokens, experts)
        scores = matrices[file]
        times_ms = []
        with torch.inference_mode():
            for _ in range(warm_up + repeats):
                start = time.perf_counter()
                choices, prices = ROUTERS[name](scores, k)
                times_ms.append(1e3 * (time.perf_counter() - start))
            # No cost falls below zero, so neither do useful prices.
            write(folder, "choices", torch.int32, choices)
            write(folder, "prices", torch.float32, prices - prices.min())
        print(*times_ms[warm_up:], flush=True)


main()
