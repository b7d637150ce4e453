"""Writes what another library finds of the choices of `choice-task.tsv`.

    python tests/oracles/choice_task.py tests/oracles

Made with python 3.11, torch 2.15.0, transformers 5.23.0. `choice-task.json` holds, for each row, the sums of
ln p of the choices " door" and " went" after the row's sentence, by the shipped dense model in f32.
"""

import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

folder = pathlib.Path(sys.argv[1])
checkpoint = folder.parent.parent / "scenarios/models/books-dense"
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
rows = []
for line in (folder / "choice-task.tsv").read_text().splitlines()[1:]:
    sentence = line.split("\t")[0]
    sums = []
    for choice in [" door", " went"]:
        before = tokenizer.encode(sentence, add_special_tokens=False).ids
        ids = tokenizer.encode(sentence + choice, add_special_tokens=False).ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        log_p = torch.log_softmax(logits, -1)
        sums.append(sum(log_p[at - 1, ids[at]].item() for at in range(len(before), len(ids))))
    rows.append(sums)
(folder / "choice-task.json").write_text(json.dumps(rows, indent=1) + "\n")
