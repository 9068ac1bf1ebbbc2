"""The shapes written in the signatures are true: beartype checks them at every call."""

import subprocess
import sys

# A process of its own, because the hook must be in place before attnlib is imported.
PROGRAM = """
import torch
from jaxtyping import install_import_hook
with install_import_hook("attnlib", "beartype.beartype"):
    import attnlib
from attnlib.conformance.trial import draw, takes
from attnlib.memory import empty_read, finish, merge, partial_read

for entry in attnlib.atlas.operators():
    for lead in ((), (2,), (3, 2), (2, 3, 2)):
        keys = 7 if entry.promises.cross else 5
        inputs = draw(5, keys, lead=lead)
        options = {"is_causal": True, "attn_mask": torch.ones(5, keys, dtype=torch.bool)}
        options = {name: given for name, given in options.items() if takes(entry.function, name)}
        further = {} if entry.promises.arguments is None else entry.promises.arguments(*inputs)
        assert entry(*inputs, **further, **options).shape == (*lead, 5, 3)
mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
attnlib.attend(*draw(5, 7), attn_mask=mask, return_weights=True)
grouped = draw(5, 7, lead=(2, 6), key_lead=(2, 2))
attnlib.softmax_attention(*grouped, enable_gqa=True)
read, cache = attnlib.softmax_attention_step(None, *draw(1, 1))
attnlib.softmax_attention_step(cache, *draw(1, 1))
query, key, value = draw(5, 7)
part = partial_read(query @ key.mT, value)
finish(merge(part, empty_read(query, 3)))
attnlib.score.rotate(query, torch.arange(5))
attnlib.score.sinusoidal(5, 4)
attnlib.read.merge_heads(attnlib.read.split_heads(torch.ones(2, 5, 6), 3))
try:
    attnlib.weight.softmax(torch.ones(3, 4), torch.ones(3, 4))
except Exception as error:
    print(type(error).__name__)
"""


def test_the_core_runs_with_its_shapes_checked():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "TypeCheckError"
