"""Forward pass of a dense transformer in PyTorch, the control of benches/forward.rs.

`python3 benches/torch_dense.py [REPEATS]` prints the median time in ms on two threads.
"""

import statistics
import sys
import time

import torch
from torch import nn

VOCABULARY, WIDTH, HEADS, HIDDEN, LAYERS = 1000, 256, 8, 1024, 2
WINDOWS, WINDOW = 8, 32
WARM_UP = 20

torch.set_num_threads(2)
torch.manual_seed(1)
layers = [nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True) for _ in range(LAYERS)]
model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *layers, nn.Linear(WIDTH, VOCABULARY)).eval()
tokens = torch.randint(0, VOCABULARY, (WINDOWS, WINDOW))
repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 200

times = []
with torch.inference_mode():
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        model(tokens)
        times.append(time.perf_counter() - start)
print(f"{1e3 * statistics.median(times[WARM_UP:]):.4f}")
